//! Load of a measurement: its phases, and the retries of its calls.

use std::time::Duration;

use super::args::BenchArgs;
use super::flags::{LoadFlags, RetryFlag};
use crate::cli::exit::CommandError;
use bench::load_shapes::LoadShape;
use bench::{LoadPhase, RetryPolicy, sweep, trace};

/// Returns the phases, one after the other.
///
/// # Errors
/// If a flag needs another, or the recorded arrivals can't be read.
pub(super) fn phases(args: &BenchArgs) -> Result<Vec<LoadPhase>, CommandError> {
    let flags = &args.load;
    let default = (args.count.is_none() && flags.replay.is_none()).then(|| Duration::from_secs(60));
    let duration = args.duration.or(default);
    let loads = match flags {
        LoadFlags { rate: Some(rate), .. } => vec![LoadShape::Constant { rate: *rate }],
        LoadFlags { poisson: Some(rate), .. } => vec![LoadShape::Poisson { rate: *rate }],
        LoadFlags { ramp: Some((from, to)), .. } => {
            let span = duration.ok_or_else(|| {
                CommandError::usage_text("--ramp needs a --duration to grow over")
            })?;
            vec![LoadShape::Ramp { from: *from, to: *to, hold: args.warm_up, span }]
        }
        LoadFlags { replay: Some(path), .. } => {
            vec![LoadShape::Replay(trace::read(path).map_err(CommandError::usage)?.into())]
        }
        LoadFlags { sweep: Some((from, to)), .. } => {
            sweep::levels(*from, *to).into_iter().map(LoadShape::Concurrency).collect()
        }
        _ => vec![LoadShape::Concurrency(flags.concurrency.unwrap_or(8))],
    };
    // A recording has no warm-up part.
    let warm_up = if flags.replay.is_some() { Duration::ZERO } else { args.warm_up };
    let phase = |load| LoadPhase { load, warm_up, duration, count: args.count };
    Ok(loads.into_iter().map(phase).collect())
}

pub(super) fn retry(flag: RetryFlag) -> RetryPolicy {
    match flag {
        RetryFlag::None => RetryPolicy::None,
        RetryFlag::Exponential => RetryPolicy::Exponential,
    }
}
