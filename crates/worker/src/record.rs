//! Outcomes become durable in groups, and only then is any job settled.
//!
//! Two tasks in a row: while one group is being settled the next is being recorded. While the store
//! is away the first task holds its group and tries again; the bounded channel before it then
//! fills, calls keep their permits, and no new call starts.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use super::batch_handle::{BatchDisposition, BatchHandle};
use super::command::DispatcherCommand;
use super::exit::WorkerError;
use super::leases::{BoxedJob, LeaseSlot, LeasedJob};
use super::retry;
use domain::outcome::{JobFailure, Outcome, OutcomeStatus};
use model::ModelResponse;
use model::verdict::ErrorReply;
use queue::{DeadLetterReason, Delivery, Queue, Settlement};
use store::{BatchState, Recorded, Store, StoreError};
use telemetry::{RecordSpan, WorkerProgress};

/// Most outcomes recorded together.
const MAX_GROUP: usize = 1024;

/// Time that a group waits to grow; nothing beside a call's seconds.
const LINGER: Duration = Duration::from_millis(10);

/// Group size from which groups wait to grow: an answer that waits is one that a kill would make us
/// pay again.
const MIN_GROUP_TO_WAIT: usize = 64;

/// Payloads deleted at a time.
const DELETIONS: usize = 8;

/// Job that has ended and is not recorded yet.
pub(super) struct FinishedJob {
    held: BoxedJob,
    ended_at: Instant,
    outcome: Outcome,
    dead_letter: Option<DeadLetterReason>,
}

impl FinishedJob {
    pub(super) fn answered(
        held: BoxedJob,
        deployment: &str,
        reply: ModelResponse,
        latency: Duration,
    ) -> Box<Self> {
        let mut finished = Self::ended(held, OutcomeStatus::Succeeded, None);
        let outcome = &mut finished.outcome;
        outcome.status_code = Some(reply.status);
        outcome.request_id = reply.request_id;
        outcome.body = Some(reply.body);
        outcome.usage += reply.usage;
        outcome.finish = reply.finish;
        outcome.flaw = reply.flaw;
        outcome.service_tier = reply.service_tier;
        outcome.deployment = deployment.into();
        outcome.latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        finished
    }

    pub(super) fn refused(
        held: BoxedJob,
        deployment: &str,
        error: ErrorReply,
        latency: Duration,
    ) -> Box<Self> {
        let mut finished = Self::ended(held, OutcomeStatus::Failed, Some(error));
        finished.outcome.deployment = deployment.into();
        finished.outcome.latency_ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        finished
    }

    /// Ends a job without a call, by our own decision.
    pub(super) fn turned_away(
        held: BoxedJob,
        ending: OutcomeStatus,
        code: &str,
        message: String,
    ) -> Box<Self> {
        let mut finished = Self::ended(held, ending, None);
        finished.outcome.failure = Some(JobFailure { code: code.into(), message });
        finished
    }

    pub(super) fn cancelled(held: BoxedJob) -> Box<Self> {
        let message = "its batch was cancelled before it was answered".to_owned();
        Self::turned_away(held, OutcomeStatus::Cancelled, "batch_cancelled", message)
    }

    /// Ends a job as dead; the last error, if there was one, is the outcome's.
    pub(super) fn dead(mut held: BoxedJob, reason: &str, mut description: String) -> Box<Self> {
        let last = held.last_error.take();
        if let (None, Some(earlier)) = (&last, &held.delivery.job.history.last_error) {
            description = format!("{description}; its last attempt ended with {earlier}");
        }
        let mut finished = Self::ended(held, OutcomeStatus::Dead, last);
        finished.outcome.failure.get_or_insert_with(|| JobFailure {
            code: reason.to_owned(),
            message: description.clone(),
        });
        finished.dead_letter = Some(DeadLetterReason { reason: reason.to_owned(), description });
        finished
    }

    fn ended(held: BoxedJob, ending: OutcomeStatus, error: Option<ErrorReply>) -> Box<Self> {
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
            usage: held.spent,
            finish: None,
            flaw: None,
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
        Box::new(Self { held, ended_at: Instant::now(), outcome, dead_letter: None })
    }
}

/// Settlements whose outcomes are durable, with the slots that they free.
pub(super) struct SettlementGroup {
    settlements: Vec<Settlement>,
    slots: Vec<LeaseSlot>,
    recorded_at: Instant,
}

impl SettlementGroup {
    /// Returns the settlement of a message whose job had its outcome before.
    pub(super) fn known(held: BoxedJob, proof: Recorded) -> Self {
        let LeasedJob { delivery, slot, .. } = *held;
        let settlements = vec![settlement(delivery, proof, None)];
        Self { settlements, slots: vec![slot], recorded_at: Instant::now() }
    }
}

/// Records outcomes in groups, and pauses batches of which too many jobs fail.
pub(super) struct Recorder {
    pub(super) store: Arc<dyn Store>,
    pub(super) to_settle: mpsc::Sender<SettlementGroup>,
    pub(super) commands: mpsc::Sender<DispatcherCommand>,
    pub(super) progress: Arc<WorkerProgress>,
}

impl Recorder {
    /// Records all finished jobs and has them settled, until the channel is closed and empty.
    pub(super) async fn record_all(
        self,
        mut finished: mpsc::Receiver<Box<FinishedJob>>,
    ) -> Result<(), WorkerError> {
        let mut group = Vec::with_capacity(MAX_GROUP);
        let mut last = 0;
        while finished.recv_many(&mut group, MAX_GROUP).await > 0 {
            if group.len().max(last) >= MIN_GROUP_TO_WAIT {
                fill_group(&mut finished, &mut group).await;
            }
            last = group.len();
            let recorded = self.record_group(group.drain(..)).await?;
            if self.to_settle.send(recorded).await.is_err() {
                // The settler failed and says why.
                break;
            }
        }
        Ok(())
    }

    async fn record_group(
        &self,
        group: impl Iterator<Item = Box<FinishedJob>>,
    ) -> Result<SettlementGroup, WorkerError> {
        let mut outcomes = Vec::new();
        let mut waiting = Vec::new();
        let mut ends = Vec::new();
        for finished in group {
            let FinishedJob { held, ended_at: ended, outcome, dead_letter: dead } = *finished;
            ends.push(ended);
            outcomes.push(outcome);
            waiting.push((held, dead));
        }
        let outcomes = Arc::new(outcomes);
        let recording = RecordSpan::begin();
        let proofs = retry::until_reachable(|| self.store.record(outcomes.clone())).await?;
        let parents = waiting.iter().map(|(held, _)| held.delivery.job.history.traceparent);
        recording.end(&outcomes, &proofs, parents);
        self.progress.add_recorded(&outcomes, &proofs);
        let recorded = Instant::now();
        self.progress.commits.fetch_add(1, Ordering::Relaxed);
        self.progress
            .record_latency
            .add(ends.into_iter().map(|ended| recorded.duration_since(ended)));
        let mut group =
            SettlementGroup { settlements: Vec::new(), slots: Vec::new(), recorded_at: recorded };
        let mut done = Vec::new();
        for (((held, dead), proof), outcome) in waiting.into_iter().zip(proofs).zip(outcomes.iter())
        {
            if proof.is_first()
                && let Some(why) = held.batch.observe(outcome)
            {
                self.pause(&held.batch, &why).await?;
            }
            let LeasedJob { delivery, slot: place, .. } = *held;
            done.extend(obsolete_payload(&delivery, proof));
            group.settlements.push(settlement(delivery, proof, dead));
            group.slots.push(place);
        }
        delete_payloads(self.store.as_ref(), done).await;
        Ok(group)
    }

    /// Pauses a batch. What is in flight ends, and is paid; nothing new starts.
    async fn pause(&self, batch: &BatchHandle, why: &str) -> Result<(), StoreError> {
        batch.set_disposition(BatchDisposition::Park);
        // The dispatcher may wait for us; then it hears of it from the watch of the batches.
        let _ = self.commands.try_send(DispatcherCommand::Recheck);
        warn!(batch.id = %batch.id(), why, "the batch is paused");
        let running = [BatchState::Enqueuing, BatchState::Running];
        let pause = || self.store.change_state(batch.id(), &running, BatchState::Paused, Some(why));
        retry::until_reachable(pause).await.map(drop)
    }
}

/// Waits a moment for more outcomes: one commit costs about the same for one as for many.
async fn fill_group<T>(finished: &mut mpsc::Receiver<T>, group: &mut Vec<T>) {
    let until = Instant::now() + LINGER;
    while group.len() < MAX_GROUP {
        let room = MAX_GROUP - group.len();
        match tokio::time::timeout_at(until, finished.recv_many(group, room)).await {
            Ok(received) if received > 0 => {}
            _ => return,
        }
    }
}

/// Returns the settlement. The recorded outcome decides, whatever this worker came to.
pub(super) fn settlement(
    delivery: Delivery,
    proof: Recorded,
    dead: Option<DeadLetterReason>,
) -> Settlement {
    if proof.ending() == OutcomeStatus::Dead {
        return delivery.dead_letter(proof, dead.unwrap_or_else(reason_unknown));
    }
    delivery.complete(proof)
}

fn reason_unknown() -> DeadLetterReason {
    DeadLetterReason {
        reason: "RetriesExhausted".into(),
        description:
            "recorded as dead by a worker that stopped before it could dead-letter the message"
                .into(),
    }
}

/// Returns the payload that is not needed any more. A dead letter's is kept for resubmission.
pub(super) fn obsolete_payload(delivery: &Delivery, proof: Recorded) -> Option<String> {
    delivery.job.payload_name().filter(|_| proof.ending() != OutcomeStatus::Dead)
}

/// Deletes payloads. Call it between recording and settling: a worker that gets the job again finds
/// its outcome and needs no body. So a crash leaves none behind: the redelivery deletes it.
pub(super) async fn delete_payloads(store: &dyn Store, names: Vec<String>) {
    let delete = |name: String| async move {
        if let Err(error) = store.delete_payload(&name).await {
            warn!(%error, payload = name, "could not delete a request body; it is removed when it expires");
        }
    };
    stream::iter(names).map(delete).buffer_unordered(DELETIONS).collect::<()>().await;
}

/// Settles the jobs whose outcomes are recorded, until the channel is closed and empty.
pub(super) async fn settle_all(
    queue: Arc<dyn Queue>,
    mut recorded: mpsc::Receiver<SettlementGroup>,
    progress: Arc<WorkerProgress>,
) -> Result<(), WorkerError> {
    while let Some(SettlementGroup { settlements, slots, recorded_at }) = recorded.recv().await {
        match queue.settle(settlements).await {
            Ok(()) => progress.settle_latency.add(slots.iter().map(|_| recorded_at.elapsed())),
            // The outcomes are safe. Jobs that could not be settled come again and are looked up.
            Err(error) if error.is_transient() => {
                warn!(%error, jobs = slots.len(), "could not settle jobs; they will be redelivered and looked up");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
