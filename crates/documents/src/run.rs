//! The run of one night: enqueues requests, processes answers as they arrive, and makes the
//! follow-up requests (to repair an answer, or for the next level of combining).
//!
//! Follow-ups are made from stored answers alone, so a night restarted after a crash makes the same
//! requests under the same names, and calls none again that has its outcome.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use rand::random;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::answer;
use super::document::NightDocument;
pub use super::error::NightRunError;
use super::history::{LOOKUP_CHUNK, NightHistory, look_up};
use super::recipe::Recipe;
use super::reduce::{self, AnswerReducer};
use super::requests::{NightRequests, RequestKey, RequestState, RequestTags};
use super::template::{self, RecipeTemplates};
use control::batches;
use domain::backoff::Backoff;
use domain::job::BatchId;
use domain::outcome::{Outcome, OutcomeStatus};
use intake::{self, LineFault, LineOptions, OpenBatch};
use queue::Queue;
use store::{BatchState, Store, StoreError};

/// Requests sent to the queue in one call.
const CHUNK: usize = 500;

/// Outcomes read concurrently.
const READ_CONCURRENCY: usize = 16;

/// Intervals between reads of the batch's totals: short at first, for small nights, then longer,
/// since a store may bill each read.
const FIRST_POLL: Duration = Duration::from_millis(100);
const SLOWEST_POLL: Duration = Duration::from_secs(5);

/// Longest time between lookups, whatever the totals: they may lack a killed worker's outcomes.
const FORCED_LOOKUP: Duration = Duration::from_secs(30);

/// Consecutive failures of the queue or the store until the night is given up: some ten minutes.
const MAX_FAILURES_IN_A_ROW: u32 = 20;

/// Reason why the run of a night ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NightExit {
    /// All requests have their outcome.
    Complete,
    /// The batch was cancelled.
    Cancelled,
    /// The deadline passed; open requests are left to the next night.
    DeadlinePassed,
    /// A stop was requested; the next start resumes.
    Stopped,
    /// All requests that can be made now are in the queue.
    Enqueued,
}

/// The run of one night.
pub struct NightRunner<'a> {
    pub recipe: &'a Arc<Recipe>,
    pub queue: &'a dyn Queue,
    pub store: &'a dyn Store,
    pub history: &'a NightHistory<'a>,
    /// Tonight's batch, and its index in `batches`.
    pub batch: BatchId,
    pub batch_index: u16,
    /// All batches that request states refer to.
    pub batches: Vec<BatchId>,
    /// Settings for reading requests as jobs.
    pub reading: LineOptions,
    pub tags: RequestTags,
    /// Time that a night may run past its deadline: the longest call in flight.
    pub grace: Duration,
    pub requests: NightRequests,
    pub documents: Vec<NightDocument>,
    /// Requests that are not valid jobs.
    pub invalid: u64,
}

impl NightRunner<'_> {
    /// Runs until all requests are answered or `stop` is cancelled; with `wait` false only until
    /// all that can be made now are in the queue. Calls `on_progress` with ended and all requests.
    ///
    /// # Errors
    /// If the queue or the store refuses or is unavailable for long, or the disk fails.
    pub async fn run(
        &mut self,
        wait: bool,
        stop: &CancellationToken,
        on_progress: impl Fn(u64, u64),
    ) -> Result<NightExit, NightRunError> {
        let mut failures = 0;
        loop {
            match self.step(wait, stop, &on_progress).await {
                Ok(Some(finish)) => return Ok(finish),
                Ok(None) => failures = 0,
                Err(error) if error.is_transient() && failures < MAX_FAILURES_IN_A_ROW => {
                    failures += 1;
                    let pause = Backoff::DEFAULT.delay(failures, random());
                    warn!(%error, ?pause, "queue or store unavailable: the night waits");
                    tokio::select! {
                        () = stop.cancelled() => return Ok(NightExit::Stopped),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Enqueues new requests, processes answers, and waits for more.
    async fn step(
        &mut self,
        wait: bool,
        stop: &CancellationToken,
        on_progress: &impl Fn(u64, u64),
    ) -> Result<Option<NightExit>, NightRunError> {
        // Requests made before a crash may be answered by now; only enqueued ones are looked up.
        self.enqueue().await?;
        self.advance().await?;
        if self.enqueue().await? == NightEnqueueResult::Cancelled {
            return self.on_cancelled().await.map(Some);
        }
        let open = self.requests.open_count();
        let asked = self.requests.added().len();
        on_progress((asked - open) as u64, asked as u64);
        if open == 0 && self.requests.all_ended() {
            self.close().await?;
            return Ok(Some(NightExit::Complete));
        }
        if !wait {
            return Ok(Some(NightExit::Enqueued));
        }
        self.wait(open as u64, stop, on_progress).await
    }

    /// Waits until enough requests have ended to make a lookup worthwhile.
    async fn wait(
        &mut self,
        open: u64,
        stop: &CancellationToken,
        on_progress: &impl Fn(u64, u64),
    ) -> Result<Option<NightExit>, NightRunError> {
        let asked = self.requests.added().len() as u64;
        let ended_before = asked - open;
        let look_up_at = Instant::now() + FORCED_LOOKUP;
        let mut pause = FIRST_POLL;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(Some(NightExit::Stopped)),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(SLOWEST_POLL);
            if self.is_past_deadline(Timestamp::now()) {
                self.give_up("it was not answered in time").await?;
                return Ok(Some(NightExit::DeadlinePassed));
            }
            let batch = self.store.batch(&self.batch).await?;
            if batch.is_some_and(|batch| batch.state == BatchState::Cancelled) {
                return self.on_cancelled().await.map(Some);
            }
            let ended =
                self.store.running_totals(&self.batch, Timestamp::now()).await?.totals().ended();
            on_progress(ended.min(asked), asked);
            // A tenth of the open ones: each request is looked up a few times, not hundreds.
            let is_worth_it = ended >= asked || ended >= ended_before + open.div_ceil(10);
            if is_worth_it || Instant::now() >= look_up_at {
                return Ok(None);
            }
        }
    }

    /// Looks up open requests, and advances all documents as far as they can go.
    async fn advance(&mut self) -> Result<(), NightRunError> {
        for keys in self.requests.open().chunks(LOOKUP_CHUNK) {
            let found = look_up(self.store, &self.batch, keys).await?;
            let ended =
                keys.iter().zip(found).filter_map(|(key, found)| Some((*key, found?.ending())));
            // An answer is read here only if something depends on it.
            let (plain, read): (Vec<_>, Vec<_>) = ended
                .partition(|(_, e)| *e == OutcomeStatus::Succeeded && self.recipe.schema.is_none());
            for (key, _) in plain {
                self.requests
                    .set(&key, RequestState::Answered { batch: self.batch_index, usage: None });
            }
            let keys: Vec<_> = read.into_iter().map(|(key, _)| key).collect();
            for (key, outcome) in self.outcomes(&keys).await? {
                if let Some(outcome) = outcome {
                    let state = self.classify(key, &outcome)?;
                    self.requests.set(&key, state);
                }
            }
        }
        self.combine().await
    }

    /// Returns the state of a request that has ended.
    fn classify(
        &mut self,
        key: RequestKey,
        outcome: &Outcome,
    ) -> Result<RequestState, NightRunError> {
        let (batch, usage) = (self.batch_index, Some(outcome.usage));
        let why = match outcome.ending {
            OutcomeStatus::Succeeded => {
                let text = answer::text(outcome).unwrap_or_default();
                let fault =
                    self.recipe.schema.as_ref().and_then(|schema| schema.parse_answer(&text).err());
                let Some(fault) = fault else { return Ok(RequestState::Answered { batch, usage }) };
                if let Some(by) = self.repair(key, &text, &fault)? {
                    return Ok(RequestState::Repaired { batch, usage, by });
                }
                format!("the answer does not fit the schema, even after a repair: {fault}")
            }
            OutcomeStatus::Failed => answer::failure(outcome).into(),
            OutcomeStatus::Dead | OutcomeStatus::Cancelled | OutcomeStatus::Expired => {
                return Ok(RequestState::Unfinished { why: answer::failure(outcome) });
            }
        };
        Ok(RequestState::Failed { batch, usage, why: why.into() })
    }

    /// Requests a repaired answer, unless this was the second attempt.
    fn repair(
        &mut self,
        key: RequestKey,
        text: &str,
        fault: &str,
    ) -> Result<Option<RequestKey>, NightRunError> {
        if self.requests.get(&key).is_none_or(|ask| ask.repairs.is_some()) {
            return Ok(None);
        }
        let line: serde_json::Value = serde_json::from_str(&self.requests.line(&key)?)?;
        let document = line["metadata"]["document"].as_str().unwrap_or_default().to_owned();
        let tags = RequestTags { document, ..self.tags.clone() };
        let body = template::repair_request(&line["body"], text, fault);
        Ok(Some(self.requests.add(&body, &tags, Some(key))?))
    }

    /// Combines the answers of documents that have all of them.
    async fn combine(&mut self) -> Result<(), NightRunError> {
        let Some(reduce) = self.recipe.reduce.clone() else { return Ok(()) };
        let recipe = self.recipe.clone();
        let templates = RecipeTemplates::new(&recipe)?;
        for n in 0..self.documents.len() {
            while reduce::is_ready(&self.documents[n], &self.requests) {
                let level = self.documents[n].level.clone();
                let found = self.answers(&level).await?;
                let document = &self.documents[n];
                let reducer = AnswerReducer { templates: &templates, reduce: &reduce };
                let groups = reducer.next_level(document, level, &found)?;
                let tags = RequestTags { document: document.name.clone(), ..self.tags.clone() };
                let next = groups.request_all(self.history, &mut self.requests, &tags).await?;
                let document = &mut self.documents[n];
                if document.depth > 0 {
                    document.between.append(&mut document.level);
                }
                document.level = next;
                document.depth += 1;
            }
        }
        Ok(())
    }

    /// Returns the texts of answered requests, in their order, and records their usage.
    async fn answers(&mut self, keys: &[RequestKey]) -> Result<Vec<String>, NightRunError> {
        let mut texts = Vec::with_capacity(keys.len());
        for (key, outcome) in self.outcomes(keys).await? {
            let text = outcome.as_ref().and_then(answer::text);
            texts.push(text.unwrap_or_default());
            if let (RequestState::Answered { batch, usage: None }, Some(outcome)) =
                (self.requests.state(&key).1.clone(), outcome)
            {
                let (by, _) = self.requests.state(&key);
                self.requests
                    .set(&by, RequestState::Answered { batch, usage: Some(outcome.usage) });
            }
        }
        Ok(texts)
    }

    /// Returns the outcomes of these requests in their order, from whichever batch holds them.
    pub(super) async fn outcomes(
        &self,
        keys: &[RequestKey],
    ) -> Result<Vec<(RequestKey, Option<Outcome>)>, NightRunError> {
        let read = keys.iter().map(|key| async move {
            let (by, state) = self.requests.state(key);
            let batch = super::ledger::batch_of(state).unwrap_or(self.batch_index);
            let batch = &self.batches[usize::from(batch)];
            let outcome = self.store.outcome(batch, &by.to_string()).await?;
            Ok::<_, StoreError>((*key, outcome))
        });
        Ok(stream::iter(read).buffered(READ_CONCURRENCY).try_collect().await?)
    }

    /// Enqueues the requests that were added.
    async fn enqueue(&mut self) -> Result<NightEnqueueResult, NightRunError> {
        if self.requests.to_send(1).next().is_none() {
            return Ok(NightEnqueueResult::Done);
        }
        let Some(mut open) = OpenBatch::open(&self.batch, (self.queue, self.store)).await? else {
            return Ok(NightEnqueueResult::Cancelled);
        };
        // Counted before the first is sent, so that nobody takes the batch for done.
        open.document.jobs = open.document.jobs.max(self.jobs());
        self.store.put_batch(&open.document).await?;
        loop {
            let next: Vec<_> = self.requests.to_send(CHUNK).map(|(n, key)| (n, *key)).collect();
            if next.is_empty() {
                break;
            }
            let mut jobs = Vec::with_capacity(next.len());
            for (position, key) in &next {
                let line = self.requests.line(key)?;
                match intake::read_line(&line, &self.reading) {
                    Ok(job) if line.len() <= self.reading.max_line_bytes => {
                        jobs.push(job.into_job(&self.batch, *position));
                    }
                    Ok(_) => self.mark_invalid(
                        *key,
                        &LineFault::TooLong {
                            bytes: line.len(),
                            limit: self.reading.max_line_bytes,
                        },
                    ),
                    Err(fault) => self.mark_invalid(*key, &fault),
                }
            }
            let tokens = jobs.iter().filter_map(|job| job.estimate).map(|e| u64::from(e.prompt));
            open.document.prompt_tokens += tokens.sum::<u64>();
            open.send_unknown(jobs, (self.queue, self.store)).await?;
            self.requests.mark_sent(next.len());
        }
        open.document.jobs = self.jobs();
        self.store.put_batch(&open.document).await?;
        Ok(NightEnqueueResult::Done)
    }

    fn jobs(&self) -> u64 {
        self.requests.added().len() as u64 - self.invalid
    }

    fn mark_invalid(&mut self, key: RequestKey, fault: &LineFault) {
        self.invalid += 1;
        self.requests.set(&key, RequestState::Unfinished { why: fault.to_string().into() });
    }

    /// Closes the batch to further jobs.
    async fn close(&self) -> Result<(), NightRunError> {
        let from = [BatchState::Enqueuing];
        self.store.change_state(&self.batch, &from, BatchState::Running, None).await?;
        if let Some(batch) = self.store.batch(&self.batch).await? {
            let totals = self.store.totals(&batch.id).await?;
            if totals.ended() >= batch.jobs {
                batches::close(self.store, &batch.id).await?;
            }
        }
        Ok(())
    }

    fn is_past_deadline(&self, now: Timestamp) -> bool {
        self.reading.terms.deadline.is_some_and(|by| now > by + self.grace)
    }

    async fn on_cancelled(&mut self) -> Result<NightExit, NightRunError> {
        self.give_up("the night was cancelled").await?;
        Ok(NightExit::Cancelled)
    }

    /// Looks up open requests a last time, and leaves the rest unfinished.
    async fn give_up(&mut self, why: &str) -> Result<(), NightRunError> {
        self.advance().await?;
        self.requests.mark_sent(self.requests.added().len() - self.requests.sent());
        for key in self.requests.open() {
            self.requests.set(&key, RequestState::Unfinished { why: why.into() });
        }
        self.close().await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NightEnqueueResult {
    Done,
    Cancelled,
}
