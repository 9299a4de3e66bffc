//! `promptmill simulate`: the Azure OpenAI simulator as a standalone server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{CommandError, ExitStatus, interrupt, print};
use simulator::{
    self, CountedTokens, FaultRates, HeaderStyle, MeterKind, MeterRules, ProfileSetting,
    ProfileSpec, ScheduledChange, SimulatedLatency, SimulatorSettings,
};

const HELP: &str = "\
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

/// Serve an Azure OpenAI simulator: quotas, latency, faults, and a ledger at /ledger
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct SimulateArgs {
    /// Port on 127.0.0.1; 0 picks a free one, which is printed
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Tokens a minute of each deployment
    #[arg(long, value_name = "N")]
    tpm: Option<u64>,
    /// Requests a minute of each deployment
    #[arg(long, value_name = "N")]
    rpm: Option<u64>,
    /// Length of the simulator's minute, in seconds; the rate stays as --tpm says
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    window: f64,
    /// Slice in which the request limit is enforced, in seconds: 1 or 10 at the real service
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    request_slice: f64,
    /// When the token counter forgets: clock, first, sliding, bucket or bucket:SPAN
    #[arg(long, value_name = "KIND", default_value = "clock")]
    meter: MeterKind,
    /// Tokens that it counts: estimate, billed or corrected
    #[arg(long, value_name = "TOKENS", default_value = "estimate")]
    counts: CountedTokens,
    /// Rate-limit headers of answers: full, classic, remaining, reset-on-429, 200-only, stale:SPAN,
    /// minus-one, zero or none
    #[arg(long, value_name = "STYLE", default_value = "full")]
    rate_headers: HeaderStyle,
    /// Time to first token, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    latency_ms: f64,
    /// Milliseconds per token of the answer
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    token_ms: f64,
    /// Spread of latencies: sigma of a lognormal distribution
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0)]
    spread: f64,
    /// Share of calls that end in a fault, spread over 500, 503, 408, resets and cut bodies
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    faults: f64,
    /// Share of calls that are never answered
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    hangs: f64,
    /// Longest usual answer, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    typical_output: u32,
    /// Factor of the service's charge, against the documented estimate
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    charge_factor: f64,
    /// Share of answers to requests with a JSON schema that violate it
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    misfits: f64,
    /// Deployment to serve, with its own settings; repeatable; without any, all names are served
    #[arg(long, value_name = "NAME[,KEY=VALUE…]")]
    deployment: Vec<ProfileSpec>,
    /// Change a deployment, or all, at a time after the start, as in 90s:tpm=60000
    #[arg(long, value_name = "AFTER:[NAME,]KEY=VALUE…")]
    change: Vec<ScheduledChange>,
    /// Leave out the headers about quota and utilisation, as gateways that strip them do
    #[arg(long, conflicts_with = "rate_headers")]
    no_rate_headers: bool,
    /// Variable that holds the key which callers must send
    #[arg(long, value_name = "VARIABLE")]
    api_key_env: Option<String>,
    /// Seed of answers, latencies and faults
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep no texts in the ledger, only hashes: for millions of prompts
    #[arg(long)]
    no_samples: bool,
}

pub(super) async fn run(args: SimulateArgs) -> Result<ExitStatus, CommandError> {
    let port = args.port;
    let settings = settings(args)?;
    settings.check().map_err(CommandError::usage)?;
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let simulator = simulator::start(address, settings).await.map_err(|error| {
        let text = format!("can't serve on {address}: choose another --port");
        CommandError::usage(anyhow::Error::new(error).context(text))
    })?;
    print(&format!("http://{}", simulator.addr()))?;
    stop.cancelled().await;
    simulator.shutdown().await;
    Ok(ExitStatus::AllDone)
}

fn settings(args: SimulateArgs) -> Result<SimulatorSettings, CommandError> {
    let seconds = |name: &str, s: f64| {
        Duration::try_from_secs_f64(s)
            .map_err(|_| CommandError::usage_text(format!("--{name} must be a number of seconds")))
    };
    let api_key = match args.api_key_env {
        None => None,
        Some(name) => {
            let key = std::env::var(&name);
            let missing = |_| CommandError::usage_text(format!("the variable {name} is not set"));
            Some(key.map_err(missing)?.into())
        }
    };
    let mut overrides = BTreeMap::<String, Vec<ProfileSetting>>::new();
    for ProfileSpec { deployment, settings } in args.deployment {
        let no_name = "--deployment begins with a name, as in --deployment east,tpm=60000";
        let name = deployment.ok_or_else(|| CommandError::usage_text(no_name))?;
        overrides.entry(name).or_default().extend(settings);
    }
    Ok(SimulatorSettings {
        seed: args.seed,
        tpm: args.tpm,
        rpm: args.rpm,
        window: seconds("window", args.window)?,
        request_slice: seconds("request-slice", args.request_slice)?,
        latency: SimulatedLatency {
            base_ms: args.latency_ms,
            per_token_ms: args.token_ms,
            sigma: args.spread,
        },
        faults: FaultRates { rate_hang: args.hangs, ..FaultRates::spread(args.faults) },
        api_key,
        overrides,
        changes: args.change,
        meter: MeterRules {
            kind: args.meter,
            counted: args.counts,
            headers: if args.no_rate_headers { HeaderStyle::None } else { args.rate_headers },
            ..MeterRules::DOCUMENTED
        },
        typical_output: args.typical_output,
        charge_factor: args.charge_factor,
        misfits: args.misfits,
        ledger_samples: !args.no_samples,
        ..SimulatorSettings::default()
    })
}
