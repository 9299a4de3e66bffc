//! Concurrency limit: the number of calls that a deployment may have in flight.
//!
//! With a known quota, the quota is the limit and the configured number only a bound. Without one,
//! the number starts small and doubles with each round of answers, falls at a 429 and then grows by
//! one a round: additive increase, multiplicative decrease (AIMD).

use tokio::time::Instant;

/// Calls in flight at first, to a deployment of which nothing is known.
const INITIAL_CALLS: f64 = 4.0;

const DECREASE: f64 = 0.8;

/// Utilisation above which a provisioned deployment gets no further calls. Its answers report it
/// late: where they say little more than half, the calls since have used the rest.
const BUSY_UTILISATION: f64 = 0.6;

/// Number of calls in flight allowed at present.
pub struct ConcurrencyLimit {
    configured: usize,
    share: f64,
    allowed: f64,
    /// No 429 yet: the number doubles.
    starting: bool,
    /// A 429 for a call booked before this belongs to the last decrease that was counted.
    counted_until: Option<Instant>,
}

impl ConcurrencyLimit {
    /// Creates the limit; `is_paced`: a known quota limits the calls.
    pub fn new(configured: usize, is_paced: bool) -> Self {
        let most = configured as f64;
        let allowed = if is_paced { most } else { most.min(INITIAL_CALLS) };
        Self { configured, share: 1.0, allowed, starting: !is_paced, counted_until: None }
    }

    pub fn allowed(&self) -> usize {
        ((self.allowed * self.share) as usize).max(1)
    }

    /// Allows only this share of the calls: instances share a deployment without a quota.
    pub fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    /// Raises the limit to the configured number: a quota is known now and limits the calls.
    pub fn lift(&mut self) {
        self.allowed = self.configured as f64;
        self.starting = false;
    }

    pub fn succeed(&mut self, utilisation: Option<f64>) {
        if utilisation.is_some_and(|used| used > BUSY_UTILISATION) {
            self.starting = false;
            return;
        }
        let more = if self.starting { 1.0 } else { 1.0 / self.allowed };
        self.allowed = (self.allowed + more).min(self.configured as f64);
    }

    /// Records a 429 of a call booked at `booked`, with so many calls in flight.
    pub fn observe_throttled(&mut self, in_flight: usize, booked: Instant, now: Instant) {
        self.starting = false;
        // A call that left before the last decrease tells nothing about the number since.
        if self.counted_until.is_some_and(|until| booked < until) {
            return;
        }
        self.counted_until = Some(now);
        self.allowed = self.allowed.min((in_flight as f64 / self.share) * DECREASE).max(1.0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unknown_deployment_is_approached_and_a_refusal_counts_once() {
        let now = Instant::now();
        let mut calls = ConcurrencyLimit::new(64, false);
        assert_eq!(calls.allowed(), 4);
        (0..60).for_each(|_| calls.succeed(None));
        assert_eq!(calls.allowed(), 64);
        let later = now + Duration::from_secs(1);
        (0..10).for_each(|_| calls.observe_throttled(50, now, later));
        assert_eq!(calls.allowed(), 40);
        (0..40).for_each(|_| calls.succeed(None));
        assert!((40..=41).contains(&calls.allowed()), "one more after a round");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provisioned_deployment_that_is_used_up_is_not_asked_for_more() {
        let mut calls = ConcurrencyLimit::new(100, false);
        (0..10).for_each(|_| calls.succeed(Some(0.97)));
        assert_eq!(calls.allowed(), 4);
        calls.set_share(0.5);
        assert_eq!(calls.allowed(), 2);
    }
}
