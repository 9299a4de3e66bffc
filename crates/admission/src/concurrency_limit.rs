//! Concurrency limit: the number of calls that a deployment may have in flight.
//!
//! With a known quota, the quota is the limit and the number only a bound: thousands, unless the user sets
//! one, lowered only where the deployment slows down by its calls ([`OverloadWatch`]). Without a quota
//! the number starts small and doubles with each round of answers, falls at a 429 and then grows by
//! one a round: additive increase, multiplicative decrease (AIMD).

use std::time::Duration;

use tokio::time::Instant;

use super::limits::DeploymentLimits;
use super::overload::{OverloadWatch, RoundVerdict};

/// Calls in flight at first, to a deployment of which nothing is known.
const INITIAL_CALLS: f64 = 4.0;

const DECREASE: f64 = 0.8;

/// Utilisation above which a provisioned deployment gets no further calls. Its answers report it
/// late: where they say little more than half, the calls since have used the rest.
const BUSY_UTILISATION: f64 = 0.6;

/// Part of the calls in flight that an overloaded deployment keeps, and growth with each calm round.
const RELIEF: f64 = 0.7;
const RECOVERY: f64 = 1.5;

/// Number of calls in flight allowed at present.
pub struct ConcurrencyLimit {
    /// Most calls with a known quota, and without one.
    most_paced: usize,
    most_unpaced: usize,
    is_paced: bool,
    share: f64,
    allowed: f64,
    /// No 429 yet: the number doubles.
    starting: bool,
    /// A 429 for a call booked before this belongs to the last decrease that was counted.
    counted_until: Option<Instant>,
    overload: OverloadWatch,
}

impl ConcurrencyLimit {
    /// Creates the limit; `is_paced`: a known quota limits the calls.
    pub fn new(limits: &DeploymentLimits, is_paced: bool, now: Instant) -> Self {
        let most_paced = limits.concurrency;
        let most_unpaced = limits.unpaced_concurrency.min(most_paced);
        let first = INITIAL_CALLS.min(most_unpaced as f64);
        Self {
            most_paced,
            most_unpaced,
            is_paced,
            share: 1.0,
            allowed: if is_paced { most_paced as f64 } else { first },
            starting: !is_paced,
            counted_until: None,
            overload: OverloadWatch::new(now),
        }
    }

    /// Returns the most calls in flight that are ever allowed at present.
    pub fn most(&self) -> usize {
        if self.is_paced { self.most_paced } else { self.most_unpaced }
    }

    /// Records that a call begins.
    pub fn begin(&mut self) {
        self.overload.begin();
    }

    /// Records the time of an answered call, of which so many were in flight. The calls of a user's
    /// own limit are never lowered.
    pub fn answered(&mut self, latency: Duration, in_flight: usize, now: Instant) {
        let verdict = self.overload.answered(latency, now);
        if !self.is_paced || self.most_paced == self.most_unpaced {
            return;
        }
        match verdict {
            Some(RoundVerdict::Overloaded) => {
                let least = self.most_unpaced as f64;
                self.allowed = (in_flight as f64 / self.share * RELIEF).max(least);
            }
            Some(RoundVerdict::Calm) => {
                self.allowed = (self.allowed * RECOVERY).min(self.most_paced as f64);
            }
            None => {}
        }
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
        self.is_paced = true;
        self.allowed = self.most_paced as f64;
        self.starting = false;
    }

    pub fn succeed(&mut self, utilisation: Option<f64>) {
        if utilisation.is_some_and(|used| used > BUSY_UTILISATION) {
            self.starting = false;
            return;
        }
        let more = if self.starting { 1.0 } else { 1.0 / self.allowed };
        self.allowed = (self.allowed + more).min(self.most() as f64);
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
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_unknown_deployment_is_approached_and_a_refusal_counts_once() {
        let now = Instant::now();
        let mut calls = ConcurrencyLimit::new(&DeploymentLimits::default(), false, now);
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
        let limits = DeploymentLimits {
            concurrency: 100,
            unpaced_concurrency: 100,
            ..DeploymentLimits::default()
        };
        let mut calls = ConcurrencyLimit::new(&limits, false, Instant::now());
        (0..10).for_each(|_| calls.succeed(Some(0.97)));
        assert_eq!(calls.allowed(), 4);
        calls.set_share(0.5);
        assert_eq!(calls.allowed(), 2);
    }
}
