//! Flags of `promptmill simulate`.

use super::help::HELP;
use simulator::{CountedTokens, HeaderStyle, MeterKind, ProfileSpec, ScheduledChange};

/// Serve an Azure OpenAI simulator: quotas, latency, faults, and a ledger at /ledger
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(in crate::cli) struct SimulateArgs {
    /// Port on 127.0.0.1; 0 picks a free one, which is printed
    #[arg(long, default_value_t = 8080)]
    pub(super) port: u16,
    /// Tokens a minute of each deployment
    #[arg(long, value_name = "N")]
    pub(super) tpm: Option<u64>,
    /// Requests a minute of each deployment
    #[arg(long, value_name = "N")]
    pub(super) rpm: Option<u64>,
    /// Length of the simulator's minute, in seconds; the rate stays as --tpm says
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(super) window: f64,
    /// Slice in which the request limit is enforced, in seconds: 1 or 10 at the real service
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub(super) request_slice: f64,
    /// When the token counter forgets: clock, first, sliding, bucket or bucket:SPAN
    #[arg(long, value_name = "KIND", default_value = "clock")]
    pub(super) meter: MeterKind,
    /// Tokens that it counts: estimate, billed or corrected
    #[arg(long, value_name = "TOKENS", default_value = "estimate")]
    pub(super) counts: CountedTokens,
    /// Rate-limit headers of answers: full, classic, remaining, reset-on-429, 200-only, stale:SPAN,
    /// minus-one, zero or none
    #[arg(long, value_name = "STYLE", default_value = "full")]
    pub(super) rate_headers: HeaderStyle,
    /// Time to first token, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    pub(super) latency_ms: f64,
    /// Milliseconds per token of the answer
    #[arg(long, value_name = "MS", default_value_t = 0.0)]
    pub(super) token_ms: f64,
    /// Spread of latencies: sigma of a lognormal distribution
    #[arg(long, value_name = "SIGMA", default_value_t = 0.0)]
    pub(super) spread: f64,
    /// Share of calls that end in a fault, spread over 500, 503, 408, resets and cut bodies
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub(super) faults: f64,
    /// Share of calls that are never answered
    #[arg(long, value_name = "0..1", default_value_t = 0.0)]
    pub(super) hangs: f64,
    /// Longest usual answer, in tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 64)]
    pub(super) typical_output: u32,
    /// Factor of the service's charge, against the documented estimate
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub(super) charge_factor: f64,
    /// Share of answers to requests with a JSON schema that violate it
    #[arg(long, default_value_t = 0.0, value_name = "SHARE")]
    pub(super) misfits: f64,
    /// Deployment to serve, with its own settings; repeatable; without any, all names are served
    #[arg(long, value_name = "NAME[,KEY=VALUE…]")]
    pub(super) deployment: Vec<ProfileSpec>,
    /// Change a deployment, or all, at a time after the start, as in 90s:tpm=60000
    #[arg(long, value_name = "AFTER:[NAME,]KEY=VALUE…")]
    pub(super) change: Vec<ScheduledChange>,
    /// Leave out the headers about quota and utilisation, as gateways that strip them do
    #[arg(long, conflicts_with = "rate_headers")]
    pub(super) no_rate_headers: bool,
    /// Variable that holds the key which callers must send
    #[arg(long, value_name = "VARIABLE")]
    pub(super) api_key_env: Option<String>,
    /// Seed of answers, latencies and faults
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Keep no texts in the ledger, only hashes: for millions of prompts
    #[arg(long)]
    pub(super) no_samples: bool,
}
