//! Circuit breaker of one deployment: keeps calls off while it fails and probes with single calls.
//!
//! It opens on a run of faults, on a high share of faults over some seconds, and at once when no
//! connection can be made. Random faults, a few in a hundred, never open it.

use std::time::Duration;

use tokio::time::Instant;

use domain::backoff::Backoff;

/// Consecutive faults that open it. At 5 % random faults that is one run in 60 million calls.
const OPENING_RUN: u32 = 6;

/// Share of faults that opens it, among at least this many calls of the last seconds.
const OPENING_SHARE: f64 = 0.5;
const LEAST_CALLS: u32 = 20;
const SPAN: Duration = Duration::from_secs(5);

/// Pauses before the next probe, without jitter: the breaker is the only one that probes.
const PAUSES: Backoff =
    Backoff { first: Duration::from_millis(250), factor: 2.0, max: Duration::from_secs(30) };

/// Calls that the breaker lets through at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerDecision {
    All,
    /// One call, as a probe.
    Probe,
    /// Nothing before this time.
    Until(Instant),
    /// Nothing until the probe has ended.
    AfterProbe,
}

/// One deployment's breaker.
#[derive(Default)]
pub struct Breaker {
    run: u32,
    /// Start of the current span, and the counts of good and bad ends in it and in the one before.
    spans: Option<(Instant, [SpanCounts; 2])>,
    open: Option<OpenBreaker>,
}

#[derive(Clone, Copy, Default)]
struct SpanCounts {
    good: u32,
    bad: u32,
}

struct OpenBreaker {
    since: Instant,
    until: Instant,
    probes: u32,
    probing: bool,
    /// No connection could be made.
    unreachable: bool,
    why: String,
}

impl Breaker {
    pub fn decision(&self, now: Instant) -> BreakerDecision {
        match &self.open {
            None => BreakerDecision::All,
            Some(open) if open.probing => BreakerDecision::AfterProbe,
            Some(open) if now < open.until => BreakerDecision::Until(open.until),
            Some(_) => BreakerDecision::Probe,
        }
    }

    /// Records that a call begins; returns whether it is the probe.
    pub fn begin(&mut self) -> bool {
        if let Some(open) = &mut self.open {
            open.probing = true;
        }
        self.open.is_some()
    }

    /// Records an end that says nothing about faults: the next probe may go.
    pub fn end_unclear(&mut self, probe: bool) {
        if let Some(open) = self.open.as_mut().filter(|_| probe) {
            open.probing = false;
        }
    }

    /// Records a success: the breaker closes.
    pub fn succeed(&mut self, now: Instant) {
        self.count(now).good += 1;
        self.run = 0;
        self.open = None;
    }

    /// Records a fault of the deployment; returns whether it opened the breaker.
    pub fn fail(&mut self, probe: bool, why: &str, now: Instant) -> bool {
        self.count(now).bad += 1;
        self.run += 1;
        if self.open.is_some() {
            // Calls in flight together fail together: only the probe counts.
            self.stay_open(probe, now);
            return false;
        }
        let (good, bad) = self.recent_counts(now);
        let too_many =
            good + bad >= LEAST_CALLS && f64::from(bad) >= OPENING_SHARE * f64::from(good + bad);
        let opens = self.run >= OPENING_RUN || too_many;
        if opens {
            self.open(false, why, now);
        }
        opens
    }

    /// Records a refusal that puts the deployment in doubt, which opens it at once; returns whether
    /// it did.
    pub fn doubt(&mut self, probe: bool, why: &str, now: Instant) -> bool {
        if self.open.is_some() {
            self.stay_open(probe, now);
            return false;
        }
        self.open(false, why, now);
        true
    }

    /// Records that no connection could be made, which opens it at once; returns whether it did.
    pub fn fail_unreachable(&mut self, probe: bool, why: &str, now: Instant) -> bool {
        match &mut self.open {
            Some(open) => {
                open.unreachable = true;
                self.stay_open(probe, now);
                false
            }
            None => {
                self.open(true, why, now);
                true
            }
        }
    }

    /// Returns since when no connection can be made, and why.
    pub fn outage(&self) -> Option<(Instant, &str)> {
        let open = self.open.as_ref().filter(|open| open.unreachable)?;
        Some((open.since, open.why.as_str()))
    }

    /// Returns the fault that opened it, while it is open.
    pub fn why(&self) -> Option<&str> {
        self.open.as_ref().map(|open| open.why.as_str())
    }

    fn open(&mut self, unreachable: bool, why: &str, now: Instant) {
        let until = now + PAUSES.first;
        let why = why.to_owned();
        self.open =
            Some(OpenBreaker { since: now, until, probes: 0, probing: false, unreachable, why });
    }

    fn stay_open(&mut self, probe: bool, now: Instant) {
        if let Some(open) = self.open.as_mut().filter(|_| probe) {
            open.probing = false;
            open.probes += 1;
            open.until = now + PAUSES.span(open.probes + 1);
        }
    }

    fn count(&mut self, now: Instant) -> &mut SpanCounts {
        let (began, spans) = self.spans.get_or_insert((now, [SpanCounts::default(); 2]));
        let age = now.saturating_duration_since(*began);
        if age >= SPAN {
            spans[1] = if age < 2 * SPAN { spans[0] } else { SpanCounts::default() };
            spans[0] = SpanCounts::default();
            *began = now;
        }
        &mut spans[0]
    }

    fn recent_counts(&mut self, now: Instant) -> (u32, u32) {
        self.count(now);
        let spans = self.spans.map(|(_, spans)| spans).unwrap_or_default();
        (spans[0].good + spans[1].good, spans[0].bad + spans[1].bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn five_faults_in_a_hundred_never_open_it() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        for call in 0..100_000_u64 {
            now += Duration::from_millis(10);
            // A cheap scatter: as irregular as it needs to be.
            if call.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 < (1 << 32) / 20 {
                assert!(!breaker.fail(false, "503", now));
            } else {
                breaker.succeed(now);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_opens_it_and_single_calls_after_growing_pauses_close_it() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        let opened = (0..OPENING_RUN).filter(|_| breaker.fail(false, "503", now)).count();
        assert_eq!(opened, 1);
        for pause_ms in [250, 500, 1_000] {
            let until = now + Duration::from_millis(pause_ms);
            assert_eq!(breaker.decision(now), BreakerDecision::Until(until));
            now = until;
            assert_eq!(breaker.decision(now), BreakerDecision::Probe);
            assert!(breaker.begin());
            assert_eq!(breaker.decision(now), BreakerDecision::AfterProbe);
            breaker.fail(false, "an older call", now);
            assert_eq!(breaker.decision(now), BreakerDecision::AfterProbe);
            breaker.fail(true, "503", now);
        }
        breaker.succeed(now);
        assert_eq!(breaker.decision(now), BreakerDecision::All);
        assert!(!breaker.begin());
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_calls_failing_opens_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let mut opened = false;
        for _ in 0..LEAST_CALLS {
            breaker.succeed(now);
            opened |= breaker.fail(false, "500", now);
        }
        assert!(opened);
    }
}
