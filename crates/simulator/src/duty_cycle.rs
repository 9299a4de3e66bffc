//! Duty cycles (on for a part of each period) and the other callers' traffic built on them.
//!
//! Pure functions of the time since the simulator started, so that a run can be repeated.
//! Neighbours: `quota` and `bucket` book the foreign tokens, `capacity` gates the flex tier.

use std::fmt;
use std::time::Duration;

const MINUTE_NS: u128 = 60_000_000_000;

/// Duty cycle: on for the first part of every period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DutyCycle {
    pub on: Duration,
    /// At least as long as `on`; the first one begins when the simulator starts.
    pub period: Duration,
}

impl DutyCycle {
    pub const ALWAYS: Self = Self { on: Duration::from_secs(1), period: Duration::from_secs(1) };

    /// Returns true if it is on at some time in each period; anything else is invalid.
    pub fn is_sound(&self) -> bool {
        !self.on.is_zero() && self.on <= self.period
    }

    pub fn is_on(&self, now: Duration) -> bool {
        now.as_nanos() % self.period.as_nanos() < self.on.as_nanos()
    }

    /// Returns the nanoseconds it was on from the start until `now`.
    fn on_until(&self, now: Duration) -> u128 {
        let (now, on, period) = (now.as_nanos(), self.on.as_nanos(), self.period.as_nanos());
        now / period * on + (now % period).min(on)
    }
}

impl fmt::Display for DutyCycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALWAYS {
            return f.write_str("on");
        }
        write!(f, "{}ms/{}ms", self.on.as_millis(), self.period.as_millis())
    }
}

/// Traffic of other callers who book tokens on the same deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignTraffic {
    /// Tokens a minute during a burst.
    pub tpm: u64,
    /// Duty cycle of the bursts.
    pub bursts: DutyCycle,
}

impl ForeignTraffic {
    /// Returns the tokens they request between two moments.
    pub fn tokens_between(&self, from: Duration, to: Duration) -> u64 {
        let until = |now| self.bursts.on_until(now) * u128::from(self.tpm) / MINUTE_NS;
        until(to).saturating_sub(until(from)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duty(on: u64, period: u64) -> DutyCycle {
        DutyCycle { on: Duration::from_secs(on), period: Duration::from_secs(period) }
    }

    #[test]
    fn it_is_on_first_and_then_off_in_each_period() {
        let seconds: Vec<_> =
            (0..12).filter(|s| duty(2, 5).is_on(Duration::from_secs(*s))).collect();
        assert_eq!(seconds, [0, 1, 5, 6, 10, 11]);
        assert!(DutyCycle::ALWAYS.is_on(Duration::from_millis(1_999)));
    }

    #[test]
    fn a_duty_that_could_not_be_is_unsound() {
        assert!(duty(1, 1).is_sound());
        assert!(!duty(0, 1).is_sound());
        assert!(!duty(2, 1).is_sound());
    }

    #[test]
    fn others_come_in_bursts_and_no_token_is_lost_between_looks() {
        let others = ForeignTraffic { tpm: 6_000, bursts: duty(10, 30) };
        let at = Duration::from_secs;
        assert_eq!(others.tokens_between(at(0), at(60)), 2_000, "20 s at 100 a second");
        assert_eq!(others.tokens_between(at(10), at(30)), 0);
        let steps = (0..60_000).map(|ms| {
            others.tokens_between(Duration::from_millis(ms), Duration::from_millis(ms + 1))
        });
        assert_eq!(steps.sum::<u64>(), 2_000);
    }
}
