//! Retries after transient errors: of a job's call, and of a store that can't be reached.

use std::time::Duration;

use rand::random;
use tracing::warn;

use domain::backoff::Backoff;
use store::StoreError;

/// Longest wait that an error may ask for: doubles with every attempt up to the second. A service
/// that asks for a day is asked earlier (copilot-cli#2760).
const LONGEST_FIRST_WAIT: Duration = Duration::from_secs(15);
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Returns the part of a wait that is kept to after so many attempts.
pub fn bounded(asked: Option<Duration>, attempts: u32) -> Option<Duration> {
    let doublings = attempts.saturating_sub(1).min(8);
    asked.map(|asked| asked.min(LONGEST_FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT))
}

/// Returns the wait before attempt number `attempts + 1` of a job: exponential backoff with full
/// jitter (`random` is in 0..1), or the service's `retry_after` if that is longer.
pub fn delay(attempts: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    Backoff::DEFAULT.delay(attempts, random).max(retry_after.unwrap_or_default())
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
                let pause = Backoff::DEFAULT.delay(failures, random());
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
    fn a_day_is_never_waited_for() {
        let day = Some(Duration::from_secs(86_400));
        let waits = [1, 2, 3, 4, 100].map(|attempts| bounded(day, attempts).unwrap().as_secs());
        assert_eq!(waits, [15, 30, 60, 120, 120]);
        assert_eq!(bounded(Some(Duration::from_secs(9)), 1), Some(Duration::from_secs(9)));
    }

    #[test]
    fn what_the_service_asks_for_is_the_least() {
        assert_eq!(delay(1, Some(Duration::from_secs(9)), 0.5), Duration::from_secs(9));
        assert_eq!(delay(2, Some(Duration::from_millis(1)), 0.5), Duration::from_millis(500));
    }
}
