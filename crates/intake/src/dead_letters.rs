//! Dead letters enter again as new jobs, or are discarded.
//!
//! A dead letter has an outcome, and outcomes are never overwritten. So to work its job again:
//! 1. the store **withdraws** the outcome, only if it ended as dead; its cost stays counted;
//! 2. the queue **sends** the job anew, to be looked up before any call;
//! 3. the queue **deletes** the dead letter.
//!
//! A crash after 1 leaves a dead letter without an outcome, one after 2 a dead letter beside its
//! new job: both are finished by running it again. If the new job has ended by then, step 1 sees
//! its outcome, and the old dead letter is only deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use domain::job::{Amendment, BatchId, Job};
use domain::outcome::{JobFailure, Outcome, OutcomeStatus, TokenUsage};
use queue::{DeadLetter, DeadLetterReason, Queue, QueueError};
use store::{BatchState, Store, StoreError};

/// Dead letters that are read, or worked on, together.
const PAGE: usize = 250;

/// Reason why dead letters could not be worked on. Running it again goes on where this ended.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Result for the chosen dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResubmitCounts {
    /// Jobs that are in the queue again.
    pub jobs: u64,
    /// Dead letters that were deleted, since their jobs have ended otherwise meanwhile.
    pub known: u64,
    /// Dead letters that stay: no jobs, too large, or locked by somebody else at the moment.
    pub left: u64,
}

/// Puts the chosen dead letters back as jobs, amended: delivery count and attempts begin anew, the
/// history goes on. Dead letters that are added meanwhile are not considered.
///
/// # Errors
/// The queue's or the store's error.
pub async fn resubmit(
    chosen: impl Fn(&DeadLetter) -> bool,
    amendment: &Amendment,
    queue: &dyn Queue,
    store: &dyn Store,
) -> Result<ResubmitCounts, DeadLetterError> {
    let mut done = ResubmitCounts::default();
    let named = list(chosen, queue).await?;
    for page in named.chunks(PAGE) {
        let (mut again, mut known) = (Vec::new(), Vec::new());
        for (batch, letters) in by_batch(page) {
            reopen(batch, store).await?;
            let names: Vec<_> = letters.iter().map(|(_, name)| name.custom_id.as_str()).collect();
            let stand = store.reopen_dead(batch, &names).await?;
            for ((number, name), stands) in letters.into_iter().zip(stand) {
                if stands.is_some() {
                    known.push(number);
                    delete_payload(name, store).await?;
                } else {
                    again.push(number);
                }
            }
        }
        let jobs = queue.resubmit(&again, amendment).await?.len();
        let gone = queue.discard(&known).await?.len();
        done.jobs += jobs as u64;
        done.known += gone as u64;
        done.left += (page.len() - jobs - gone) as u64;
    }
    Ok(done)
}

/// Deletes the chosen dead letters; returns their number. Their jobs stay ended as dead; one that
/// the queue itself dead-lettered, and that has no outcome therefore, is recorded first.
///
/// # Errors
/// The queue's or the store's error.
pub async fn discard(
    chosen: impl Fn(&DeadLetter) -> bool,
    queue: &dyn Queue,
    store: &dyn Store,
) -> Result<u64, DeadLetterError> {
    let mut discarded = 0;
    let mut from = 0;
    loop {
        let page = queue.dead_letters(from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(discarded) };
        from = last.number + 1;
        let letters: Vec<_> = page.iter().filter(|letter| chosen(letter)).collect();
        let outcomes: Vec<_> = letters.iter().filter_map(|letter| outcome_of(letter)).collect();
        store.record(Arc::new(outcomes)).await?;
        let numbers: Vec<_> = letters.iter().map(|letter| letter.number).collect();
        let gone = queue.discard(&numbers).await?;
        discarded += gone.len() as u64;
        let letters = letters.into_iter().filter(|letter| gone.contains(&letter.number));
        for payload in letters.filter_map(|letter| letter.job()?.payload_name()) {
            store.delete_payload(&payload).await?;
        }
    }
}

/// Visits all dead letters, oldest first, a page at a time.
///
/// # Errors
/// The queue's error.
pub async fn for_each_dead_letter(
    queue: &dyn Queue,
    mut see: impl FnMut(&DeadLetter),
) -> Result<(), DeadLetterError> {
    let mut from = 0;
    loop {
        let page = queue.dead_letters(from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        from = last.number + 1;
        page.iter().for_each(&mut see);
    }
}

/// The job in a dead letter.
struct DeadLetterJob {
    batch: BatchId,
    custom_id: String,
    payload: Option<String>,
}

type NumberedDeadLetter = (i64, Option<DeadLetterJob>);

async fn list(
    chosen: impl Fn(&DeadLetter) -> bool,
    queue: &dyn Queue,
) -> Result<Vec<NumberedDeadLetter>, QueueError> {
    let mut named = Vec::new();
    let mut from = 0;
    loop {
        let page = queue.dead_letters(from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(named) };
        from = last.number + 1;
        named.extend(page.iter().filter(|letter| chosen(letter)).map(|letter| {
            let name = |job: Job| DeadLetterJob {
                payload: job.payload_name(),
                batch: job.batch_id,
                custom_id: job.custom_id,
            };
            (letter.number, letter.job().map(name))
        }));
    }
}

fn by_batch(page: &[NumberedDeadLetter]) -> BTreeMap<&BatchId, Vec<(i64, &DeadLetterJob)>> {
    let mut batches: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, name) in page {
        if let Some(name) = name {
            batches.entry(&name.batch).or_default().push((*number, name));
        }
    }
    batches
}

/// Reopens a batch that is done: it has a job to be worked.
async fn reopen(batch: &BatchId, store: &dyn Store) -> Result<(), StoreError> {
    store.change_state(batch, &[BatchState::Done], BatchState::Running, None).await.map(drop)
}

async fn delete_payload(name: &DeadLetterJob, store: &dyn Store) -> Result<(), StoreError> {
    match &name.payload {
        Some(payload) => store.delete_payload(payload).await,
        None => Ok(()),
    }
}

fn outcome_of(letter: &DeadLetter) -> Option<Outcome> {
    let job = letter.job()?;
    let DeadLetterReason { reason, description } = letter.reason.clone();
    Some(Outcome {
        job_id: job.id,
        digest: job.digest(),
        batch_id: job.batch_id,
        custom_id: job.custom_id,
        position: job.position,
        ending: OutcomeStatus::Dead,
        status_code: None,
        request_id: None,
        body: None,
        failure: Some(JobFailure { code: reason, message: description }),
        usage: TokenUsage::default(),
        finish: None,
        flaw: None,
        service_tier: None,
        attempts: job.history.attempts,
        throttled: job.history.throttled,
        deployment: String::new(),
        model: job.model,
        latency_ms: 0,
        finished_at: Timestamp::now(),
        deadline: job.deadline,
        metadata: job.metadata,
    })
}
