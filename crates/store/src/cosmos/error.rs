//! What the database's refusals mean: whose fault they are, and whether waiting helps.

use std::time::Duration;

use azure_data_cosmos::CosmosError;

use crate::StoreError;

/// A call that failed: what was being done, and what the service or the way to it said.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: {source}{}", mend(source))]
pub(super) struct CallFailed {
    doing: &'static str,
    source: CosmosError,
}

/// What came back is not what this program writes.
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
    #[error("payload '{0}' does not exist as a whole")]
    NoPayload(String),
}

impl From<BadItem> for StoreError {
    fn from(error: BadItem) -> Self {
        Self::Refused(error.into())
    }
}

/// How to go on after a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// 429: the request units of this second are spent.
    SlowDown(Duration),
    /// The service or the way to it is in trouble; the call may or may not have been carried out.
    TryAgain,
    GiveUp,
}

/// Named when a 429 carries no time of its own.
const DEFAULT_PAUSE: Duration = Duration::from_millis(500);

pub(super) fn advice(error: &CosmosError) -> Advice {
    let status = error.status();
    if status.is_throttled() {
        let header = error.response().and_then(|r| r.headers().retry_after_ms);
        return Advice::SlowDown(header.map_or(DEFAULT_PAUSE, Duration::from_millis));
    }
    let sub_status = status.sub_status().map_or(0, u16::from);
    match (u16::from(status.status_code()), sub_status) {
        // The replica has not seen this session's writes yet.
        (404, 1002) => Advice::TryAgain,
        // A region that has just stopped taking writes, or was just removed: the SDK finds the next.
        (403, 3 | 1008) => Advice::TryAgain,
        (408 | 410 | 449 | 500..=599, _) => Advice::TryAgain,
        // No token could be fetched; the identity service has its own bad minutes.
        (401, _) if !error.is_from_wire() => Advice::TryAgain,
        _ => Advice::GiveUp,
    }
}

/// The error for the store's callers, once nothing more is tried here.
pub(super) fn store_error(doing: &'static str, source: CosmosError) -> StoreError {
    match advice(&source) {
        Advice::GiveUp => StoreError::Refused(CallFailed { doing, source }.into()),
        Advice::SlowDown(_) | Advice::TryAgain => {
            StoreError::Unavailable(CallFailed { doing, source }.into())
        }
    }
}

fn mend(source: &CosmosError) -> &'static str {
    let status = source.status();
    match (u16::from(status.status_code()), status.sub_status().map_or(0, u16::from)) {
        (401, _) => " (is the key or the identity right, and the clock within 15 minutes?)",
        (403, 1014) => " (a logical partition holds 20 GB: start new batches with more shards)",
        (403, 0) => " (the identity needs the role Cosmos DB Built-in Data Contributor)",
        (404, _) => " (create the database and its containers with `promptmill init`)",
        _ => "",
    }
}
