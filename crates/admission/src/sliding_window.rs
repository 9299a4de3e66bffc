//! Sum of what was spent in the last minute, in small steps of time.

use std::time::Duration;

use tokio::time::Instant;

const STEP: Duration = Duration::from_millis(250);
/// Steps of a minute, and the current one.
const STEPS: usize = 241;

/// Sums of the last minute; older ones fall out.
pub struct SlidingWindowSum {
    origin: Instant,
    sums: [f64; STEPS],
    newest: u64,
}

impl SlidingWindowSum {
    pub fn new(now: Instant) -> Self {
        Self { origin: now, sums: [0.0; STEPS], newest: 0 }
    }

    pub fn add(&mut self, amount: f64, now: Instant) {
        self.advance(now);
        self.sums[slot(self.newest)] += amount;
    }

    /// Subtracts what was added at that time, if it is still in the window.
    pub fn subtract(&mut self, amount: f64, at: Instant) {
        let step = self.step(at);
        if step + STEPS as u64 > self.newest {
            let sum = &mut self.sums[slot(step)];
            *sum = (*sum - amount).max(0.0);
        }
    }

    /// Returns what was added since then, at most a minute back.
    pub fn sum_since(&mut self, from: Instant, now: Instant) -> f64 {
        self.advance(now);
        let first = self.step(from).max((self.newest + 1).saturating_sub(STEPS as u64));
        (first..=self.newest).map(|step| self.sums[slot(step)]).sum()
    }

    fn advance(&mut self, now: Instant) {
        let step = self.step(now);
        let gone = step.saturating_sub(self.newest).min(STEPS as u64);
        for past in 0..gone {
            self.sums[slot(step - past)] = 0.0;
        }
        self.newest = self.newest.max(step);
    }

    fn step(&self, at: Instant) -> u64 {
        let steps = at.saturating_duration_since(self.origin).as_millis() / STEP.as_millis();
        u64::try_from(steps).unwrap_or(u64::MAX)
    }
}

fn slot(step: u64) -> usize {
    (step % STEPS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_minute_is_remembered_and_no_more() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut recent = SlidingWindowSum::new(start);
        (0..120).for_each(|second| recent.add(1.0, at(second)));
        assert!((recent.sum_since(start, at(119)) - 60.0).abs() <= 1.0);
        assert!((recent.sum_since(at(110), at(119)) - 10.0).abs() < 0.01);
        recent.subtract(1.0, at(115));
        assert!((recent.sum_since(at(110), at(119)) - 9.0).abs() < 0.01);
        assert!(recent.sum_since(start, at(1_000)) < 0.01);
    }
}
