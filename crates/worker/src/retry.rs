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
    fn what_the_service_asks_for_is_the_least() {
        assert_eq!(delay(1, Some(Duration::from_secs(9)), 0.5), Duration::from_secs(9));
    }
}
