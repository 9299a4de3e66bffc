//! Flags for what is assumed of the service, and learnt from earlier calls.

use std::path::PathBuf;

use clap::ValueHint;

use crate::app::forecast;
use crate::cli::exit::CommandError;
use crate::cli::values::{amount, share};
use crate::config::Config;
use domain::job::BatchId;
use plan::{AssumedLength, CallProfile};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Assumptions about the service")]
pub(super) struct AssumptionFlags {
    /// Take latencies and answer lengths from this batch in the store
    #[arg(long, value_name = "BATCH")]
    like: Vec<BatchId>,
    /// Take latencies from this report of bench; of bench --pipeline: the rate of one worker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    bench: Vec<PathBuf>,
    /// Time to first token in milliseconds, if nothing was learnt [default: 500]
    #[arg(long, value_name = "MS", value_parser = amount)]
    latency_ms: Option<f64>,
    /// Milliseconds per answer token, if nothing was learnt [default: 20]
    #[arg(long, value_name = "MS", value_parser = amount)]
    token_ms: Option<f64>,
    /// Spread of calls around that: sigma of a lognormal distribution [default: 0.3]
    #[arg(long, value_name = "SIGMA", value_parser = amount)]
    spread: Option<f64>,
    /// Answer length as a share of the longest allowed, if nothing was learnt [default: 0.5]
    #[arg(long, value_name = "0..1", value_parser = share, conflicts_with = "output_tokens")]
    output_share: Option<f64>,
    /// Answer length in tokens, if nothing was learnt
    #[arg(long, value_name = "N")]
    output_tokens: Option<u32>,
}

impl AssumptionFlags {
    /// Returns what is assumed, overlaid by what was learnt.
    pub(super) async fn profile(&self, config: &Config) -> Result<CallProfile, CommandError> {
        let mut profile = CallProfile::default();
        let line = &mut profile.latency.others;
        line.first = self.latency_ms.map_or(line.first, |ms| ms / 1e3);
        line.per_token = self.token_ms.map_or(line.per_token, |ms| ms / 1e3);
        line.spread = self.spread.unwrap_or(line.spread);
        let length = self.output_tokens.map(AssumedLength::Tokens);
        let length = length.or(self.output_share.map(AssumedLength::Share));
        profile.answers.others = length.unwrap_or(profile.answers.others);
        forecast::learn(&mut profile, config, &self.bench, &self.like).await?;
        Ok(profile)
    }
}
