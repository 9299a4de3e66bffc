//! Command line of `promptmill bench`.

use std::path::PathBuf;
use std::time::Duration;

use super::flags::{LoadFlags, OutputFlags, PipelineFlags, RequestFlags, RetryFlag};
use crate::cli::endpoint::EndpointFlags;
use crate::cli::values::{seconds, share};

/// Measure a deployment: tokens a minute, latency, time to first token, throttling
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 measured, 1 stopped at the error rate, 2 usage or configuration, \
                  3 out of reach, 4 a report can't be written, 130 interrupted.\n\
                  docs/bench.md has the method and the definitions."
)]
pub(in crate::cli) struct BenchArgs {
    #[command(subcommand)]
    pub(super) command: Option<BenchCommand>,
    #[command(flatten)]
    pub(super) endpoint_flags: EndpointFlags,
    /// Deployment name; without --endpoint, one of the configuration
    #[arg(long, value_name = "NAME")]
    pub(super) deployment: Option<String>,
    /// Model name in requests, if it is not the deployment's
    #[arg(long, value_name = "NAME")]
    pub(super) model: Option<String>,
    /// Warm-up before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    pub(super) warm_up: Duration,
    /// Measured time of each phase, in seconds [default: 60, or until --count or a replay ends it]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) duration: Option<Duration>,
    /// Number of measured requests in each phase
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,
    /// Retries after 429s and transient errors
    #[arg(long, value_enum, default_value_t = RetryFlag::None)]
    pub(super) retry: RetryFlag,
    /// Stop if over this share of requests failed in ten seconds; 429s do not count, 1 never stops
    #[arg(long, value_name = "0..1", default_value = "0.5", value_parser = share)]
    pub(super) stop_at_error_rate: f64,
    /// Limit of requests in flight at a constant, Poisson, ramp or replay load
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub(super) max_in_flight: usize,
    /// Seed of arrivals and sizes
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    #[command(flatten)]
    pub(super) pipeline: PipelineFlags,
    #[command(flatten)]
    pub(super) load: LoadFlags,
    #[command(flatten)]
    pub(super) requests: RequestFlags,
    #[command(flatten)]
    pub(super) output: OutputFlags,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum BenchCommand {
    /// Show the figures of two reports that differ by more than chance
    Compare {
        /// First report
        a: PathBuf,
        /// Second report
        b: PathBuf,
        /// Print as JSON on standard output
        #[arg(long)]
        json: bool,
    },
}
