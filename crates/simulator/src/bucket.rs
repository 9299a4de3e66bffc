//! The accounting of a provisioned deployment (PTU): a bucket that leaks.
//!
//! Pure, as `quota` is: time comes in as the span since the simulator started. The rules are the
//! published ones of provisioned throughput: above 100 % utilisation a request is refused with the
//! time until it is below; otherwise its estimate (prompt less what is cached, plus the most output
//! it may have) is added, and corrected when the request is done; the bucket drains all the time.
//! What is not published is its size: here 100 % is what drains in a span that the maker chooses.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::duty::Others;

/// Less than this above the brim is rounding, in tokens.
const HAIR: f64 = 1e-6;

/// In how many steps a span is taken while others fill the bucket.
const STEPS: u32 = 64;

/// The utilisation of one deployment, counted in tokens.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens that drain in a second.
    drain: f64,
    span: Duration,
    level: f64,
    /// When the level was as noted.
    at: Duration,
    /// Corrections of requests that are still being answered, soonest first.
    pending: BinaryHeap<Reverse<(Duration, i64)>>,
    others: Option<Others>,
}

impl Bucket {
    /// An empty bucket from `now` on. `tokens_per_minute` drain; what drains in `span` is 100 %.
    /// Neither may be zero.
    pub fn new(now: Duration, tokens_per_minute: u64, span: Duration) -> Self {
        let drain = tokens_per_minute as f64 / 60.0;
        Self { drain, span, level: 0.0, at: now, pending: BinaryHeap::new(), others: None }
    }

    /// Judges one request and adds its estimate. An error says how long it takes to come down to
    /// 100 %.
    pub fn admit(&mut self, now: Duration, estimate: u64) -> Result<(), Duration> {
        self.roll(now);
        let above = self.level - self.size();
        if above > HAIR {
            return Err(Duration::from_secs_f64(above / self.drain));
        }
        self.level += estimate as f64;
        Ok(())
    }

    /// Says what an admitted request really used, which counts from `at` on: when it is done.
    pub fn settle(&mut self, at: Duration, estimate: u64, used: u64) {
        self.pending.push(Reverse((at, used.cast_signed() - estimate.cast_signed())));
    }

    /// 1.0 is 100 %; a burst can be above.
    pub fn utilization(&mut self, now: Duration) -> f64 {
        self.roll(now);
        self.level / self.size()
    }

    /// Changes how fast it drains; what is in it stays.
    pub fn set_rate(&mut self, now: Duration, tokens_per_minute: u64) {
        self.roll(now);
        self.drain = tokens_per_minute as f64 / 60.0;
    }

    /// Changes what others add. They are refused above 100 % like everybody.
    pub fn set_others(&mut self, now: Duration, others: Option<Others>) {
        self.roll(now);
        self.others = others;
    }

    fn size(&self) -> f64 {
        self.drain * self.span.as_secs_f64()
    }

    fn roll(&mut self, now: Duration) {
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
        // In small steps where others come and go meanwhile, or their bursts would be evened out.
        while self.others.is_some() && now.saturating_sub(self.at) > self.span / STEPS {
            self.leak_at_once(self.at + self.span / STEPS);
        }
        self.leak_at_once(now);
    }

    fn leak_at_once(&mut self, now: Duration) {
        // Callers on several threads may come in another order than they looked at the clock.
        let Some(span) = now.checked_sub(self.at) else { return };
        let level = self.level - self.drain * span.as_secs_f64();
        let room = (self.size() - level).max(0.0);
        let others = self.others.map_or(0, |others| others.between(self.at, now));
        self.level = (level + (others as f64).min(room)).max(0.0);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::super::duty::Duty;
    use super::*;

    const START: Duration = Duration::ZERO;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// 100 tokens drain in a second, and 1,000 are 100 %.
    fn bucket() -> Bucket {
        Bucket::new(START, 6_000, Duration::from_secs(10))
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
        bucket.set_others(START, Some(Others { tpm: 12_000, bursts: Duty::ALWAYS }));
        assert!((bucket.utilization(at(5_000)) - 0.5).abs() < 0.001, "twice what drains");
        assert!((bucket.utilization(at(60_000)) - 1.0).abs() < 0.001);
        bucket.set_others(at(60_000), None);
        assert_eq!(bucket.utilization(at(70_000)), 0.0);
    }

    #[test]
    fn a_burst_of_others_shows_however_long_nobody_looked() {
        let mut bucket = bucket();
        let bursts = Duty { on: Duration::from_secs(5), period: Duration::from_secs(60) };
        bucket.set_others(START, Some(Others { tpm: 12_000, bursts }));
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
