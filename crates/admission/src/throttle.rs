//! Pauses after 429s: what the service asks for, within bounds, growing while everything is refused.
//!
//! `Retry-After` can be 0, a fraction, in the past by a wrong clock, absent, or a day for a refusal
//! that is over in a second (integration_openai#359, gpt-researcher#936). So a refusal is answered
//! by a pause that the header can make longer and not shorter, and a day is not believed at once.
//!
//! Refusals come in waves: the calls that were on their way together. Of a wave that was let through
//! in part nothing is concluded: that is how a quota works. Waves that were refused to the last call
//! make the next pause twice as long.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest pause where the service names none.
const USUAL_PAUSE: Duration = Duration::from_secs(1);

/// Shortest pause where it names one: provisioned throughput names milliseconds, and means it.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

/// First pause after a wave that was refused to the last call; doubles up to the longest.
const FIRST_GROWN: Duration = Duration::from_millis(500);
const LONGEST_GROWN: Duration = Duration::from_secs(60);

/// Longest pause on one refusal: quotas are judged by the minute, and a wrong header must not stop
/// a whole night. A longer one that is asked for is probed, after pauses that double up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Time between calls while everything is refused: 429s come within it.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Waves of refused calls at one deployment.
#[derive(Debug, Default)]
pub struct ThrottleWaves {
    /// First refusal of the last wave.
    began: Option<Instant>,
    /// Calls begun since then.
    begun_since: u32,
    last_call: Option<Instant>,
    last: ThrottleWave,
    /// Waves in a row that were refused to the last call.
    run: u32,
}

/// Calls that were begun between the first refusals of two waves.
#[derive(Debug, Default, Clone, Copy)]
struct ThrottleWave {
    from: Option<Instant>,
    begun: u32,
    refused: u32,
    /// It was refused to the last call, and counts in the run.
    is_counted: bool,
}

impl ThrottleWaves {
    /// Records that a call begins.
    pub fn begin_call(&mut self, now: Instant) {
        self.begun_since = self.begun_since.saturating_add(1);
        self.last_call = Some(now);
    }

    /// Records that a call was answered which began then.
    pub fn answered(&mut self, begun_at: Instant) {
        if self.began.is_some_and(|began| begun_at >= began) {
            self.run = 0;
        }
    }

    /// Records a 429 to a call that began then; returns the pause that follows it.
    pub fn refused(
        &mut self,
        begun_at: Instant,
        asked: Option<Duration>,
        now: Instant,
    ) -> Duration {
        if self.began.is_none_or(|began| begun_at >= began) {
            if !self.last.is_counted {
                self.run = 0;
            }
            let begun = std::mem::take(&mut self.begun_since);
            self.last = ThrottleWave { from: self.began, begun, refused: 1, is_counted: false };
            self.began = Some(now);
        } else if self.last.from.is_none_or(|from| begun_at >= from) {
            self.last.refused = self.last.refused.saturating_add(1);
        }
        // A few that hang don't make it one that was let through in part.
        let ThrottleWave { begun, refused, .. } = self.last;
        if !self.last.is_counted && u64::from(refused) * 8 >= u64::from(begun) * 7 {
            self.last.is_counted = true;
            self.run = self.run.saturating_add(1);
        }
        self.pause(asked)
    }

    /// Returns when the next call may begin, while everything is refused: calls go one by one then.
    pub fn next_call_at(&self) -> Option<Instant> {
        let last = self.last_call.filter(|_| self.run >= 2 && self.begun_since > 0)?;
        Some(last + PROBE_INTERVAL)
    }

    fn pause(&self, asked: Option<Duration>) -> Duration {
        let doubled = |first: Duration| first * 2_u32.pow(self.run.saturating_sub(1).min(16));
        let grown = match self.run {
            0 => Duration::ZERO,
            _ => doubled(FIRST_GROWN).min(LONGEST_GROWN),
        };
        match asked.filter(|asked| !asked.is_zero()) {
            Some(asked) if asked > LONGEST_PAUSE => doubled(USUAL_PAUSE).min(LONGEST_PAUSE),
            Some(asked) => asked.max(SHORTEST_PAUSE).max(grown),
            None => USUAL_PAUSE.max(grown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of a service that refuses everything for so long, with so many calls at a time.
    fn calls_until(asked: Option<Duration>, seconds: u64, at_a_time: u32) -> u32 {
        let mut waves = ThrottleWaves::default();
        let start = Instant::now();
        let (mut now, mut calls) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            now = now.max(waves.next_call_at().unwrap_or(now));
            let begun = now;
            let at_a_time = if waves.run >= 2 { 1 } else { at_a_time };
            (0..at_a_time).for_each(|_| waves.begin_call(begun));
            let mut until = now;
            for call in 0..at_a_time {
                calls += 1;
                now = begun + Duration::from_millis(1 + u64::from(call));
                until = until.max(now + waves.refused(begun, asked, now));
            }
            now = until;
        }
        calls
    }

    #[test]
    fn no_header_makes_it_hammer() {
        for asked in [None, Some(Duration::ZERO), Some(Duration::from_millis(1))] {
            let calls = calls_until(asked, 8, 5);
            assert!((5..=40).contains(&calls), "{asked:?}: {calls} calls in 8 s");
            let calls = calls_until(asked, 8, 1_000);
            assert!(calls < 4_000, "{asked:?}: {calls} calls in 8 s");
            let calls = calls_until(asked, 3_600, 1);
            assert!(calls < 80, "{asked:?}: {calls} calls in an hour");
        }
    }

    #[test]
    fn a_day_is_not_believed_at_once_and_a_minute_is() {
        let pause =
            |asked| ThrottleWaves::default().refused(Instant::now(), Some(asked), Instant::now());
        assert_eq!(pause(Duration::from_secs(86_400)), USUAL_PAUSE);
        assert_eq!(pause(Duration::from_secs(60)), Duration::from_secs(60));
        let calls = calls_until(Some(Duration::from_secs(7_200)), 7_200, 1);
        assert!(calls < 80, "{calls}");
    }

    #[test]
    fn waves_that_are_let_through_in_part_never_grow() {
        let mut waves = ThrottleWaves::default();
        let asked = Some(Duration::from_millis(50));
        let mut now = Instant::now();
        for _ in 0..1_000 {
            let begun = now;
            (0..10).for_each(|_| waves.begin_call(begun));
            now += Duration::from_millis(1);
            // Long calls: the other nine are under way.
            let pause = waves.refused(begun, asked, now);
            assert_eq!(Some(pause), asked);
            now += pause;
        }
    }

    #[test]
    fn one_answer_to_a_later_call_ends_the_growth() {
        let mut waves = ThrottleWaves::default();
        let mut now = Instant::now();
        for _ in 0..6 {
            waves.begin_call(now);
            now += waves.refused(now, None, now);
        }
        let grown = waves.pause(None);
        assert!(grown > 8 * USUAL_PAUSE, "{grown:?}");
        waves.answered(now - Duration::from_secs(100));
        assert_eq!(waves.pause(None), grown, "that call began before the refusals");
        waves.answered(now);
        assert_eq!(waves.refused(now, None, now), USUAL_PAUSE);
    }
}
