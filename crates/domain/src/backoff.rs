//! Exponential backoff: the one schedule of growing waits in the program.
//!
//! The only file that knows the crate `backoff`, and it takes the growing schedule alone: the
//! crate's own jitter is centred and may pass the maximum, and its default gives up by wall clock.
//! Randomness is an argument, so that a decision about a wait stays pure.

use std::time::Duration;

use ::backoff::ExponentialBackoffBuilder;
use ::backoff::backoff::Backoff as _;

/// Steps after which no schedule of the program grows any more.
const MAX_STEPS: u32 = 32;

/// Schedule of waits between attempts, each longer by a factor than the one before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    /// Longest wait after the first failure.
    pub first: Duration,
    /// Growth from one failure to the next; at least 1.
    pub factor: f64,
    /// Longest wait of all.
    pub max: Duration,
}

impl Backoff {
    /// Schedule after a transient error, where a part has no reason for one of its own.
    pub const DEFAULT: Self =
        Self { first: Duration::from_millis(500), factor: 2.0, max: Duration::from_secs(60) };

    /// Returns the longest wait after so many failures in a row.
    pub fn span(&self, failures: u32) -> Duration {
        let mut schedule = ExponentialBackoffBuilder::new()
            .with_initial_interval(self.first)
            .with_multiplier(self.factor)
            .with_max_interval(self.max)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        let spans = (0..failures.clamp(1, MAX_STEPS)).map_while(|_| schedule.next_backoff());
        spans.last().map_or(self.max, |span| span.min(self.max))
    }

    /// Returns the wait after so many failures in a row: the part `random` (in 0..1) of the span.
    /// With a uniform draw that is full jitter, which keeps many callers from returning together.
    pub fn delay(&self, failures: u32, random: f64) -> Duration {
        self.span(failures).mul_f64(random.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_grows_by_the_factor_up_to_its_bound_and_the_whole_of_it_is_drawn_from() {
        let ms = Duration::from_millis;
        let spans = [0, 1, 2, 3, 8, 100].map(|failures| Backoff::DEFAULT.span(failures));
        assert_eq!(
            spans,
            [ms(500), ms(500), ms(1_000), ms(2_000), Backoff::DEFAULT.max, Backoff::DEFAULT.max]
        );
        let fourfold = Backoff { first: ms(1_000), factor: 4.0, max: ms(3_600_000) };
        let seconds = [1, 2, 3, 6, 7, 90].map(|failures| fourfold.delay(failures, 1.0).as_secs());
        assert_eq!(seconds, [1, 4, 16, 1_024, 3_600, 3_600]);
        let draws = [0.0, 0.5, 1.0, 7.0].map(|random| Backoff::DEFAULT.delay(2, random));
        assert_eq!(draws, [ms(0), ms(500), ms(1_000), ms(1_000)]);
    }
}
