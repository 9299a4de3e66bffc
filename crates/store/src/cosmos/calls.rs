//! Calls to the database: counted, paced and retried for a bounded time, in one place.

use std::future::Future;
use std::time::Duration;

use azure_data_cosmos::feed::{ContinuationToken, FeedScope, QueryPageIterator};
use azure_data_cosmos::models::{BatchResponse, ItemResponse, ResponseHeaders};
use azure_data_cosmos::options::{MaxItemCountHint, QueryOptions};
use azure_data_cosmos::{ContainerClient, CosmosError, Query};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::error::{BadItem, RetryAdvice, retry_advice, store_error};
use super::request_units::{CosmosOperation, RequestUnits};
use super::write_pacer::WritePacer;
use crate::StoreError;
use domain::backoff::Backoff;

/// Waits after errors, with full jitter: short, since a replica that lags needs milliseconds.
const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(50), factor: 2.0, max: Duration::from_secs(2) };

/// Executor of all calls of this store.
#[derive(Debug)]
pub(super) struct CallExecutor {
    pub(super) units: RequestUnits,
    pub(super) pacer: WritePacer,
    pub(super) patience: Duration,
}

/// Operation that a call is counted under, and its description for errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallPurpose(pub(super) CosmosOperation, pub(super) &'static str);

/// Result of a point operation, including the refusals that a caller expects.
pub(super) enum PointResult {
    Done(Box<ItemResponse>),
    /// The item is missing; or, for a write that creates its item, the container.
    NotFound(Box<CosmosError>),
    Conflict,
    /// The item was changed since it was read.
    PreconditionFailed,
}

impl PointResult {
    /// Returns true if the write was made, false if its item existed or had changed.
    pub(super) fn written(self, purpose: CallPurpose) -> Result<bool, StoreError> {
        match self {
            Self::Done(_) => Ok(true),
            Self::Conflict | Self::PreconditionFailed => Ok(false),
            Self::NotFound(error) => Err(store_error(purpose.1, *error)),
        }
    }
}

impl CallExecutor {
    /// Makes a point write: waits for its turn, and again after it was throttled.
    pub(super) async fn write<F>(
        &self,
        purpose: CallPurpose,
        call: impl Fn() -> F + Send,
    ) -> Result<PointResult, StoreError>
    where
        F: Future<Output = Result<ItemResponse, CosmosError>> + Send,
    {
        self.call_paced(purpose, call, |done| self.classify(purpose, done)).await
    }

    /// Writes to one logical partition in one transaction; false if its state there forbids that.
    pub(super) async fn write_transaction<F>(
        &self,
        purpose: CallPurpose,
        call: impl Fn() -> F + Send,
    ) -> Result<bool, StoreError>
    where
        F: Future<Output = Result<BatchResponse, CosmosError>> + Send,
    {
        let judge = |done: Result<BatchResponse, CosmosError>| match done {
            Ok(response) => {
                self.record_charge(purpose, response.headers());
                let answer = response.into_model()?;
                Ok(answer.results().iter().all(|result| result.is_success()))
            }
            Err(error) => self.classify(purpose, Err(error)).map(|_| false),
        };
        self.call_paced(purpose, call, judge).await
    }

    async fn call_paced<F, R, A>(
        &self,
        purpose: CallPurpose,
        call: impl Fn() -> F + Send,
        judge: impl Fn(Result<R, CosmosError>) -> Result<A, CosmosError> + Send,
    ) -> Result<A, StoreError>
    where
        F: Future<Output = Result<R, CosmosError>> + Send,
    {
        let mut trouble = CallBackoff::new(self.patience);
        loop {
            let turn = self.pacer.acquire().await;
            let done = judge(call().await);
            drop(turn);
            let error = match done {
                Ok(answer) => {
                    self.pacer.succeeded();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match retry_advice(&error) {
                // The pacer makes this and all other writes wait.
                RetryAdvice::Throttled(pause) if trouble.may_retry() => self.pacer.throttled(pause),
                RetryAdvice::Retry if trouble.may_retry() => trouble.wait().await,
                _ => return Err(store_error(purpose.1, error)),
            }
        }
    }

    /// Makes a point read.
    pub(super) async fn read<F>(
        &self,
        purpose: CallPurpose,
        call: impl Fn() -> F + Send,
    ) -> Result<PointResult, StoreError>
    where
        F: Future<Output = Result<ItemResponse, CosmosError>> + Send,
    {
        self.call_unpaced(purpose, call).await
    }

    /// Makes a call that does not wait for its turn among the writes.
    pub(super) async fn call_unpaced<F>(
        &self,
        purpose: CallPurpose,
        call: impl Fn() -> F + Send,
    ) -> Result<PointResult, StoreError>
    where
        F: Future<Output = Result<ItemResponse, CosmosError>> + Send,
    {
        let mut trouble = CallBackoff::new(self.patience);
        loop {
            match self.classify(purpose, call().await) {
                Ok(answer) => return Ok(answer),
                Err(error) => trouble.wait_after(purpose, error).await?,
            }
        }
    }

    fn classify(
        &self,
        purpose: CallPurpose,
        result: Result<ItemResponse, CosmosError>,
    ) -> Result<PointResult, CosmosError> {
        match result {
            Ok(response) => {
                self.record_charge(purpose, response.headers());
                Ok(PointResult::Done(response.into()))
            }
            Err(error) => {
                let charge = error.response().and_then(|r| r.headers().request_charge);
                self.units.add(purpose.0, charge.map_or(0.0, |c| c.value()));
                match u16::from(error.status().status_code()) {
                    404 if error.status().is_not_found() => Ok(PointResult::NotFound(error.into())),
                    409 => Ok(PointResult::Conflict),
                    412 => Ok(PointResult::PreconditionFailed),
                    _ => Err(error),
                }
            }
        }
    }

    fn record_charge(&self, purpose: CallPurpose, headers: &ResponseHeaders) {
        let charge = headers.request_charge().map_or(0.0, |charge| charge.value());
        self.units.add(purpose.0, charge);
    }
}

/// Pages of one query, each a call of its own that can be repeated from where it began.
pub(super) struct QueryPages<T: Send> {
    container: ContainerClient,
    query: Query,
    scope: FeedScope,
    page_size: MaxItemCountHint,
    purpose: CallPurpose,
    pages: Option<QueryPageIterator<T>>,
    continuation: Option<ContinuationToken>,
}

impl<T: DeserializeOwned + Send + 'static> QueryPages<T> {
    pub(super) fn new(
        container: &ContainerClient,
        query: Query,
        scope: FeedScope,
        page_size: MaxItemCountHint,
        purpose: CallPurpose,
    ) -> Self {
        let container = container.clone();
        Self { container, query, scope, page_size, purpose, pages: None, continuation: None }
    }

    /// Returns the next page, `None` after the last. An empty page is not the last.
    pub(super) async fn next(
        &mut self,
        calls: &CallExecutor,
    ) -> Result<Option<Vec<T>>, StoreError> {
        let mut trouble = CallBackoff::new(calls.patience);
        loop {
            match self.try_next(calls).await {
                Ok(page) => return Ok(page),
                Err(error) => {
                    // An iterator that failed is spent; the next begins where its last page ended.
                    self.pages = None;
                    trouble.wait_after(self.purpose, error).await?;
                }
            }
        }
    }

    async fn try_next(&mut self, calls: &CallExecutor) -> Result<Option<Vec<T>>, CosmosError> {
        if self.pages.is_none() {
            let mut options = QueryOptions::default().with_max_item_count(self.page_size);
            if let Some(token) = self.continuation.clone() {
                options = options.with_continuation_token(token);
            }
            let query =
                self.container.query_items(self.query.clone(), self.scope.clone(), Some(options));
            self.pages = Some(query.await?.into_pages());
        }
        let Some(pages) = &mut self.pages else { return Ok(None) };
        let Some(page) = pages.next().await.transpose()? else { return Ok(None) };
        calls.record_charge(self.purpose, page.headers());
        self.continuation = Some(pages.to_continuation_token()?);
        Ok(Some(page.into_items()))
    }
}

pub(super) fn page_of(items: u32) -> MaxItemCountHint {
    std::num::NonZeroU32::new(items)
        .map_or(MaxItemCountHint::ServerDecides, MaxItemCountHint::Limit)
}

pub(super) fn decode_item<T: DeserializeOwned>(
    purpose: CallPurpose,
    response: Box<ItemResponse>,
) -> Result<T, StoreError> {
    response.into_model().map_err(|source| BadItem::Unreadable { doing: purpose.1, source }.into())
}

/// Retry state of one operation: the time of its first failure, and the number of waits so far.
pub(super) struct CallBackoff {
    patience: Duration,
    since: Option<Instant>,
    failures: u32,
}

impl CallBackoff {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, since: None, failures: 0 }
    }

    /// Returns whether the patience lasts; it begins with the first failure.
    fn may_retry(&mut self) -> bool {
        let now = Instant::now();
        now < *self.since.get_or_insert(now) + self.patience
    }

    async fn wait(&mut self) {
        self.failures += 1;
        sleep(BACKOFF.delay(self.failures, rand::random())).await;
    }

    /// Waits for a replica that lags, or for another writer of the same item to be done.
    pub(super) async fn wait_for_others(&mut self, doing: &'static str) -> Result<(), StoreError> {
        if !self.may_retry() {
            let error = BadItem::NeitherThereNorAbsent(doing);
            return Err(StoreError::Unavailable(error.into()));
        }
        self.wait().await;
        Ok(())
    }

    async fn wait_after(
        &mut self,
        purpose: CallPurpose,
        error: CosmosError,
    ) -> Result<(), StoreError> {
        match retry_advice(&error) {
            RetryAdvice::Throttled(pause) if self.may_retry() => sleep(pause).await,
            RetryAdvice::Retry if self.may_retry() => self.wait().await,
            _ => return Err(store_error(purpose.1, error)),
        }
        Ok(())
    }
}
