//! Dead letters come in again as new jobs, or are let go.
//!
//! A dead letter has an outcome, and outcomes are never written over. So to work its job again:
//! 1. the store **withdraws** the outcome, only if it ended as dead; what it cost stays counted;
//! 2. the queue **sends** the job anew, to be looked up before any call;
//! 3. the queue **deletes** the dead letter.
//!
//! A crash after 1 leaves a dead letter without an outcome, one after 2 a dead letter beside its
//! new job: both are finished by doing it again. Whatever the new job ended as by then is seen in
//! step 1, and its old dead letter just goes.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use domain::job::{Amendment, BatchId, Job};
use domain::outcome::{Ending, Failure, Outcome, Usage};
use queue::{DeadLetter, DeadLetterReason, Queue, QueueError};
use store::{BatchState, Store, StoreError};

/// Dead letters that are looked at, or worked on, together.
const PAGE: usize = 250;

/// Why dead letters could not be worked on. Doing it again goes on where this ended.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of the chosen dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resubmitted {
    /// Jobs that are in the queue again.
    pub jobs: u64,
    /// Dead letters that were deleted, since their jobs have ended otherwise meanwhile.
    pub known: u64,
    /// Dead letters that stay: no jobs, too large, or held by somebody else at the moment.
    pub left: u64,
}

/// Works the chosen dead letters again, amended: delivery count and tries begin anew, the history
/// goes on.
/// Dead letters that are added meanwhile are not looked at.
///
/// # Errors
/// What the queue or the store said.
pub async fn resubmit(
    chosen: impl Fn(&DeadLetter) -> bool,
    amendment: &Amendment,
    queue: &dyn Queue,
    store: &dyn Store,
) -> Result<Resubmitted, DeadLetterError> {
    let mut done = Resubmitted::default();
    let named = list(chosen, queue).await?;
    for page in named.chunks(PAGE) {
        let (mut again, mut known) = (Vec::new(), Vec::new());
        for (batch, letters) in by_batch(page) {
            reopen(batch, store).await?;
            let names: Vec<_> = letters.iter().map(|(_, name)| name.custom_id.as_str()).collect();
            let stand = store.withdraw_dead(batch, &names).await?;
            for ((number, name), stands) in letters.into_iter().zip(stand) {
                if stands.is_some() {
                    known.push(number);
                    forget_payload(name, store).await?;
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

/// Deletes the chosen dead letters; returns how many. Their jobs stay ended as dead; one that the
/// queue itself had set aside, and that has no outcome therefore, is recorded so first.
///
/// # Errors
/// What the queue or the store said.
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
        for payload in letters.filter_map(|letter| letter.job()?.payload()) {
            store.delete_payload(&payload).await?;
        }
    }
}

/// Looks at all dead letters, oldest first, a page at a time.
///
/// # Errors
/// What the queue said.
pub async fn visit(
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

/// The job behind a dead letter.
struct Named {
    batch: BatchId,
    custom_id: String,
    payload: Option<String>,
}

type Numbered = (i64, Option<Named>);

async fn list(
    chosen: impl Fn(&DeadLetter) -> bool,
    queue: &dyn Queue,
) -> Result<Vec<Numbered>, QueueError> {
    let mut named = Vec::new();
    let mut from = 0;
    loop {
        let page = queue.dead_letters(from, PAGE).await?;
        let Some(last) = page.last() else { return Ok(named) };
        from = last.number + 1;
        named.extend(page.iter().filter(|letter| chosen(letter)).map(|letter| {
            let name = |job: Job| Named {
                payload: job.payload(),
                batch: job.batch_id,
                custom_id: job.custom_id,
            };
            (letter.number, letter.job().map(name))
        }));
    }
}

fn by_batch(page: &[Numbered]) -> BTreeMap<&BatchId, Vec<(i64, &Named)>> {
    let mut batches: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (number, name) in page {
        if let Some(name) = name {
            batches.entry(&name.batch).or_default().push((*number, name));
        }
    }
    batches
}

/// A batch with a job to be worked is not done.
async fn reopen(batch: &BatchId, store: &dyn Store) -> Result<(), StoreError> {
    store.change_state(batch, &[BatchState::Done], BatchState::Running, None).await.map(drop)
}

async fn forget_payload(name: &Named, store: &dyn Store) -> Result<(), StoreError> {
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
        ending: Ending::Dead,
        status_code: None,
        request_id: None,
        body: None,
        failure: Some(Failure { code: reason, message: description }),
        usage: Usage::default(),
        service_tier: None,
        attempts: job.history.tries,
        throttled: job.history.throttled,
        deployment: String::new(),
        model: job.model,
        latency_ms: 0,
        finished_at: Timestamp::now(),
        deadline: job.deadline,
        metadata: job.metadata,
    })
}
