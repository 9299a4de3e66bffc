//! The night itself: what is asked goes to the queue, answers are looked at as they come, and what
//! follows from them (a mended answer, the next level of combining) is asked in turn.
//!
//! All that follows is made of stored answers alone, so a night that is begun again after a crash asks
//! the same requests under the same names, and none that has its outcome is called again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use rand::random;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::answer;
use super::asks::{Asks, Key, State, Terms};
use super::earlier::{Earlier, LOOKED_UP, look_up};
use super::gather::{GatherError, Tracked};
use super::recipe::Recipe;
use super::reduce::{self, Combining};
use super::template::{self, TemplateError, Templates};
use control::batches;
use domain::job::BatchId;
use domain::outcome::{Ending, Outcome};
use intake::{self, EnqueueError, LineFault, OpenBatch, Reading};
use queue::{Queue, QueueError};
use store::{BatchState, Store, StoreError};
use worker::retry;

/// Requests that go to the queue in one call.
const CHUNK: usize = 500;

/// Outcomes that are read at the same time.
const READ_AT_A_TIME: usize = 16;

/// How often the batch's sums are looked at: soon at first, for small nights, then seldom, since a
/// store may bill each look.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_AT_LAST: Duration = Duration::from_secs(5);

/// When what is asked is looked up whatever the sums say: they may lack what a killed worker recorded.
const LOOK_UP_ANYHOW: Duration = Duration::from_secs(30);

/// How often in a row the queue or the store may be away before the night is given up: some ten minutes.
const TRIES: u32 = 20;

/// Why a night could not go on. What is recorded stays; the next start goes on.
#[derive(Debug, thiserror::Error)]
pub enum ConductError {
    #[error(transparent)]
    Gather(#[from] GatherError),
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("can't read what was asked: {0}")]
    Scratch(#[from] std::io::Error),
    #[error("what was asked is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl ConductError {
    /// Whether waiting may help. All that a night does can be done again.
    fn is_passing(&self) -> bool {
        let of_store = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
        match self {
            Self::Store(error) | Self::Gather(GatherError::Store(error)) => of_store(error),
            Self::Enqueue(EnqueueError::Store(error)) => of_store(error),
            Self::Enqueue(EnqueueError::Queue(error)) => {
                matches!(error, QueueError::Unavailable(_))
            }
            Self::Enqueue(_)
            | Self::Gather(_)
            | Self::Template(_)
            | Self::Scratch(_)
            | Self::Json(_) => false,
        }
    }
}

/// How a night came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// All that was asked has its outcome.
    Over,
    /// The batch was cancelled.
    Cancelled,
    /// Its time was over; what is open is left to the next night.
    Late,
    /// It was told to stop; the next start goes on.
    Stopped,
    /// All is in the queue that can be asked now.
    Sent,
}

/// One night at work.
pub struct Conductor<'a> {
    pub recipe: &'a Arc<Recipe>,
    pub queue: &'a dyn Queue,
    pub store: &'a dyn Store,
    pub earlier: &'a Earlier<'a>,
    /// Tonight's batch, and its place among those that states name.
    pub batch: BatchId,
    pub tonight: u16,
    /// All batches that states name.
    pub batches: Vec<BatchId>,
    /// How requests are read as jobs.
    pub reading: Reading,
    pub terms: Terms,
    /// How long after the time that it is wanted by a night may end: the longest call in flight.
    pub patience: Duration,
    pub asks: Asks,
    pub documents: Vec<Tracked>,
    /// Requests that can't be jobs.
    pub unfit: u64,
}

impl Conductor<'_> {
    /// Works until all is answered, or `stop`; with `wait` false only until all is in the queue that
    /// can be asked now. `seen` hears of ended and asked requests.
    ///
    /// # Errors
    /// If the queue or the store refuses or is away for long, or the disk fails.
    pub async fn run(
        &mut self,
        wait: bool,
        stop: &CancellationToken,
        seen: impl Fn(u64, u64),
    ) -> Result<Finish, ConductError> {
        let mut failures = 0;
        loop {
            match self.turn(wait, stop, &seen).await {
                Ok(Some(finish)) => return Ok(finish),
                Ok(None) => failures = 0,
                Err(error) if error.is_passing() && failures < TRIES => {
                    failures += 1;
                    let pause = retry::delay(failures, None, random());
                    warn!(%error, ?pause, "the night waits");
                    tokio::select! {
                        () = stop.cancelled() => return Ok(Finish::Stopped),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Asks what is to be asked, looks at what is answered, and waits for more.
    async fn turn(
        &mut self,
        wait: bool,
        stop: &CancellationToken,
        seen: &impl Fn(u64, u64),
    ) -> Result<Option<Finish>, ConductError> {
        // What was asked before a crash may be answered by now: it must be in the queue to be looked at.
        self.enqueue().await?;
        self.advance().await?;
        if self.enqueue().await? == Enqueue::Cancelled {
            return self.cancelled().await.map(Some);
        }
        let open = self.asks.open_count();
        let asked = self.asks.asked().len();
        seen((asked - open) as u64, asked as u64);
        if open == 0 && self.asks.all_ended() {
            self.close().await?;
            return Ok(Some(Finish::Over));
        }
        if !wait {
            return Ok(Some(Finish::Sent));
        }
        self.wait(open as u64, stop, seen).await
    }

    /// Waits until enough has ended that a look-up is worth it.
    async fn wait(
        &mut self,
        open: u64,
        stop: &CancellationToken,
        seen: &impl Fn(u64, u64),
    ) -> Result<Option<Finish>, ConductError> {
        let asked = self.asks.asked().len() as u64;
        let ended_before = asked - open;
        let look_up_at = Instant::now() + LOOK_UP_ANYHOW;
        let mut pause = LOOK_FIRST;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(Some(Finish::Stopped)),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LOOK_AT_LAST);
            if self.is_over(Timestamp::now()) {
                self.give_up("it was not answered in time").await?;
                return Ok(Some(Finish::Late));
            }
            let batch = self.store.batch(&self.batch).await?;
            if batch.is_some_and(|batch| batch.state == BatchState::Cancelled) {
                return self.cancelled().await.map(Some);
            }
            let ended = self.store.running(&self.batch, Timestamp::now()).await?.totals().ended();
            seen(ended.min(asked), asked);
            // A tenth of what is open: each request is looked up some times and not some hundred.
            let is_worth_it = ended >= asked || ended >= ended_before + open.div_ceil(10);
            if is_worth_it || Instant::now() >= look_up_at {
                return Ok(None);
            }
        }
    }

    /// Looks up what is open, and moves all documents on as far as they can go.
    async fn advance(&mut self) -> Result<(), ConductError> {
        for keys in self.asks.open().chunks(LOOKED_UP) {
            let found = look_up(self.store, &self.batch, keys).await?;
            let ended =
                keys.iter().zip(found).filter_map(|(key, found)| Some((*key, found?.ending())));
            // An answer is read here only if something hangs on it.
            let (plain, read): (Vec<_>, Vec<_>) =
                ended.partition(|(_, e)| *e == Ending::Succeeded && self.recipe.schema.is_none());
            for (key, _) in plain {
                self.asks.set(&key, State::Answered { batch: self.tonight, usage: None });
            }
            let keys: Vec<_> = read.into_iter().map(|(key, _)| key).collect();
            for (key, outcome) in self.outcomes(&keys).await? {
                if let Some(outcome) = outcome {
                    let state = self.judge(key, &outcome)?;
                    self.asks.set(&key, state);
                }
            }
        }
        self.combine().await
    }

    /// What becomes of a request that has ended.
    fn judge(&mut self, key: Key, outcome: &Outcome) -> Result<State, ConductError> {
        let (batch, usage) = (self.tonight, Some(outcome.usage));
        let why = match outcome.ending {
            Ending::Succeeded => {
                let text = answer::text(outcome).unwrap_or_default();
                let fault = self.recipe.schema.as_ref().and_then(|schema| schema.read(&text).err());
                let Some(fault) = fault else { return Ok(State::Answered { batch, usage }) };
                if let Some(by) = self.repair(key, &text, &fault)? {
                    return Ok(State::Repaired { batch, usage, by });
                }
                format!("the answer does not fit the schema, even mended: {fault}")
            }
            Ending::Failed => answer::failure(outcome).into(),
            Ending::Dead | Ending::Cancelled | Ending::Expired => {
                return Ok(State::Unfinished { why: answer::failure(outcome) });
            }
        };
        Ok(State::Failed { batch, usage, why: why.into() })
    }

    /// Asks once more, unless this was the second time.
    fn repair(&mut self, key: Key, text: &str, fault: &str) -> Result<Option<Key>, ConductError> {
        if self.asks.get(&key).is_none_or(|ask| ask.repairs.is_some()) {
            return Ok(None);
        }
        let line: serde_json::Value = serde_json::from_str(&self.asks.line(&key)?)?;
        let document = line["metadata"]["document"].as_str().unwrap_or_default().to_owned();
        let terms = Terms { document, ..self.terms.clone() };
        let body = template::repair(&line["body"], text, fault);
        Ok(Some(self.asks.ask(&body, &terms, Some(key))?))
    }

    /// Combines the answers of those documents that have all of them.
    async fn combine(&mut self) -> Result<(), ConductError> {
        let Some(reduce) = self.recipe.reduce.clone() else { return Ok(()) };
        let recipe = self.recipe.clone();
        let templates = Templates::new(&recipe)?;
        for n in 0..self.documents.len() {
            while reduce::is_ready(&self.documents[n], &self.asks) {
                let level = self.documents[n].level.clone();
                let found = self.answers(&level).await?;
                let document = &self.documents[n];
                let combining = Combining { templates: &templates, reduce: &reduce };
                let groups = combining.groups(document, level, &found)?;
                let terms = Terms { document: document.name.clone(), ..self.terms.clone() };
                let next = groups.ask(self.earlier, &mut self.asks, &terms).await?;
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

    /// The texts of answered requests, in their order, and their usage taken down.
    async fn answers(&mut self, keys: &[Key]) -> Result<Vec<String>, ConductError> {
        let mut texts = Vec::with_capacity(keys.len());
        for (key, outcome) in self.outcomes(keys).await? {
            let text = outcome.as_ref().and_then(answer::text);
            texts.push(text.unwrap_or_default());
            if let (State::Answered { batch, usage: None }, Some(outcome)) =
                (self.asks.state(&key).1.clone(), outcome)
            {
                let (by, _) = self.asks.state(&key);
                self.asks.set(&by, State::Answered { batch, usage: Some(outcome.usage) });
            }
        }
        Ok(texts)
    }

    /// The outcomes of these requests, wherever they lie, in their order.
    pub(super) async fn outcomes(
        &self,
        keys: &[Key],
    ) -> Result<Vec<(Key, Option<Outcome>)>, ConductError> {
        let read = keys.iter().map(|key| async move {
            let (by, state) = self.asks.state(key);
            let batch = super::ledger::batch_of(state).unwrap_or(self.tonight);
            let batch = &self.batches[usize::from(batch)];
            let outcome = self.store.outcome(batch, &by.to_string()).await?;
            Ok::<_, StoreError>((*key, outcome))
        });
        Ok(stream::iter(read).buffered(READ_AT_A_TIME).try_collect().await?)
    }

    /// Sends what was added.
    async fn enqueue(&mut self) -> Result<Enqueue, ConductError> {
        if self.asks.to_send(1).next().is_none() {
            return Ok(Enqueue::Done);
        }
        let Some(mut open) = OpenBatch::open(&self.batch, self.store).await? else {
            return Ok(Enqueue::Cancelled);
        };
        // Counted before the first is sent: nobody must take the batch for done.
        open.document.jobs = open.document.jobs.max(self.jobs());
        self.store.put_batch(&open.document).await?;
        loop {
            let next: Vec<_> = self.asks.to_send(CHUNK).map(|(n, key)| (n, *key)).collect();
            if next.is_empty() {
                break;
            }
            let mut jobs = Vec::with_capacity(next.len());
            for (position, key) in &next {
                let line = self.asks.line(key)?;
                match intake::read_line(&line, &self.reading) {
                    Ok(job) if line.len() <= self.reading.max_line_bytes => {
                        jobs.push(job.into_job(&self.batch, *position));
                    }
                    Ok(_) => self.is_unfit(
                        *key,
                        &LineFault::TooLong {
                            bytes: line.len(),
                            limit: self.reading.max_line_bytes,
                        },
                    ),
                    Err(fault) => self.is_unfit(*key, &fault),
                }
            }
            let tokens = jobs.iter().filter_map(|job| job.estimate).map(|e| u64::from(e.prompt));
            open.document.prompt_tokens += tokens.sum::<u64>();
            open.send_unknown(jobs, (self.queue, self.store)).await?;
            self.asks.were_sent(next.len());
        }
        open.document.jobs = self.jobs();
        self.store.put_batch(&open.document).await?;
        Ok(Enqueue::Done)
    }

    fn jobs(&self) -> u64 {
        self.asks.asked().len() as u64 - self.unfit
    }

    fn is_unfit(&mut self, key: Key, fault: &LineFault) {
        self.unfit += 1;
        self.asks.set(&key, State::Unfinished { why: fault.to_string().into() });
    }

    /// Nothing more will come into the batch.
    async fn close(&self) -> Result<(), ConductError> {
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

    fn is_over(&self, now: Timestamp) -> bool {
        self.reading.terms.deadline.is_some_and(|by| now > by + self.patience)
    }

    async fn cancelled(&mut self) -> Result<Finish, ConductError> {
        self.give_up("the night was cancelled").await?;
        Ok(Finish::Cancelled)
    }

    /// Looks at what is open a last time, and lets the rest be.
    async fn give_up(&mut self, why: &str) -> Result<(), ConductError> {
        self.advance().await?;
        self.asks.were_sent(self.asks.asked().len() - self.asks.sent());
        for key in self.asks.open() {
            self.asks.set(&key, State::Unfinished { why: why.into() });
        }
        self.close().await
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enqueue {
    Done,
    Cancelled,
}
