//! Leaky bucket of a provisioned deployment (PTU).
//!
//! Pure, as `quota` is: time is passed in as the span since the simulator started. The rules are
//! the published ones of provisioned throughput: above 100 % utilisation a request is refused with
//! the time until it is below; otherwise its estimate (prompt minus cached tokens, plus the maximum
//! output) is added, and corrected when the request is done; the bucket drains all the time. Its
//! size is not published: here 100 % is the amount that drains in a span given to the constructor.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::duty_cycle::ForeignTraffic;

/// Tokens above 100 % that count as rounding error.
const ROUNDING_TOKENS: f64 = 1e-6;

/// Steps that one span is divided into while foreign traffic fills the bucket.
const STEPS: u32 = 64;

/// Leaky bucket of one deployment, counted in tokens.
#[derive(Debug)]
pub struct LeakyBucket {
    /// Tokens that drain in a second.
    drain: f64,
    span: Duration,
    level: f64,
    /// Time of the last update of `level`.
    updated_at: Duration,
    /// Corrections of requests that are still being answered, soonest first.
    pending: BinaryHeap<Reverse<(Duration, i64)>>,
    foreign_traffic: Option<ForeignTraffic>,
}

impl LeakyBucket {
    /// Creates an empty bucket at `now`. `tokens_per_minute` drain; the amount that drains in
    /// `span` is 100 %. Neither may be zero.
    pub fn new(now: Duration, tokens_per_minute: u64, span: Duration) -> Self {
        let drain = tokens_per_minute as f64 / 60.0;
        Self {
            drain,
            span,
            level: 0.0,
            updated_at: now,
            pending: BinaryHeap::new(),
            foreign_traffic: None,
        }
    }

    /// Decides one request and adds its estimate. The error is the time until the level is down to
    /// 100 %.
    pub fn admit(&mut self, now: Duration, estimate: u64) -> Result<(), Duration> {
        self.advance(now);
        let above = self.level - self.size();
        if above > ROUNDING_TOKENS {
            return Err(Duration::from_secs_f64(above / self.drain));
        }
        self.level += estimate as f64;
        Ok(())
    }

    /// Corrects the estimate to what an admitted request really used, from `at` (its end) on.
    pub fn settle(&mut self, at: Duration, estimate: u64, used: u64) {
        self.pending.push(Reverse((at, used.cast_signed() - estimate.cast_signed())));
    }

    /// Returns the utilisation: 1.0 is 100 %; a burst can exceed it.
    pub fn utilization(&mut self, now: Duration) -> f64 {
        self.advance(now);
        self.level / self.size()
    }

    /// Changes the drain rate; the level stays.
    pub fn set_rate(&mut self, now: Duration, tokens_per_minute: u64) {
        self.advance(now);
        self.drain = tokens_per_minute as f64 / 60.0;
    }

    /// Changes the foreign traffic. It is refused above 100 % like any request.
    pub fn set_foreign_traffic(&mut self, now: Duration, others: Option<ForeignTraffic>) {
        self.advance(now);
        self.foreign_traffic = others;
    }

    fn size(&self) -> f64 {
        self.drain * self.span.as_secs_f64()
    }

    fn advance(&mut self, now: Duration) {
        while let Some(Reverse((due, correction))) = self.pending.peek().copied()
            && due <= now
        {
            self.pending.pop();
            self.leak(due);
            self.level = (self.level + correction as f64).max(0.0);
        }
        self.leak(now);
    }

    fn leak(&mut self, now: Duration) {
        // In small steps while there is foreign traffic, or its bursts would be averaged out.
        while self.foreign_traffic.is_some()
            && now.saturating_sub(self.updated_at) > self.span / STEPS
        {
            self.leak_at_once(self.updated_at + self.span / STEPS);
        }
        self.leak_at_once(now);
    }

    fn leak_at_once(&mut self, now: Duration) {
        // Threads may arrive in another order than they read the clock.
        let Some(span) = now.checked_sub(self.updated_at) else { return };
        let level = self.level - self.drain * span.as_secs_f64();
        let room = (self.size() - level).max(0.0);
        let others =
            self.foreign_traffic.map_or(0, |others| others.tokens_between(self.updated_at, now));
        self.level = (level + (others as f64).min(room)).max(0.0);
        self.updated_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::super::duty_cycle::DutyCycle;
    use super::*;

    const START: Duration = Duration::ZERO;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// 100 tokens drain in a second, and 1,000 are 100 %.
    fn bucket() -> LeakyBucket {
        LeakyBucket::new(START, 6_000, Duration::from_secs(10))
    }

    #[test]
    fn it_takes_one_burst_above_the_brim_and_says_when_it_is_below_again() {
        let mut bucket = bucket();
        assert_eq!(bucket.admit(START, 1_000), Ok(()));
        assert_eq!(bucket.admit(START, 500), Ok(()), "100 % is not above 100 %");
        assert_eq!(bucket.utilization(START), 1.5);
        assert_eq!(bucket.admit(START, 1), Err(Duration::from_secs(5)));
        assert_eq!(bucket.admit(at(4_000), 1), Err(Duration::from_secs(1)));
        assert_eq!(bucket.admit(at(5_000), 1), Ok(()));
    }

    #[test]
    fn an_estimate_is_corrected_when_the_request_is_done_and_not_before() {
        let mut bucket = bucket();
        bucket.admit(START, 900).unwrap();
        bucket.settle(at(2_000), 900, 300);
        assert!((bucket.utilization(at(1_999)) - 0.7).abs() < 0.001);
        assert!((bucket.utilization(at(2_000)) - 0.1).abs() < 0.001);
        bucket.settle(at(3_000), 100, 400);
        assert!((bucket.utilization(at(3_000)) - 0.3).abs() < 0.001, "used more than estimated");
    }

    #[test]
    fn it_is_never_less_than_empty() {
        let mut bucket = bucket();
        bucket.admit(START, 900).unwrap();
        bucket.settle(at(60_000), 900, 0);
        assert_eq!(bucket.utilization(at(90_000)), 0.0);
    }

    #[test]
    fn over_time_no_more_than_the_rate_gets_through() {
        let mut bucket = bucket();
        let asked = (0..600_000).step_by(10).map(at);
        let admitted = asked.filter(|now| bucket.admit(*now, 50).is_ok()).count() as u64;
        let tokens = 50 * admitted;
        assert!((60_000..=61_100).contains(&tokens), "{tokens} in ten minutes");
    }

    #[test]
    fn others_fill_it_to_the_brim_and_no_further() {
        let mut bucket = bucket();
        bucket.set_foreign_traffic(
            START,
            Some(ForeignTraffic { tpm: 12_000, bursts: DutyCycle::ALWAYS }),
        );
        assert!((bucket.utilization(at(5_000)) - 0.5).abs() < 0.001, "twice what drains");
        assert!((bucket.utilization(at(60_000)) - 1.0).abs() < 0.001);
        bucket.set_foreign_traffic(at(60_000), None);
        assert_eq!(bucket.utilization(at(70_000)), 0.0);
    }

    #[test]
    fn a_burst_of_others_shows_however_long_nobody_looked() {
        let mut bucket = bucket();
        let bursts = DutyCycle { on: Duration::from_secs(5), period: Duration::from_secs(60) };
        bucket.set_foreign_traffic(START, Some(ForeignTraffic { tpm: 12_000, bursts }));
        let utilization = bucket.utilization(at(10 * 60_000 + 5_000));
        assert!((utilization - 0.5).abs() < 0.02, "{utilization}");
    }

    #[test]
    fn a_new_rate_keeps_what_is_in_it() {
        let mut bucket = bucket();
        bucket.admit(START, 1_000).unwrap();
        bucket.set_rate(START, 3_000);
        assert_eq!(bucket.utilization(START), 2.0);
        assert_eq!(bucket.admit(START, 1), Err(Duration::from_secs(10)));
    }
}
