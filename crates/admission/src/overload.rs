//! Overload of a deployment by our own calls: they begin at the quota's pace, end more slowly than they
//! begin, and last longer and longer.
//!
//! Pure. Longer prompts make calls last longer too, but then as many end as begin, once the first of
//! them are through. So it takes two rounds in a row, each at least twice as long as a call.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest round, and the calls that it must see.
const SHORTEST_ROUND: Duration = Duration::from_secs(10);
const LEAST_CALLS: u32 = 50;

/// Ends for each begin below which calls pile up, and growth of their mean time that is slower.
const PILING_UP: f64 = 0.8;
const SLOWER: f64 = 1.5;

/// Rounds in a row that make an overload.
const ROUNDS: u32 = 2;

/// Judgement at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RoundVerdict {
    Calm,
    Overloaded,
}

/// Watches the calls of one deployment in rounds.
pub struct OverloadWatch {
    began: Instant,
    begun: u32,
    ended: u32,
    seconds: f64,
    /// Mean time of a call in the round before.
    mean_before: Option<f64>,
    piling: u32,
}

impl OverloadWatch {
    pub fn new(now: Instant) -> Self {
        Self { began: now, begun: 0, ended: 0, seconds: 0.0, mean_before: None, piling: 0 }
    }

    /// Records that a call begins.
    pub fn begin(&mut self) {
        self.begun += 1;
    }

    /// Records that a call was answered; returns the verdict at the end of a round.
    pub fn answered(&mut self, latency: Duration, now: Instant) -> Option<RoundVerdict> {
        self.ended += 1;
        self.seconds += latency.as_secs_f64();
        let mean = self.seconds / f64::from(self.ended);
        let round = SHORTEST_ROUND.max(Duration::from_secs_f64(2.0 * mean));
        if now.saturating_duration_since(self.began) < round || self.begun < LEAST_CALLS {
            return None;
        }
        let piles_up = f64::from(self.ended) < PILING_UP * f64::from(self.begun);
        let is_slower = self.mean_before.is_some_and(|before| mean >= SLOWER * before);
        let piling = if piles_up && is_slower { self.piling + 1 } else { 0 };
        *self = Self { mean_before: Some(mean), piling, ..Self::new(now) };
        Some(if piling >= ROUNDS { RoundVerdict::Overloaded } else { RoundVerdict::Calm })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Begins ten calls a second; each lasts as long as this says. Returns whether it was ever an
    /// overload.
    fn is_overloaded(latency: impl Fn(usize, usize) -> f64) -> bool {
        let start = Instant::now();
        let mut watch = OverloadWatch::new(start);
        let mut under_way = VecDeque::new();
        let mut seen = false;
        for tick in 0..6_000 {
            let at = f64::from(tick) / 10.0;
            watch.begin();
            under_way.push_back((at, at + latency(tick as usize, under_way.len())));
            while let Some((began, ends)) = under_way.front().copied().filter(|(_, e)| *e <= at) {
                under_way.pop_front();
                let now = start + Duration::from_secs_f64(ends.max(at));
                let lasted = Duration::from_secs_f64(ends - began);
                seen |= watch.answered(lasted, now) == Some(RoundVerdict::Overloaded);
            }
        }
        seen
    }

    #[test]
    fn a_service_that_ends_fewer_calls_than_begin_is_overloaded() {
        // It ends five a second, whatever waits.
        assert!(is_overloaded(|_, waiting| 1.0 + waiting as f64 / 5.0));
    }

    #[test]
    fn longer_calls_are_no_overload() {
        assert!(!is_overloaded(|_, _| 60.0));
        assert!(!is_overloaded(|n, _| if n < 2_000 { 1.0 } else { 30.0 }));
        assert!(!is_overloaded(|n, _| 5.0 + (n % 7) as f64));
    }
}
