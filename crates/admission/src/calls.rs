//! How many calls a deployment may have in flight.
//!
//! Where its quota is known the quota is the limit and the configured number a mere bound. Where it
//! is not, the number begins small and doubles with each round of answers, falls at refusals and
//! then grows by one a round: additive increase, multiplicative decrease.

use tokio::time::Instant;

/// Calls at once to a deployment of which nothing is known.
const FIRST: f64 = 4.0;

const DECREASE: f64 = 0.8;

/// A provisioned deployment used beyond this is not asked for more at a time. Its answers tell it
/// late: where they say little more than half, the calls since have used the rest.
const BUSY: f64 = 0.6;

/// The number of calls in flight that are allowed.
pub struct Calls {
    configured: usize,
    share: f64,
    allowed: f64,
    /// No refusal yet: it doubles.
    starting: bool,
    /// Refusals before this are of the same moment as the last one that was counted.
    counted_until: Option<Instant>,
}

impl Calls {
    /// `is_paced`: a known quota limits the calls.
    pub fn new(configured: usize, is_paced: bool) -> Self {
        let most = configured as f64;
        let allowed = if is_paced { most } else { most.min(FIRST) };
        Self { configured, share: 1.0, allowed, starting: !is_paced, counted_until: None }
    }

    pub fn allowed(&self) -> usize {
        ((self.allowed * self.share) as usize).max(1)
    }

    /// Lets only a part of the calls go: instances share a deployment without a quota.
    pub fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    /// A quota is known now: it limits the calls.
    pub fn free(&mut self) {
        self.allowed = self.configured as f64;
        self.starting = false;
    }

    pub fn succeed(&mut self, utilisation: Option<f64>) {
        if utilisation.is_some_and(|used| used > BUSY) {
            self.starting = false;
            return;
        }
        let more = if self.starting { 1.0 } else { 1.0 / self.allowed };
        self.allowed = (self.allowed + more).min(self.configured as f64);
    }

    /// Refused at `booked` time until then, with so many in flight.
    pub fn refused(&mut self, in_flight: usize, booked: Instant, now: Instant) {
        self.starting = false;
        // What left before the last decrease tells nothing about the number since.
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
        let mut calls = Calls::new(64, false);
        assert_eq!(calls.allowed(), 4);
        (0..60).for_each(|_| calls.succeed(None));
        assert_eq!(calls.allowed(), 64);
        let later = now + Duration::from_secs(1);
        (0..10).for_each(|_| calls.refused(50, now, later));
        assert_eq!(calls.allowed(), 40);
        (0..40).for_each(|_| calls.succeed(None));
        assert!((40..=41).contains(&calls.allowed()), "one more after a round");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provisioned_deployment_that_is_used_up_is_not_asked_for_more() {
        let mut calls = Calls::new(100, false);
        (0..10).for_each(|_| calls.succeed(Some(0.97)));
        assert_eq!(calls.allowed(), 4);
        calls.set_share(0.5);
        assert_eq!(calls.allowed(), 2);
    }
}
