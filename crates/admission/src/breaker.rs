//! Keeps calls off a deployment that fails, and finds out by single calls when it is back.
//!
//! It opens on a run of faults, on a share of them over some seconds, and at once when no connection
//! can be made. Faults at random, a few in a hundred, never open it.

use std::time::Duration;

use tokio::time::Instant;

/// Faults in a row that open it. At 5 % random faults that is one row in 60 million calls.
const RUN: u32 = 6;

/// The share of faults that opens it, among at least so many calls of the last seconds.
const SHARE: f64 = 0.5;
const AMONG: u32 = 20;
const SPAN: Duration = Duration::from_secs(5);

/// First and longest pause before a single call tries again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a breaker lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    All,
    /// One call, to see.
    Probe,
    /// Nothing before then.
    Until(Instant),
    /// Nothing before the probe's end.
    AfterProbe,
}

/// One deployment's breaker.
#[derive(Default)]
pub struct Breaker {
    run: u32,
    /// Good and bad ends in the span that began then, and in the one before.
    spans: Option<(Instant, [Ends; 2])>,
    open: Option<Open>,
}

#[derive(Clone, Copy, Default)]
struct Ends {
    good: u32,
    bad: u32,
}

struct Open {
    since: Instant,
    until: Instant,
    probes: u32,
    probing: bool,
    /// No connection could be made.
    unreachable: bool,
    why: String,
}

impl Breaker {
    pub fn passage(&self, now: Instant) -> Passage {
        match &self.open {
            None => Passage::All,
            Some(open) if open.probing => Passage::AfterProbe,
            Some(open) if now < open.until => Passage::Until(open.until),
            Some(_) => Passage::Probe,
        }
    }

    /// A call begins; says whether it is the probe.
    pub fn begin(&mut self) -> bool {
        if let Some(open) = &mut self.open {
            open.probing = true;
        }
        self.open.is_some()
    }

    /// A call ended and it says nothing about faults: a probe may go again.
    pub fn end_unclear(&mut self, probe: bool) {
        if let Some(open) = self.open.as_mut().filter(|_| probe) {
            open.probing = false;
        }
    }

    /// A call ended well: whatever was wrong is over.
    pub fn succeed(&mut self, now: Instant) {
        self.count(now).good += 1;
        self.run = 0;
        self.open = None;
    }

    /// A call ended in a fault of the deployment's. Says whether that opened it.
    pub fn fail(&mut self, probe: bool, why: &str, now: Instant) -> bool {
        self.count(now).bad += 1;
        self.run += 1;
        if self.open.is_some() {
            // Calls that were under way together fail together: only the probe counts.
            self.stay_open(probe, now);
            return false;
        }
        let (good, bad) = self.recent(now);
        let too_many = good + bad >= AMONG && f64::from(bad) >= SHARE * f64::from(good + bad);
        let opens = self.run >= RUN || too_many;
        if opens {
            self.open(false, why, now);
        }
        opens
    }

    /// No connection could be made: one is enough. Says whether that opened it.
    pub fn unreachable(&mut self, probe: bool, why: &str, now: Instant) -> bool {
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

    /// Since when no connection can be made, and why.
    pub fn outage(&self) -> Option<(Instant, &str)> {
        let open = self.open.as_ref().filter(|open| open.unreachable)?;
        Some((open.since, open.why.as_str()))
    }

    /// Why it is open, if it is.
    pub fn why(&self) -> Option<&str> {
        self.open.as_ref().map(|open| open.why.as_str())
    }

    fn open(&mut self, unreachable: bool, why: &str, now: Instant) {
        let until = now + FIRST_PAUSE;
        let why = why.to_owned();
        self.open = Some(Open { since: now, until, probes: 0, probing: false, unreachable, why });
    }

    fn stay_open(&mut self, probe: bool, now: Instant) {
        if let Some(open) = self.open.as_mut().filter(|_| probe) {
            open.probing = false;
            open.probes += 1;
            let pause = FIRST_PAUSE * 2_u32.saturating_pow(open.probes.min(16));
            open.until = now + pause.min(LONGEST_PAUSE);
        }
    }

    fn count(&mut self, now: Instant) -> &mut Ends {
        let (began, spans) = self.spans.get_or_insert((now, [Ends::default(); 2]));
        let age = now.saturating_duration_since(*began);
        if age >= SPAN {
            spans[1] = if age < 2 * SPAN { spans[0] } else { Ends::default() };
            spans[0] = Ends::default();
            *began = now;
        }
        &mut spans[0]
    }

    fn recent(&mut self, now: Instant) -> (u32, u32) {
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
        let opened = (0..RUN).filter(|_| breaker.fail(false, "503", now)).count();
        assert_eq!(opened, 1);
        for pause_ms in [250, 500, 1_000] {
            let until = now + Duration::from_millis(pause_ms);
            assert_eq!(breaker.passage(now), Passage::Until(until));
            now = until;
            assert_eq!(breaker.passage(now), Passage::Probe);
            assert!(breaker.begin());
            assert_eq!(breaker.passage(now), Passage::AfterProbe);
            breaker.fail(false, "an older call", now);
            assert_eq!(breaker.passage(now), Passage::AfterProbe);
            breaker.fail(true, "503", now);
        }
        breaker.succeed(now);
        assert_eq!(breaker.passage(now), Passage::All);
        assert!(!breaker.begin());
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_calls_failing_opens_it() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let mut opened = false;
        for _ in 0..AMONG {
            breaker.succeed(now);
            opened |= breaker.fail(false, "500", now);
        }
        assert!(opened);
    }
}
