//! What comes and goes: spans that are on for a part of each period, and other callers' traffic.
//!
//! Pure functions of the time since the simulator started, so that a run can be repeated.
//! Neighbours: `quota` and `bucket` book the others' tokens, `capacity` asks for room on flex.

use std::fmt;
use std::time::Duration;

const MINUTE_NS: u128 = 60_000_000_000;

/// On for the first part of every period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Duty {
    pub on: Duration,
    /// At least as long as `on`; the first one begins when the simulator starts.
    pub period: Duration,
}

impl Duty {
    pub const ALWAYS: Self = Self { on: Duration::from_secs(1), period: Duration::from_secs(1) };

    /// Whether it is on at some time in each period; all else is a mistake.
    pub fn is_sound(&self) -> bool {
        !self.on.is_zero() && self.on <= self.period
    }

    pub fn is_on(&self, now: Duration) -> bool {
        now.as_nanos() % self.period.as_nanos() < self.on.as_nanos()
    }

    /// How long it was on from the start until `now`.
    fn on_until(&self, now: Duration) -> u128 {
        let (now, on, period) = (now.as_nanos(), self.on.as_nanos(), self.period.as_nanos());
        now / period * on + (now % period).min(on)
    }
}

impl fmt::Display for Duty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALWAYS {
            return f.write_str("on");
        }
        write!(f, "{}ms/{}ms", self.on.as_millis(), self.period.as_millis())
    }
}

/// Tokens that other callers book on the same deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Others {
    /// Tokens a minute while they are there.
    pub tpm: u64,
    /// When they are there.
    pub bursts: Duty,
}

impl Others {
    /// The tokens they ask for from one moment to another.
    pub fn between(&self, from: Duration, to: Duration) -> u64 {
        let until = |now| self.bursts.on_until(now) * u128::from(self.tpm) / MINUTE_NS;
        until(to).saturating_sub(until(from)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duty(on: u64, period: u64) -> Duty {
        Duty { on: Duration::from_secs(on), period: Duration::from_secs(period) }
    }

    #[test]
    fn it_is_on_first_and_then_off_in_each_period() {
        let seconds: Vec<_> =
            (0..12).filter(|s| duty(2, 5).is_on(Duration::from_secs(*s))).collect();
        assert_eq!(seconds, [0, 1, 5, 6, 10, 11]);
        assert!(Duty::ALWAYS.is_on(Duration::from_millis(1_999)));
    }

    #[test]
    fn a_duty_that_could_not_be_is_unsound() {
        assert!(duty(1, 1).is_sound());
        assert!(!duty(0, 1).is_sound());
        assert!(!duty(2, 1).is_sound());
    }

    #[test]
    fn others_come_in_bursts_and_no_token_is_lost_between_looks() {
        let others = Others { tpm: 6_000, bursts: duty(10, 30) };
        let at = Duration::from_secs;
        assert_eq!(others.between(at(0), at(60)), 2_000, "20 s at 100 a second");
        assert_eq!(others.between(at(10), at(30)), 0);
        let steps = (0..60_000)
            .map(|ms| others.between(Duration::from_millis(ms), Duration::from_millis(ms + 1)));
        assert_eq!(steps.sum::<u64>(), 2_000);
    }
}
