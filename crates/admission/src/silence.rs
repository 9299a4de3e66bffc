//! Silence of a deployment: calls are in flight, and for much longer than its calls take none has
//! ended.
//!
//! Pure. A deployment that hangs refuses nothing and breaks nothing; time alone tells, long before the
//! time-out of a call. Calls differ in length, so it takes several that are late, and not one end of
//! any other meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Multiple of the slowest call's time after which a call counts as late, and the shortest such time.
const LATE_FACTOR: u32 = 3;
const SHORTEST_LATE: Duration = Duration::from_secs(10);

/// Late calls that make a silence.
const LATE_CALLS: usize = 3;

/// Part of the slowest call's time that is kept with each answer: it is forgotten over some hundred.
const KEPT: f64 = 0.99;

/// Watches one deployment's calls.
#[derive(Default)]
pub struct SilenceWatch {
    /// Calls in flight by the time of their start.
    calls: BTreeMap<Instant, usize>,
    /// Time of the slowest of the last answered calls.
    slowest: Option<Duration>,
    last_end: Option<Instant>,
}

impl SilenceWatch {
    /// Records that a call begins.
    pub fn begin(&mut self, at: Instant) {
        *self.calls.entry(at).or_default() += 1;
    }

    /// Records that a call ended. `by_itself`: the deployment ended it, whatever it brought.
    pub fn end(&mut self, began: Instant, by_itself: bool, now: Instant) {
        if by_itself {
            self.last_end = Some(now);
        }
        if let Some(calls) = self.calls.get_mut(&began) {
            *calls -= 1;
            if *calls == 0 {
                self.calls.remove(&began);
            }
        }
    }

    /// Records the time of an answered call.
    pub fn answered(&mut self, latency: Duration) {
        let kept = self.slowest.map_or(Duration::ZERO, |slowest| slowest.mul_f64(KEPT));
        self.slowest = Some(kept.max(latency));
    }

    /// Returns the time of the slowest of the last answered calls.
    pub fn slowest(&self) -> Option<Duration> {
        self.slowest
    }

    /// Returns the time after which its calls count as late, if it is silent. `others`: the slowest
    /// time of deployments that serve the same, for one that never answered; `is_probe`: its calls
    /// are probes, of which one is enough.
    pub fn silence(
        &self,
        others: Option<Duration>,
        is_probe: bool,
        now: Instant,
    ) -> Option<Duration> {
        let late = (self.slowest.or(others)? * LATE_FACTOR).max(SHORTEST_LATE);
        let latest = now.checked_sub(late)?;
        if !is_probe && self.last_end.is_some_and(|end| end > latest) {
            return None;
        }
        let calls = self.calls.range(..=latest).map(|(_, calls)| calls).sum::<usize>();
        (calls >= if is_probe { 1 } else { LATE_CALLS }).then_some(late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn several_late_calls_and_no_other_end_make_a_silence() {
        let start = Instant::now();
        let mut watch = SilenceWatch::default();
        watch.answered(5 * SECOND);
        (0..3).for_each(|n| watch.begin(start + n * SECOND));
        assert_eq!(watch.silence(None, false, start + 16 * SECOND), None, "two are late");
        assert_eq!(watch.silence(None, false, start + 17 * SECOND), Some(15 * SECOND));
        watch.begin(start);
        watch.end(start, true, start + 10 * SECOND);
        assert_eq!(watch.silence(None, false, start + 20 * SECOND), None, "another one ended");
        assert_eq!(watch.silence(None, false, start + 25 * SECOND), Some(15 * SECOND));
        assert_eq!(watch.silence(None, true, start + 20 * SECOND), Some(15 * SECOND));
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answered_is_held_to_the_others_time_and_to_none_without() {
        let start = Instant::now();
        let mut watch = SilenceWatch::default();
        (0..3).for_each(|_| watch.begin(start));
        let later = start + 100 * SECOND;
        assert_eq!(watch.silence(None, false, later), None, "a first answer may take long");
        assert_eq!(watch.silence(Some(SECOND), false, later), Some(SHORTEST_LATE));
    }

    #[test]
    fn a_slow_call_is_forgotten_over_some_hundred() {
        let mut watch = SilenceWatch::default();
        watch.answered(100 * SECOND);
        (0..100).for_each(|_| watch.answered(SECOND));
        let slowest = watch.slowest().unwrap();
        assert!((30 * SECOND..40 * SECOND).contains(&slowest), "{slowest:?}");
    }
}
