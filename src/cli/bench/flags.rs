//! Flags of `promptmill bench`: load, requests and reports.

use std::path::PathBuf;

use crate::cli::values::{calls, range, rate};
use bench::sizes::SizeDistribution;

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Load (one of)")]
pub(super) struct LoadFlags {
    /// Requests a second at even intervals, such as 20, 20/s or 600/m
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(super) rate: Option<f64>,
    /// Requests a second at random intervals, as of many users
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(super) poisson: Option<f64>,
    /// Requests a second, growing linearly over the duration
    #[arg(long, value_name = "FROM..TO", value_parser = |text: &str| range(text, rate))]
    pub(super) ramp: Option<(f64, f64)>,
    /// Requests in flight, each started when one ends [default: 8]
    #[arg(long, value_name = "N", value_parser = calls)]
    pub(super) concurrency: Option<usize>,
    /// One phase per concurrency, doubling, until throughput no longer grows
    #[arg(long, value_name = "FROM..TO", value_parser = |text: &str| range(text, calls))]
    pub(super) sweep: Option<(usize, usize)>,
    /// Recorded arrivals: JSONL or CSV of offset_seconds, prompt_tokens, output_tokens
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompts", "shape"])]
    pub(super) replay: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Requests")]
pub(super) struct RequestFlags {
    /// Tokens of prompt and answer: 500 and 500, 2000 and 200, or 500 and 1000
    #[arg(long, value_enum, default_value_t = ShapeFlag::Balanced)]
    pub(super) shape: ShapeFlag,
    /// Tokens of each prompt: 500, uniform:100..900, normal:500,100 or lognormal:500,0.8
    #[arg(long, value_name = "SIZES")]
    pub(super) prompt_tokens: Option<SizeDistribution>,
    /// Token limit of each answer, in the same forms
    #[arg(long, value_name = "SIZES")]
    pub(super) output_tokens: Option<SizeDistribution>,
    /// Send the prompts of this batch file, repeatedly
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shape", "prompt_tokens", "output_tokens"])]
    pub(super) prompts: Option<PathBuf>,
    /// Request answers without streaming; there is no time to first token then
    #[arg(long, conflicts_with_all = ["slo_ttft_ms", "slo_tbt_ms"])]
    pub(super) no_stream: bool,
    /// Repeat the same prompts, so that the service's cache helps
    #[arg(long)]
    pub(super) cacheable: bool,
    /// Request field that limits answers; older servers know max_tokens only
    #[arg(long, value_name = "NAME", default_value = "max_completion_tokens")]
    #[arg(value_parser = ["max_completion_tokens", "max_tokens"])]
    pub(super) limit_field: String,
    /// Longest time to first token of a good answer, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(super) slo_ttft_ms: Option<f64>,
    /// Longest average time between its tokens, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(super) slo_tbt_ms: Option<f64>,
    /// Longest time to its end, in milliseconds
    #[arg(long, value_name = "MS")]
    pub(super) slo_e2e_ms: Option<f64>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Reports")]
pub(super) struct OutputFlags {
    /// Print the report as JSON on standard output, not as a table
    #[arg(long)]
    pub(super) json: bool,
    /// Write the report as JSON, for `bench compare`
    #[arg(long, value_name = "FILE")]
    pub(super) report: Option<PathBuf>,
    /// Write the figures of every second of every phase as CSV
    #[arg(long, value_name = "FILE")]
    pub(super) csv: Option<PathBuf>,
    /// Write an HTML page with plots
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Print no progress line each second
    #[arg(long, short)]
    pub(super) quiet: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pipeline")]
pub(super) struct PipelineFlags {
    /// Measure the pipeline: --count jobs into the configured queue, through a worker, to the store
    #[arg(long, conflicts_with_all = ["rate", "poisson", "ramp", "sweep", "replay", "warm_up",
        "duration", "retry", "stop_at_error_rate", "max_in_flight", "no_stream", "slo_ttft_ms",
        "slo_tbt_ms", "slo_e2e_ms", "csv", "html"])]
    pub(super) pipeline: bool,
    /// Answer from the built-in simulator, at once: only queue, worker and store are measured
    #[arg(long, requires = "pipeline", conflicts_with_all = ["endpoint", "deployment"])]
    pub(super) simulate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ShapeFlag {
    Balanced,
    Context,
    Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum RetryFlag {
    None,
    Exponential,
}
