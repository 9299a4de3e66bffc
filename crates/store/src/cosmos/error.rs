//! Classification of the database's errors: retry or not, and a hint for the user.

use std::time::Duration;

use azure_data_cosmos::CosmosError;

use crate::StoreError;

/// A failed call: its purpose, and the error of the service or the network.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}{}", hint(source))]
pub(super) struct CallFailed {
    doing: &'static str,
    source: CosmosError,
}

/// An item that is not as this program writes it.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadItem {
    #[error("{doing}: an item can't be read; was it written by another program?")]
    Unreadable { doing: &'static str, source: CosmosError },
    #[error("item '{id}' has no readable {field}")]
    Field { id: String, field: &'static str },
    #[error("the body of job {0} is not UTF-8 text")]
    BodyNotText(domain::job::JobId),
    #[error("{0}: the item exists when it is to be created, and not when it is to be read")]
    NeitherThereNorAbsent(&'static str),
    #[error("payload '{0}' is missing or incomplete")]
    NoPayload(String),
}

impl From<BadItem> for StoreError {
    fn from(error: BadItem) -> Self {
        Self::Refused(error.into())
    }
}

/// Next step after a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RetryAdvice {
    /// 429: the request units of this second are spent.
    Throttled(Duration),
    /// Transient error of the service or the network; the call may or may not have been executed.
    Retry,
    GiveUp,
}

/// Pause after a 429 that carries no time of its own.
const DEFAULT_PAUSE: Duration = Duration::from_millis(500);

pub(super) fn retry_advice(error: &CosmosError) -> RetryAdvice {
    let status = error.status();
    if status.is_throttled() {
        let header = error.response().and_then(|r| r.headers().retry_after_ms);
        return RetryAdvice::Throttled(header.map_or(DEFAULT_PAUSE, Duration::from_millis));
    }
    let sub_status = status.sub_status().map_or(0, u16::from);
    match (u16::from(status.status_code()), sub_status) {
        // The replica has not seen this session's writes yet.
        (404, 1002) => RetryAdvice::Retry,
        // A region that has just stopped taking writes, or was just removed: the SDK finds the next.
        (403, 3 | 1008) => RetryAdvice::Retry,
        (408 | 410 | 449 | 500..=599, _) => RetryAdvice::Retry,
        // No token could be fetched: the identity service has outages of its own.
        (401, _) if !error.is_from_wire() => RetryAdvice::Retry,
        _ => RetryAdvice::GiveUp,
    }
}

/// Converts the error for the store's callers, once no more retries are made here.
pub(super) fn store_error(doing: &'static str, source: CosmosError) -> StoreError {
    match retry_advice(&source) {
        RetryAdvice::GiveUp => StoreError::Refused(CallFailed { doing, source }.into()),
        RetryAdvice::Throttled(_) | RetryAdvice::Retry => {
            StoreError::Unavailable(CallFailed { doing, source }.into())
        }
    }
}

/// Returns true if the service refused an item for what is in it, so that another may pass.
pub(super) fn is_about_the_item(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let call = error.downcast_ref::<CallFailed>();
    call.is_some_and(|call| matches!(u16::from(call.source.status().status_code()), 400 | 413))
}

fn hint(source: &CosmosError) -> &'static str {
    let status = source.status();
    match (u16::from(status.status_code()), status.sub_status().map_or(0, u16::from)) {
        (401, _) => " (is the key or the identity right, and the clock within 15 minutes?)",
        (403, 1014) => " (a logical partition holds 20 GB: start new batches with more shards)",
        (403, 0) => " (the identity needs the role Cosmos DB Built-in Data Contributor)",
        (404, _) => " (create the database and its containers with `promptmill init`)",
        _ => "",
    }
}
