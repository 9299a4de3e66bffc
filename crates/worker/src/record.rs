//! Outcomes become durable in groups, and only then is anything settled.
//!
//! Two tasks in a row: while one group is being settled the next is being recorded. While the store
//! is away the first task holds its group and tries again; the bounded channel before it then fills,
//! calls keep their permits, and no new call starts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use rand::random;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use super::held::{Held, InHand, Place};
use super::{WorkerError, retry};
use domain::outcome::{Ending, Failure, Outcome, Usage};
use model::Reply;
use model::verdict::ErrorReply;
use queue::{DeadLetterReason, Delivery, Queue, QueueError, Settlement};
use store::{Recorded, Store, StoreError};
use telemetry::{Progress, Recording};

/// Outcomes recorded together at the most.
const GROUP: usize = 1024;

/// How long a group waits to grow; nothing beside a call's seconds.
const LINGER: Duration = Duration::from_millis(10);

/// Groups wait only where outcomes come this fast: an answer that waits is one that a kill would make
/// us pay again.
const WORTH_WAITING: usize = 64;

/// Payloads deleted at a time.
const DELETIONS: usize = 8;

/// Groups between recording and settling.
const GROUPS_BETWEEN: usize = 2;

/// A job that has ended and is not recorded yet.
pub(super) struct Finished {
    held: Held,
    ended: Instant,
    outcome: Outcome,
    dead: Option<DeadLetterReason>,
}

impl Finished {
    pub(super) fn answered(
        held: Held,
        deployment: &str,
        reply: Reply,
        latency: Duration,
    ) -> Box<Self> {
        let mut finished = Self::ended(held, Ending::Succeeded, None);
        let outcome = &mut finished.outcome;
        outcome.status_code = Some(reply.status);
        outcome.request_id = reply.request_id;
        outcome.body = Some(reply.body);
        outcome.usage = reply.usage;
        outcome.service_tier = reply.service_tier;
        outcome.deployment = deployment.into();
        outcome.latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        finished
    }

    pub(super) fn refused(
        held: Held,
        deployment: &str,
        error: ErrorReply,
        latency: Duration,
    ) -> Box<Self> {
        let mut finished = Self::ended(held, Ending::Failed, Some(error));
        finished.outcome.deployment = deployment.into();
        finished.outcome.latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        finished
    }

    /// Ended without a call, by our own judgement.
    pub(super) fn turned_away(
        held: Held,
        ending: Ending,
        code: &str,
        message: String,
    ) -> Box<Self> {
        let mut finished = Self::ended(held, ending, None);
        finished.outcome.failure = Some(Failure { code: code.into(), message });
        finished
    }

    pub(super) fn cancelled(held: Held) -> Box<Self> {
        let message = "its batch was cancelled before it was answered".to_owned();
        Self::turned_away(held, Ending::Cancelled, "batch_cancelled", message)
    }

    /// All tries are used up; the last error, if there was one, is the outcome's.
    pub(super) fn dead(mut held: Held, reason: &str, mut description: String) -> Box<Self> {
        let last = held.last_error.take();
        if let (None, Some(earlier)) = (&last, &held.delivery.job.history.last_error) {
            description = format!("{description}; its last try ended with {earlier}");
        }
        let mut finished = Self::ended(held, Ending::Dead, last);
        finished.outcome.failure.get_or_insert_with(|| Failure {
            code: reason.to_owned(),
            message: description.clone(),
        });
        finished.dead = Some(DeadLetterReason { reason: reason.to_owned(), description });
        finished
    }

    fn ended(held: Held, ending: Ending, error: Option<ErrorReply>) -> Box<Self> {
        let job = &held.delivery.job;
        let mut outcome = Outcome {
            job_id: job.id,
            batch_id: job.batch_id.clone(),
            custom_id: job.custom_id.clone(),
            position: job.position,
            digest: job.digest(),
            ending,
            status_code: None,
            request_id: None,
            body: None,
            failure: None,
            usage: Usage::default(),
            service_tier: None,
            attempts: held.attempts,
            throttled: job.history.throttled,
            deployment: String::new(),
            model: job.model.clone(),
            latency_ms: 0,
            finished_at: Timestamp::now(),
            deadline: job.deadline,
            metadata: job.metadata.clone(),
        };
        if let Some(error) = error {
            outcome.status_code = error.status;
            outcome.request_id = error.request_id;
            outcome.body = error.body;
            outcome.failure = Some(error.failure);
        }
        Box::new(Self { held, ended: Instant::now(), outcome, dead: None })
    }
}

/// Settlements whose outcomes are durable, with the places that they free.
struct Group {
    settlements: Vec<Settlement>,
    places: Vec<Place>,
    recorded: Instant,
}

/// Records and settles all that comes, until the channel is closed and empty.
pub(super) async fn record_all(
    store: Arc<dyn Store>,
    queue: Arc<dyn Queue>,
    mut finished: mpsc::Receiver<Box<Finished>>,
    progress: Arc<Progress>,
) -> Result<(), WorkerError> {
    let (recorded, to_settle) = mpsc::channel(GROUPS_BETWEEN);
    let settling = tokio::spawn(settle_all(queue, to_settle, progress.clone()));
    let mut group = Vec::with_capacity(GROUP);
    let mut last = 0;
    while finished.recv_many(&mut group, GROUP).await > 0 {
        if group.len().max(last) >= WORTH_WAITING {
            gather(&mut finished, &mut group).await;
        }
        last = group.len();
        let done = record_group(store.as_ref(), group.drain(..), &progress).await?;
        if recorded.send(done).await.is_err() {
            break;
        }
    }
    drop(recorded);
    settling.await.map_err(|_| WorkerError::Panicked)?
}

/// Waits a moment for company: one commit costs about the same for one outcome as for many.
async fn gather<T>(finished: &mut mpsc::Receiver<T>, group: &mut Vec<T>) {
    let until = Instant::now() + LINGER;
    while group.len() < GROUP {
        let room = GROUP - group.len();
        match tokio::time::timeout_at(until, finished.recv_many(group, room)).await {
            Ok(received) if received > 0 => {}
            _ => return,
        }
    }
}

async fn record_group(
    store: &dyn Store,
    group: impl Iterator<Item = Box<Finished>>,
    progress: &Progress,
) -> Result<Group, WorkerError> {
    let mut outcomes = Vec::new();
    let mut waiting = Vec::new();
    let mut ends = Vec::new();
    for finished in group {
        let Finished { held, ended, outcome, dead } = *finished;
        ends.push(ended);
        outcomes.push(outcome);
        waiting.push((held, dead));
    }
    let outcomes = Arc::new(outcomes);
    let recording = Recording::begin();
    let proofs = until_reached(|| store.record(outcomes.clone())).await?;
    let parents = waiting.iter().map(|(held, _)| held.delivery.job.history.traceparent);
    recording.end(&outcomes, &proofs, parents);
    progress.count(&outcomes, &proofs);
    let recorded = Instant::now();
    progress.commits.fetch_add(1, Ordering::Relaxed);
    progress.record.add(ends.into_iter().map(|ended| recorded.duration_since(ended)));
    let mut group = Group { settlements: Vec::new(), places: Vec::new(), recorded };
    let mut done = Vec::new();
    for ((held, dead), proof) in waiting.into_iter().zip(proofs) {
        let InHand { delivery, place, .. } = *held;
        done.extend(done_with(&delivery, proof));
        group.settlements.push(settlement(delivery, proof, dead));
        group.places.push(place);
    }
    delete_payloads(store, done).await;
    Ok(group)
}

/// What is recorded decides, whatever this worker came to.
pub(super) fn settlement(
    delivery: Delivery,
    proof: Recorded,
    dead: Option<DeadLetterReason>,
) -> Settlement {
    if proof.ending() == Ending::Dead {
        return delivery.dead_letter(proof, dead.unwrap_or_else(died_before));
    }
    delivery.complete(proof)
}

fn died_before() -> DeadLetterReason {
    DeadLetterReason {
        reason: "RetriesExhausted".into(),
        description: "recorded as dead by a worker that stopped before it could say so here".into(),
    }
}

/// The payload that nobody needs any more. One of a dead letter is kept for its resubmission.
pub(super) fn done_with(delivery: &Delivery, proof: Recorded) -> Option<String> {
    delivery.job.payload().filter(|_| proof.ending() != Ending::Dead)
}

/// To be called between recording and settling: whoever comes to the job again finds its outcome and
/// needs no body. So a crash leaves none behind: the redelivery deletes it.
pub(super) async fn delete_payloads(store: &dyn Store, names: Vec<String>) {
    let delete = |name: String| async move {
        if let Err(error) = store.delete_payload(&name).await {
            warn!(%error, payload = name, "a body is left behind; it goes when its time is over");
        }
    };
    stream::iter(names).map(delete).buffer_unordered(DELETIONS).collect::<()>().await;
}

async fn settle_all(
    queue: Arc<dyn Queue>,
    mut groups: mpsc::Receiver<Group>,
    progress: Arc<Progress>,
) -> Result<(), WorkerError> {
    while let Some(Group { settlements, places, recorded }) = groups.recv().await {
        match queue.settle(settlements).await {
            Ok(()) => progress.settle.add(places.iter().map(|_| recorded.elapsed())),
            // The outcomes are safe. What could not be settled comes again and is looked up.
            Err(QueueError::Unavailable(error)) => {
                warn!(%error, jobs = places.len(), "could not settle; redelivery will");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Asks a store again, with backoff, for as long as it is merely out of reach.
pub(super) async fn until_reached<T, F>(mut ask: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut failures = 0;
    loop {
        match ask().await {
            Err(StoreError::Unavailable(error)) => {
                failures += 1;
                let pause = retry::delay(failures, None, random());
                warn!(%error, ?pause, "the store can't be reached; outcomes are held");
                tokio::time::sleep(pause).await;
            }
            decided => return decided,
        }
    }
}
