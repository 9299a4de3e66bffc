//! Calls to the database: each is counted, paced and repeated for a bounded time, in one place.

use std::future::Future;
use std::time::Duration;

use azure_data_cosmos::feed::{ContinuationToken, FeedScope, QueryPageIterator};
use azure_data_cosmos::models::{BatchResponse, ItemResponse, ResponseHeaders};
use azure_data_cosmos::options::{MaxItemCountHint, QueryOptions};
use azure_data_cosmos::{ContainerClient, CosmosError, Query};
use futures_util::StreamExt;
use rand::RngExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use super::error::{Advice, BadItem, advice, store_error};
use super::pace::Pace;
use super::units::{Operation, RequestUnits};
use crate::StoreError;

/// The first wait after trouble, doubled up to [`LONGEST_WAIT`], each time drawn from 0 to that.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How calls are made, for all rooms of this store.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) units: RequestUnits,
    pub(super) pace: Pace,
    pub(super) patience: Duration,
}

/// What a call is for, in the sums and in an error's words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purpose(pub(super) Operation, pub(super) &'static str);

/// A point call's answer, where the service's "no" is an answer.
pub(super) enum Answer {
    Done(Box<ItemResponse>),
    /// The item is not there; or, for a write that makes its item, the container.
    NotFound(Box<CosmosError>),
    Conflict,
    /// The item was changed since it was read.
    Changed,
}

impl Answer {
    /// For writes that make their item: true if this one did, false if it was there.
    pub(super) fn made(self, purpose: Purpose) -> Result<bool, StoreError> {
        match self {
            Self::Done(_) => Ok(true),
            Self::Conflict | Self::Changed => Ok(false),
            Self::NotFound(error) => Err(store_error(purpose.1, *error)),
        }
    }
}

impl Calls {
    /// A point write: waits for its turn, and for its next turn when it was refused.
    pub(super) async fn write<F>(
        &self,
        purpose: Purpose,
        call: impl Fn() -> F + Send,
    ) -> Result<Answer, StoreError>
    where
        F: Future<Output = Result<ItemResponse, CosmosError>> + Send,
    {
        self.in_turn(purpose, call, |done| self.counted(purpose, done)).await
    }

    /// Writes to one logical partition, all of them or none: false if they can't be carried out as
    /// things stand there.
    pub(super) async fn write_together<F>(
        &self,
        purpose: Purpose,
        call: impl Fn() -> F + Send,
    ) -> Result<bool, StoreError>
    where
        F: Future<Output = Result<BatchResponse, CosmosError>> + Send,
    {
        let judge = |done: Result<BatchResponse, CosmosError>| match done {
            Ok(response) => {
                self.charge(purpose, response.headers());
                let answer = response.into_model()?;
                Ok(answer.results().iter().all(|result| result.is_success()))
            }
            Err(error) => self.counted(purpose, Err(error)).map(|_| false),
        };
        self.in_turn(purpose, call, judge).await
    }

    async fn in_turn<F, R, A>(
        &self,
        purpose: Purpose,
        call: impl Fn() -> F + Send,
        judge: impl Fn(Result<R, CosmosError>) -> Result<A, CosmosError> + Send,
    ) -> Result<A, StoreError>
    where
        F: Future<Output = Result<R, CosmosError>> + Send,
    {
        let mut trouble = Trouble::new(self.patience);
        loop {
            let turn = self.pace.turn().await;
            let done = judge(call().await);
            drop(turn);
            let error = match done {
                Ok(answer) => {
                    self.pace.succeeded();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match advice(&error) {
                // The pace makes this and all other writes wait.
                Advice::SlowDown(pause) if trouble.may_go_on() => self.pace.throttled(pause),
                Advice::TryAgain if trouble.may_go_on() => trouble.wait().await,
                _ => return Err(store_error(purpose.1, error)),
            }
        }
    }

    /// A point read.
    pub(super) async fn read<F>(
        &self,
        purpose: Purpose,
        call: impl Fn() -> F + Send,
    ) -> Result<Answer, StoreError>
    where
        F: Future<Output = Result<ItemResponse, CosmosError>> + Send,
    {
        self.at_once(purpose, call).await
    }

    /// A call that does not wait for its turn among the writes.
    pub(super) async fn at_once<F>(
        &self,
        purpose: Purpose,
        call: impl Fn() -> F + Send,
    ) -> Result<Answer, StoreError>
    where
        F: Future<Output = Result<ItemResponse, CosmosError>> + Send,
    {
        let mut trouble = Trouble::new(self.patience);
        loop {
            match self.counted(purpose, call().await) {
                Ok(answer) => return Ok(answer),
                Err(error) => trouble.wait_after(purpose, error).await?,
            }
        }
    }

    fn counted(
        &self,
        purpose: Purpose,
        result: Result<ItemResponse, CosmosError>,
    ) -> Result<Answer, CosmosError> {
        match result {
            Ok(response) => {
                self.charge(purpose, response.headers());
                Ok(Answer::Done(response.into()))
            }
            Err(error) => {
                let charge = error.response().and_then(|r| r.headers().request_charge);
                self.units.add(purpose.0, charge.map_or(0.0, |c| c.value()));
                match u16::from(error.status().status_code()) {
                    404 if error.status().is_not_found() => Ok(Answer::NotFound(error.into())),
                    409 => Ok(Answer::Conflict),
                    412 => Ok(Answer::Changed),
                    _ => Err(error),
                }
            }
        }
    }

    fn charge(&self, purpose: Purpose, headers: &ResponseHeaders) {
        let charge = headers.request_charge().map_or(0.0, |charge| charge.value());
        self.units.add(purpose.0, charge);
    }
}

/// The pages of one query, each a call of its own that can be repeated from where it began.
pub(super) struct Pages<T: Send> {
    container: ContainerClient,
    query: Query,
    scope: FeedScope,
    page_size: MaxItemCountHint,
    purpose: Purpose,
    pages: Option<QueryPageIterator<T>>,
    at: Option<ContinuationToken>,
}

impl<T: DeserializeOwned + Send + 'static> Pages<T> {
    pub(super) fn new(
        container: &ContainerClient,
        query: Query,
        scope: FeedScope,
        page_size: MaxItemCountHint,
        purpose: Purpose,
    ) -> Self {
        let container = container.clone();
        Self { container, query, scope, page_size, purpose, pages: None, at: None }
    }

    /// The next page; none after the last. An empty page is not the last.
    pub(super) async fn next(&mut self, calls: &Calls) -> Result<Option<Vec<T>>, StoreError> {
        let mut trouble = Trouble::new(calls.patience);
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

    async fn try_next(&mut self, calls: &Calls) -> Result<Option<Vec<T>>, CosmosError> {
        if self.pages.is_none() {
            let mut options = QueryOptions::default().with_max_item_count(self.page_size);
            if let Some(token) = self.at.clone() {
                options = options.with_continuation_token(token);
            }
            let query =
                self.container.query_items(self.query.clone(), self.scope.clone(), Some(options));
            self.pages = Some(query.await?.into_pages());
        }
        let Some(pages) = &mut self.pages else { return Ok(None) };
        let Some(page) = pages.next().await.transpose()? else { return Ok(None) };
        calls.charge(self.purpose, page.headers());
        self.at = Some(pages.to_continuation_token()?);
        Ok(Some(page.into_items()))
    }
}

pub(super) fn page_of(items: u32) -> MaxItemCountHint {
    std::num::NonZeroU32::new(items)
        .map_or(MaxItemCountHint::ServerDecides, MaxItemCountHint::Limit)
}

pub(super) fn body<T: DeserializeOwned>(
    purpose: Purpose,
    response: Box<ItemResponse>,
) -> Result<T, StoreError> {
    response.into_model().map_err(|source| BadItem::Unreadable { doing: purpose.1, source }.into())
}

/// The trouble that somebody is having: for how long, and how long to wait next.
pub(super) struct Trouble {
    patience: Duration,
    since: Option<Instant>,
    next_wait: Duration,
}

impl Trouble {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, since: None, next_wait: FIRST_WAIT }
    }

    /// Whether the patience lasts; it begins with the first failure.
    fn may_go_on(&mut self) -> bool {
        let now = Instant::now();
        now < *self.since.get_or_insert(now) + self.patience
    }

    async fn wait(&mut self) {
        let longest = self.next_wait.as_secs_f64();
        self.next_wait = (self.next_wait * 2).min(LONGEST_WAIT);
        let drawn = Duration::from_secs_f64(rand::rng().random_range(0.0..=longest));
        sleep(drawn).await;
    }

    /// Waits for a replica that lags, or for another writer of the same item to be done.
    pub(super) async fn wait_for_others(&mut self, doing: &'static str) -> Result<(), StoreError> {
        if !self.may_go_on() {
            let error = BadItem::NeitherThereNorAbsent(doing);
            return Err(StoreError::Unavailable(error.into()));
        }
        self.wait().await;
        Ok(())
    }

    async fn wait_after(&mut self, purpose: Purpose, error: CosmosError) -> Result<(), StoreError> {
        match advice(&error) {
            Advice::SlowDown(pause) if self.may_go_on() => sleep(pause).await,
            Advice::TryAgain if self.may_go_on() => self.wait().await,
            _ => return Err(store_error(purpose.1, error)),
        }
        Ok(())
    }
}
