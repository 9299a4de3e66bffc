//! Demand of one instance: how much of a deployment's quota it could use, published to its
//! siblings.
//!
//! Pure. Use alone says too little, since a share bounds it; the waiting jobs say too much, since
//! calls in flight may be the bound. So the meter measures what the foremost job waits for: an
//! instance that mostly waits for quota wants all of it; any other wants what it used and a little
//! room.

use std::time::Duration;

use tokio::time::Instant;

/// Room to grow above the use.
const HEADROOM: f64 = 1.25;

/// Share of the time spent waiting for quota from which more of it is wanted.
const MOSTLY: f64 = 0.5;

/// Use of one deployment's quota since the demand was last asked for.
#[derive(Debug)]
pub struct DemandMeter {
    since: Instant,
    /// Minutes of the whole quota.
    used: f64,
    waited: Duration,
    /// The foremost job waits for quota from the first time, until the second at the longest.
    waiting: Option<(Instant, Instant)>,
    /// Mean use, as a fraction of the whole quota, over the last few questions.
    average: f64,
}

impl DemandMeter {
    pub fn new(now: Instant) -> Self {
        Self { since: now, used: 0.0, waited: Duration::ZERO, waiting: None, average: 0.0 }
    }

    /// Records a booking, in minutes of the whole quota.
    pub fn add_usage(&mut self, minutes: f64) {
        self.used += minutes;
    }

    /// Records that a job waits for quota until then. If nobody asks again by then, the wait ends.
    pub fn start_waiting(&mut self, now: Instant, until: Instant) {
        self.stop_waiting(now);
        self.waiting = Some((now, until));
    }

    /// Records that the job went, or waits for something else.
    pub fn stop_waiting(&mut self, now: Instant) {
        if let Some((from, until)) = self.waiting.take() {
            self.waited += now.min(until).saturating_duration_since(from);
        }
    }

    /// Returns what could have been used since the last call, as a fraction of the quota.
    pub fn demand(&mut self, now: Instant) -> f64 {
        if let Some((_, until)) = self.waiting {
            self.start_waiting(now, until);
        }
        let seconds = now.saturating_duration_since(self.since).as_secs_f64().max(1e-3);
        self.average = (self.average + self.used * 60.0 / seconds) / 2.0;
        let waited = std::mem::take(&mut self.waited).as_secs_f64() / seconds;
        (self.since, self.used) = (now, 0.0);
        if waited >= MOSTLY { 1.0 } else { (self.average * HEADROOM).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_quota_wants_all_and_who_stops_asking_soon_wants_nothing() {
        let start = Instant::now();
        let mut meter = DemandMeter::new(start);
        meter.start_waiting(start, start + Duration::from_secs(60));
        assert_eq!(meter.demand(start + BEAT), 1.0, "a large job saves up");
        assert_eq!(meter.demand(start + 2 * BEAT), 1.0, "and still does");
        meter.stop_waiting(start + 2 * BEAT);
        assert_eq!(meter.demand(start + 3 * BEAT), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_calls_to_end_wants_what_it_uses_and_a_little_more() {
        let start = Instant::now();
        let mut meter = DemandMeter::new(start);
        let mut demand = 0.0;
        for beat in 1..10 {
            let now = start + beat * BEAT;
            meter.add_usage(0.2 * 2.0 / 60.0);
            meter.start_waiting(now - BEAT / 10, now - BEAT / 20);
            demand = meter.demand(now);
        }
        assert!((0.24..=0.25).contains(&demand), "{demand}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_went_elsewhere_waits_no_longer_than_it_was_told_to() {
        let start = Instant::now();
        let mut meter = DemandMeter::new(start);
        meter.start_waiting(start, start + Duration::from_millis(300));
        assert_eq!(meter.demand(start + BEAT), 0.0);
    }
}
