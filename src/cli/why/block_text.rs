//! Why a deployment does not take a job now, and until when.

use std::time::Duration;

use jiff::Timestamp;

use domain::inquiry::{BlockReason, BlockedDeployment};

pub(super) fn block_line(block: &BlockedDeployment) -> String {
    let per_cent = |share: f64| format!("{:.0} %", share * 100.0);
    let known = |limit: Option<u64>| limit.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let why = match &block.reason {
        BlockReason::Tokens { tpm, share } => {
            format!(
                "waits for tokens (quota {} a minute, our share {})",
                known(*tpm),
                per_cent(*share)
            )
        }
        BlockReason::Requests { rpm, share } => {
            format!(
                "waits for requests (quota {} a minute, our share {})",
                known(*rpm),
                per_cent(*share)
            )
        }
        BlockReason::Calls { in_flight, concurrency } => calls_text(*in_flight, *concurrency),
        BlockReason::Paused { error } => {
            format!("pauses after a refusal: {}", error.as_deref().unwrap_or("429"))
        }
        BlockReason::RefusedJob => "refused the job for good; another one may take it".to_owned(),
        BlockReason::Breaker { error } => {
            format!("keeps failing or refusing, so single calls probe it: {error}")
        }
        BlockReason::Retired { error } => format!("removed from the pool: {error}"),
        BlockReason::TooLarge { most } => {
            format!("can never grant so many tokens; at most {most} for one call")
        }
        BlockReason::Deadline => "the job's deadline is too near for the flex tier".to_owned(),
        BlockReason::FailedHere => "failed the job just now; another one is tried first".to_owned(),
        BlockReason::TierAbove => "a tier above it can take the job soon".to_owned(),
        BlockReason::Line => "free as soon as the jobs before it have gone".to_owned(),
    };
    let over = block.over_in_ms.map_or(String::new(), |ms| format!(", until {}", clock_time(ms)));
    format!("{} (tier {}): {why}{over}", block.deployment, block.tier)
}

pub(super) fn relative_time(ms: u64) -> String {
    if ms < 1_000 { "now".to_owned() } else { format!("in about {:.0} s", ms as f64 / 1e3) }
}

/// Formats a time of day, since people look at clocks.
fn clock_time(ms: u64) -> String {
    let at = Timestamp::now() + Duration::from_millis(ms);
    format!("about {} ({})", at.strftime("%H:%M:%S UTC"), relative_time(ms))
}

/// Says that the calls in flight are what binds, and which setting would change it: where fewer go
/// than the settings allow, none would, as their number is learnt from answers and refusals.
fn calls_text(in_flight: usize, concurrency: usize) -> String {
    let limit = format!("is at its limit of calls in flight: {in_flight}");
    match concurrency {
        0 => limit,
        most if in_flight < most => format!("{limit} for now, {most} at most (`concurrency`)"),
        _ => format!("{limit} (`concurrency` sets it; more use more of the quota)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_named_where_it_is_what_binds() {
        assert!(calls_text(64, 64).contains("64 (`concurrency` sets it"));
        assert!(calls_text(5, 64).ends_with("5 for now, 64 at most (`concurrency`)"));
        assert!(calls_text(5, 0).ends_with("flight: 5"), "an older worker tells no setting");
    }
}
