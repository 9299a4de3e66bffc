//! Flags of `promptmill bench`: load, requests and reports.

use std::path::PathBuf;
use std::time::Duration;

use bench::Slo;
use bench::sizes::{RequestShape, SizeDistribution};

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

impl RequestFlags {
    pub(super) fn shape(&self) -> RequestShape {
        let named = match self.shape {
            ShapeFlag::Balanced => RequestShape::BALANCED,
            ShapeFlag::Context => RequestShape::CONTEXT,
            ShapeFlag::Generation => RequestShape::GENERATION,
        };
        RequestShape {
            prompt: self.prompt_tokens.unwrap_or(named.prompt),
            output: self.output_tokens.unwrap_or(named.output),
        }
    }

    pub(super) fn slo(&self) -> Slo {
        Slo { ttft_ms: self.slo_ttft_ms, tbt_ms: self.slo_tbt_ms, e2e_ms: self.slo_e2e_ms }
    }
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "write a share from 0 to 1".to_owned())
}

/// Parses requests a second: `20`, `20/s` or `600/m`.
fn rate(text: &str) -> Result<f64, String> {
    let (number, per) = match text.split_once('/') {
        None | Some((_, "s")) => (text.trim_end_matches("/s"), 1.0),
        Some((number, "m" | "min")) => (number, 60.0),
        Some(_) => return Err("write a rate like 20, 20/s or 600/m".into()),
    };
    let rate = number.trim().parse::<f64>().map_err(|_| "write a rate like 20 or 600/m")? / per;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err("a rate is above 0".into()) }
}

fn calls(text: &str) -> Result<usize, String> {
    let calls = text.trim().parse().map_err(|_| "not a number of requests".to_owned())?;
    if calls > 0 { Ok(calls) } else { Err("at least 1".into()) }
}

fn range<T: PartialOrd>(
    text: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<(T, T), String> {
    let (from, to) = text.split_once("..").ok_or("write a range like 1..64")?;
    let (from, to) = (read(from)?, read(to)?);
    if from <= to {
        Ok((from, to))
    } else {
        Err("a range goes from the smaller to the larger number".into())
    }
}
