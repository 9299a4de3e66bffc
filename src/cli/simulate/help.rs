//! Help of `promptmill simulate` beyond its flags: the HTTP interface and the settings of deployments.

pub(super) const HELP: &str = "\
It answers on /openai/deployments/NAME/…, /openai/v1/… and /v1/….
GET /ledger says what was admitted, refused and billed; GET /ledger?prompts=true by prompt.
GET /deployments lists the deployments; POST settings to /deployments/NAME, or to /deployments for
all, changes them while it runs:
  curl -d tpm=30000,down=503:10s http://127.0.0.1:8080/deployments/east

Settings of a deployment, KEY=VALUE separated by commas; those not given are as the flags say:
  tpm, rpm           tokens and requests a minute; none is unlimited
  ptu                makes it provisioned: tokens a minute that drain from its bucket, in place of
                     tpm and rpm; 100 % is what drains in one --window
  latency-ms, token-ms, spread
                     as the flags of these names
  fault-rate         as --faults; single ones: rate-429, rate-500, rate-503, rate-408,
                     rate-reset-before, rate-reset-after, rate-hang, rate-truncate
  flex               the flex tier has room: on, or for a part of each period, as in 20s/60s; off is
                     no flex tier
  other-tpm          tokens a minute that other callers book; with other-bursts=5s/30s only then
  meter              when the service forgets what it counted: clock (windows one after the other),
                     first (a window begins with the first request after the last), sliding, or
                     bucket (fills all the time); bucket:10s holds no more than 10 s of it
  counts             estimate (when a request arrives), billed (when it is answered), or corrected
                     (estimated, and made good when it is answered)
  rate-headers       what answers report: full (limit, remaining, reset), classic (no reset),
                     remaining (alone), reset-on-429, 200-only, stale:5s (read every 5 s), minus-one,
                     zero, or none
  gateway-tpm        tokens a minute that a gateway before the service lets through
  cut                part of the quota in force, as in 0.5; only the limit in the headers shows it
  down               reset, 500 or 503 for every call, for ever or as in 503:10s; off ends it
A quota that the service lowers for a while:  --change 60s:tpm=30000 --change 120s:tpm=60000
Azure as it was for years:  --meter first --rate-headers classic";
