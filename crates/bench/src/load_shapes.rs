//! Load shapes: the intended start of each request.
//!
//! Pure: a shape and a seed give the same times on every machine. Only open-loop shapes are here; a
//! fixed concurrency has no schedule, since each call starts when the one before it ends.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use rand_distr::{Distribution, Exp1};

/// One recorded request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TraceArrival {
    /// From the start of the recording.
    pub at: Duration,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

/// Start times of the requests. Rates are in requests a second.
#[derive(Debug, Clone, PartialEq)]
pub enum LoadShape {
    /// Evenly spaced.
    Constant { rate: f64 },
    /// Independent of each other, as those of many users.
    Poisson { rate: f64 },
    /// The rate stays at `from` until `hold` is over, then grows evenly over `span`.
    Ramp { from: f64, to: f64, hold: Duration, span: Duration },
    /// Recorded starts.
    Replay(Arc<[TraceArrival]>),
    /// Fixed concurrency: each request starts when another ends.
    Concurrency(usize),
}

/// One load, applied for one period.
#[derive(Debug, Clone)]
pub struct LoadPhase {
    pub load: LoadShape,
    /// Requests whose intended start lies in it are sent and not measured.
    pub warm_up: Duration,
    /// Length of the measured part. Without it, `count` or the end of a replay ends the phase.
    pub duration: Option<Duration>,
    /// Measured requests.
    pub count: Option<u64>,
}

impl LoadShape {
    /// Returns the intended starts, in order; none for a closed loop, endless but for a replay.
    pub fn starts(&self, seed: u64) -> StartTimes {
        StartTimes { load: self.clone(), rng: SmallRng::seed_from_u64(seed), count: 0, at: 0.0 }
    }
}

impl std::fmt::Display for LoadShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Constant { rate } => write!(f, "{rate} requests/s, constant"),
            Self::Poisson { rate } => write!(f, "{rate} requests/s, Poisson"),
            Self::Ramp { from, to, .. } => write!(f, "ramp from {from} to {to} requests/s"),
            Self::Replay(arrivals) => write!(f, "replay of {} arrivals", arrivals.len()),
            Self::Concurrency(calls) => write!(f, "{calls} at a time"),
        }
    }
}

/// Intended starts of a load, from its beginning.
#[derive(Debug)]
pub struct StartTimes {
    load: LoadShape,
    rng: SmallRng,
    count: usize,
    /// Time of the last one, in seconds.
    at: f64,
}

impl Iterator for StartTimes {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let n = self.count as f64;
        let at = match &self.load {
            LoadShape::Constant { rate } => n / rate,
            LoadShape::Poisson { rate } => {
                let gap: f64 = Exp1.sample(&mut self.rng);
                self.at + gap / rate
            }
            LoadShape::Ramp { from, to, hold, span } => {
                ramp_time(n, *from, *to, hold.as_secs_f64(), span.as_secs_f64())
            }
            LoadShape::Replay(arrivals) => arrivals.get(self.count)?.at.as_secs_f64(),
            LoadShape::Concurrency(_) => return None,
        };
        self.at = at;
        self.count += 1;
        Duration::try_from_secs_f64(at).ok()
    }
}

/// Returns the start of a ramp's `n`th request: the time at which the rate's integral reaches `n`.
fn ramp_time(n: f64, from: f64, to: f64, hold: f64, span: f64) -> f64 {
    let held = from * hold;
    if n <= held {
        return n / from;
    }
    let rest = n - held;
    let whole = (from + to) / 2.0 * span;
    if rest >= whole {
        return hold + span + (rest - whole) / to;
    }
    let growth = (to - from) / span;
    // The root of growth/2 t² + from t = rest, in the form that holds for no growth too.
    hold + 2.0 * rest / (from + (from * from + 2.0 * growth * rest).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(load: &LoadShape, seconds: f64) -> Vec<f64> {
        let starts = load.starts(7).map(|at| at.as_secs_f64());
        starts.take_while(|at| *at < seconds).collect()
    }

    #[test]
    fn a_constant_rate_has_even_gaps_that_do_not_drift() {
        let starts = until(&LoadShape::Constant { rate: 3.0 }, 1_000.0);
        assert_eq!(starts.len(), 3_000);
        assert!((starts[2_999] - 2_999.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn poisson_has_the_rate_and_the_spread_of_independent_users() {
        let starts = until(&LoadShape::Poisson { rate: 50.0 }, 1_000.0);
        let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "mean gap {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "spread {}", variance.sqrt());
        assert_eq!(
            starts,
            until(&LoadShape::Poisson { rate: 50.0 }, 1_000.0),
            "a seed decides it all"
        );
    }

    #[test]
    fn a_ramp_holds_then_grows_evenly_then_stays() {
        let second = Duration::from_secs;
        let load = LoadShape::Ramp { from: 10.0, to: 30.0, hold: second(5), span: second(10) };
        let starts = until(&load, 20.0);
        let between = |a: f64, b: f64| starts.iter().filter(|at| (a..b).contains(*at)).count();
        let counts = [between(0.0, 5.0), between(5.0, 15.0), between(15.0, 20.0)];
        for (count, expected) in counts.into_iter().zip([50, 200, 150]) {
            assert!(count.abs_diff(expected) <= 1, "{counts:?}");
        }
        assert!(between(13.0, 15.0) > between(5.0, 7.0) * 2);
    }

    #[test]
    fn a_flat_or_falling_ramp_works_too() {
        let span = Duration::from_secs(10);
        let flat = LoadShape::Ramp { from: 4.0, to: 4.0, hold: Duration::ZERO, span };
        assert_eq!(until(&flat, 5.0).len(), 20);
        let falling = LoadShape::Ramp { from: 30.0, to: 10.0, hold: Duration::ZERO, span };
        assert!(until(&falling, 10.0).len().abs_diff(200) <= 1);
    }

    #[test]
    fn a_replay_starts_as_recorded_and_ends() {
        let arrival =
            |ms| TraceArrival { at: Duration::from_millis(ms), prompt_tokens: 1, output_tokens: 1 };
        let load = LoadShape::Replay([arrival(0), arrival(10), arrival(10)].into());
        let starts: Vec<_> = load.starts(0).map(|at| at.as_millis()).collect();
        assert_eq!(starts, [0, 10, 10]);
    }
}
