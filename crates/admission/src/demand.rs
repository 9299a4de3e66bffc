//! What an instance could use of a deployment's quota: the demand that its siblings hear of.
//!
//! Pure. What was used tells too little, since a share bounds it, and what waits tells too much,
//! since calls in flight may be the bound. So the meter asks what the foremost job waited for: who
//! mostly waits for quota could use more of it, and wants as much as anybody; who does not wants
//! what it used and a little room.

use std::time::Duration;

use tokio::time::Instant;

/// Room to grow, over what was used.
const HEADROOM: f64 = 1.25;

/// The part of the time waiting for quota from which more of it is wanted.
const MOSTLY: f64 = 0.5;

/// The time since the demand was last asked for, as far as a deployment's quota is concerned.
#[derive(Debug)]
pub struct Meter {
    since: Instant,
    /// In minutes of the whole quota.
    used: f64,
    waited: Duration,
    /// The foremost job waits for quota from, and at the longest until.
    waiting: Option<(Instant, Instant)>,
    /// Of the whole quota, over the last few times.
    usual: f64,
}

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self { since: now, used: 0.0, waited: Duration::ZERO, waiting: None, usual: 0.0 }
    }

    /// So many minutes of the whole quota were booked.
    pub fn used(&mut self, minutes: f64) {
        self.used += minutes;
    }

    /// A job has to wait for quota until then. If nobody asks again until then, none does any more.
    pub fn waits(&mut self, now: Instant, until: Instant) {
        self.waits_no_more(now);
        self.waiting = Some((now, until));
    }

    /// A job went, or waits for something else.
    pub fn waits_no_more(&mut self, now: Instant) {
        if let Some((from, until)) = self.waiting.take() {
            self.waited += now.min(until).saturating_duration_since(from);
        }
    }

    /// What could have been used since this was last asked, as a fraction of the quota.
    pub fn demand(&mut self, now: Instant) -> f64 {
        if let Some((_, until)) = self.waiting {
            self.waits(now, until);
        }
        let seconds = now.saturating_duration_since(self.since).as_secs_f64().max(1e-3);
        self.usual = (self.usual + self.used * 60.0 / seconds) / 2.0;
        let waited = std::mem::take(&mut self.waited).as_secs_f64() / seconds;
        (self.since, self.used) = (now, 0.0);
        if waited >= MOSTLY { 1.0 } else { (self.usual * HEADROOM).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_quota_wants_all_and_who_stops_asking_soon_wants_nothing() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.waits(start, start + Duration::from_secs(60));
        assert_eq!(meter.demand(start + BEAT), 1.0, "a large job saves up");
        assert_eq!(meter.demand(start + 2 * BEAT), 1.0, "and still does");
        meter.waits_no_more(start + 2 * BEAT);
        assert_eq!(meter.demand(start + 3 * BEAT), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_calls_to_end_wants_what_it_uses_and_a_little_more() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let mut demand = 0.0;
        for beat in 1..10 {
            let now = start + beat * BEAT;
            meter.used(0.2 * 2.0 / 60.0);
            meter.waits(now - BEAT / 10, now - BEAT / 20);
            demand = meter.demand(now);
        }
        assert!((0.24..=0.25).contains(&demand), "{demand}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_went_elsewhere_waits_no_longer_than_it_was_told_to() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.waits(start, start + Duration::from_millis(300));
        assert_eq!(meter.demand(start + BEAT), 0.0);
    }
}
