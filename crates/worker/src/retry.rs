//! Retries after transient errors: exponential backoff with full jitter.
//!
//! The only file that knows the crate `backoff`, and it takes the growing schedule alone: the
//! crate's own jitter is centred and may pass the maximum, and its default gives up by wall clock.

use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};
use rand::random;
use tracing::warn;

use store::StoreError;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Longest wait that an error may ask for: doubles with every attempt up to the second. A service
/// that asks for a day is asked earlier (copilot-cli#2760).
const LONGEST_FIRST_WAIT: Duration = Duration::from_secs(15);
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Returns the part of a wait that is kept to after so many attempts.
pub fn bounded(asked: Option<Duration>, attempts: u32) -> Option<Duration> {
    let doublings = attempts.saturating_sub(1).min(8);
    asked.map(|asked| asked.min(LONGEST_FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT))
}

/// Returns the wait before attempt number `attempts + 1`: a random part (`random` is in 0..1) of a
/// span that doubles with every attempt, or the service's `retry_after` if that is longer.
pub fn delay(attempts: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    let mut schedule: ExponentialBackoff = ExponentialBackoffBuilder::new()
        .with_initial_interval(FIRST_DELAY)
        .with_multiplier(2.0)
        .with_max_interval(MAX_DELAY)
        .with_randomization_factor(0.0)
        .with_max_elapsed_time(None)
        .build();
    // The span stops growing long before 16 steps.
    let span = (0..attempts.clamp(1, 16)).filter_map(|_| schedule.next_backoff()).last();
    let jittered = span.unwrap_or(MAX_DELAY).mul_f64(random.clamp(0.0, 1.0));
    jittered.max(retry_after.unwrap_or_default())
}

/// Asks a store again, with backoff, while it is merely unreachable.
pub(super) async fn until_reachable<T, F>(mut ask: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut failures = 0;
    loop {
        match ask().await {
            Err(error) if error.is_transient() => {
                failures += 1;
                let pause = delay(failures, None, random());
                warn!(%error, ?pause, "the store can't be reached; trying again");
                tokio::time::sleep(pause).await;
            }
            decided => return decided,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_doubles_up_to_its_bound_and_the_whole_of_it_is_drawn_from() {
        let longest = |tries| delay(tries, None, 1.0);
        let ms = Duration::from_millis;
        let spans = [longest(1), longest(2), longest(3), longest(8), longest(100)];
        assert_eq!(spans, [ms(500), ms(1_000), ms(2_000), MAX_DELAY, MAX_DELAY]);
        assert_eq!(delay(5, None, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_day_is_never_waited_for() {
        let day = Some(Duration::from_secs(86_400));
        let waits = [1, 2, 3, 4, 100].map(|attempts| bounded(day, attempts).unwrap().as_secs());
        assert_eq!(waits, [15, 30, 60, 120, 120]);
        assert_eq!(bounded(Some(Duration::from_secs(9)), 1), Some(Duration::from_secs(9)));
    }

    #[test]
    fn what_the_service_asks_for_is_the_least() {
        assert_eq!(delay(1, Some(Duration::from_secs(9)), 0.5), Duration::from_secs(9));
    }
}
