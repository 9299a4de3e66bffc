//! Runs a benchmark from its first phase to its report.

use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::drive::{self, Bench};
use super::knee::{self, SweepLevel};
use super::load_shapes::LoadPhase;
use super::load_shapes::LoadShape;
use super::report::{BenchReport, BenchSetup, BenchStopReason, PhaseReport};
use super::tally::LiveStats;

/// Returns concurrencies from `from` to `to`, each twice the one before; `to` is always among them.
pub fn levels(from: usize, to: usize) -> Vec<usize> {
    let doubled = std::iter::successors(Some(from.max(1)), |level| level.checked_mul(2));
    let mut levels: Vec<usize> = doubled.take_while(|level| *level < to).collect();
    levels.push(to);
    levels
}

/// Runs the phases one after the other and calls `live` every second with the current phase.
/// Several phases are a sweep, which ends early once throughput no longer grows.
pub async fn run(
    bench: Bench,
    setup: BenchSetup,
    phases: &[LoadPhase],
    stop: &CancellationToken,
    live: &mut (dyn FnMut(&LoadPhase, &LiveStats) + Send),
) -> BenchReport {
    let bench = Arc::new(bench);
    let mut report = BenchReport {
        promptmill: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: Timestamp::now(),
        setup,
        slo: bench.slo,
        ended: BenchStopReason::Complete,
        phases: Vec::new(),
        knee: None,
    };
    let mut seen = Vec::new();
    for phase in phases {
        let measured =
            drive::run_phase(&bench, phase, stop, &mut |second| live(phase, second)).await;
        let found = PhaseReport::of(phase, &measured, bench.slo, bench.seed);
        if let LoadShape::Concurrency(concurrency) = phase.load {
            seen.push(SweepLevel { concurrency, rpm: found.rates.rpm.sustained });
        }
        report.phases.push(found);
        report.ended = measured.ended;
        if report.ended != BenchStopReason::Complete || knee::is_saturated(&seen) {
            break;
        }
    }
    if phases.len() > 1 {
        report.knee = knee::knee(&seen);
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_double_and_end_where_they_should() {
        assert_eq!(levels(1, 8), [1, 2, 4, 8]);
        assert_eq!(levels(3, 20), [3, 6, 12, 20]);
        assert_eq!(levels(5, 5), [5]);
    }
}
