//! Takes no more from the queue than there are slots for, and looks redeliveries up before any
//! call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::random;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::batch_registry::{self, BatchDisposition, BatchHandle, BatchRegistry};
use super::defer::DeferredJob;
use super::leases::{BoxedJob, LeaseTable, time_until};
use super::prefetch::PrefetchLimit;
use super::record::{self, FinishedJob};
use super::release::{self, ReleasedJob};
use super::{WorkerError, WorkerSettings, retry};
use domain::job::{BatchId, TokenEstimate};
use queue::{Delivery, Queue, QueueError};
use store::Store;

/// Longest wait of one receive; a stop does not wait for it.
const RECEIVE_WAIT: Duration = Duration::from_secs(10);

/// Interval, while draining, at which we check whether the queue is empty for good.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Time without other jobs after which only paused ones are left, where counting can't tell.
const QUIET_TIME: Duration = Duration::from_secs(60);

pub(super) struct Puller {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn Store>,
    pub(super) leases: Arc<LeaseTable>,
    pub(super) batches: Arc<BatchRegistry>,
    pub(super) prefetch: PrefetchLimit,
    pub(super) settings: WorkerSettings,
    pub(super) to_admission: mpsc::Sender<Vec<BoxedJob>>,
    pub(super) to_defer: mpsc::Sender<DeferredJob>,
    pub(super) to_record: mpsc::Sender<Box<FinishedJob>>,
    /// Time since which only jobs of paused batches have come, and of the next check for others.
    pub(super) only_paused_since: Option<(Instant, Instant)>,
}

/// Reason why pulling ended.
pub(super) enum PullEnd {
    /// A stop, or an empty queue.
    Finished,
    /// Only jobs of these batches are left.
    Paused(Vec<BatchId>),
}

impl Puller {
    /// Pulls until stopped, or, when draining, until no job is left and all is settled.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<PullEnd, WorkerError> {
        let mut failures = 0;
        loop {
            let room = tokio::select! {
                () = stop.cancelled() => return Ok(PullEnd::Finished),
                room = self.prefetch.acquire() => room,
            };
            let Some(room) = room else { return Ok(PullEnd::Finished) };
            let is_draining = self.settings.drain.is_some();
            let wait = if is_draining { DRAIN_POLL_INTERVAL } else { RECEIVE_WAIT };
            let received = tokio::select! {
                () = stop.cancelled() => return Ok(PullEnd::Finished),
                received = self.queue.receive(room.num_permits(), wait) => received,
            };
            match received {
                Ok(deliveries) => {
                    failures = 0;
                    let named = deliveries.iter().map(|delivery| &delivery.job.batch_id);
                    let batches = tokio::select! {
                        () = stop.cancelled() => None,
                        batches = self.batches.handles_for(named) => Some(batches?),
                    };
                    let Some(batches) = batches else {
                        let back = deliveries.into_iter().map(ReleasedJob::from).collect();
                        let max_deliveries = self.settings.max_deliveries;
                        release::release_all(self.queue.as_ref(), back, max_deliveries).await;
                        return Ok(PullEnd::Finished);
                    };
                    let found_work = self.pass_on(deliveries, &batches, room).await?;
                    if found_work {
                        self.only_paused_since = None;
                    } else if self.settings.drain.as_ref().is_some_and(|fed| fed.is_cancelled())
                        && let Some(end) = self.check_drained().await?
                    {
                        return Ok(end);
                    }
                }
                Err(QueueError::Unavailable(error)) => {
                    failures += 1;
                    let pause = retry::delay(failures, None, random());
                    warn!(%error, ?pause, "the queue can't be reached; trying again");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns how pulling ends, if no job is left; first waits until all that we hold is settled.
    async fn check_drained(&mut self) -> Result<Option<PullEnd>, WorkerError> {
        // Retries and scheduled jobs come due meanwhile, so the wait is short and repeated.
        if tokio::time::timeout(DRAIN_POLL_INTERVAL, self.prefetch.wait_until_idle()).await.is_err()
        {
            return Ok(None);
        }
        match self.queue.depth().await {
            Ok(depth) if depth.pending() == 0 => Ok(Some(PullEnd::Finished)),
            Ok(_) if self.batches.any_paused() => self.only_paused().await,
            Ok(_) => Ok(None),
            Err(QueueError::Unavailable(error)) => {
                warn!(%error, "can't tell whether the queue is empty; asking again");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the paused batches, if only their jobs are left. Where the counts can't tell (an
    /// enqueue was interrupted), time does.
    async fn only_paused(&mut self) -> Result<Option<PullEnd>, WorkerError> {
        let now = Instant::now();
        let (since, ask_at) = *self.only_paused_since.get_or_insert((now, now));
        if now < ask_at {
            return Ok(None);
        }
        let left = match &self.settings.only_batch {
            Some(batch) => {
                let batch = record::retry_until_reachable(|| self.store.batch(batch)).await?;
                Some(batch_registry::paused_ids(batch.into_iter().collect()))
            }
            None => {
                let all_else_ended = || batch_registry::only_paused(self.store.as_ref());
                match record::retry_until_reachable(all_else_ended).await? {
                    None if now >= since + QUIET_TIME => {
                        let batches =
                            record::retry_until_reachable(|| self.store.batches()).await?;
                        Some(batch_registry::paused_ids(batches))
                    }
                    left => left,
                }
            }
        };
        // Counting may cost much, and more the longer it takes.
        self.only_paused_since =
            Some((since, Instant::now() + now.elapsed() * 10 + DRAIN_POLL_INTERVAL));
        Ok(left.filter(|paused| !paused.is_empty()).map(PullEnd::Paused))
    }

    /// Returns whether there was anything but jobs of paused batches.
    async fn pass_on(
        &mut self,
        deliveries: Vec<Delivery>,
        batches: &HashMap<BatchId, Arc<BatchHandle>>,
        mut room: OwnedSemaphorePermit,
    ) -> Result<bool, WorkerError> {
        let Some(first) = deliveries.first() else { return Ok(false) };
        self.prefetch.adjust(time_until(first.locked_until), Instant::now());
        let hold = |delivery: Delivery| {
            let place = room.split(1).expect("no more is received than there is room for");
            let estimate = estimate_of(&delivery);
            let batch = batches[&delivery.job.batch_id].clone();
            self.leases.register(delivery, batch, estimate, place)
        };
        let held: Vec<BoxedJob> = deliveries.into_iter().map(hold).collect();
        let received = held.len();
        let (go, stay): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|held| held.batch.disposition() == BatchDisposition::Run);
        let waiting = self.defer_or_cancel(stay).await;
        let (again, mut fresh): (Vec<_>, Vec<_>) = go
            .into_iter()
            .partition(|held| held.delivery.count > 1 || held.delivery.job.may_have_outcome);
        for held in self.settle_known(again).await? {
            if held.delivery.count >= self.settings.max_deliveries {
                self.give_up(held).await;
            } else {
                fresh.push(held);
            }
        }
        if !fresh.is_empty() {
            // A closed channel means that the worker is ending; the locks expire by themselves.
            let _ = self.to_admission.send(fresh).await;
        }
        Ok(waiting < received)
    }

    /// Defers or cancels the jobs of batches that may not run; returns how many were deferred.
    async fn defer_or_cancel(&self, jobs: Vec<BoxedJob>) -> usize {
        let mut waiting = 0;
        for held in jobs {
            // Closed channels mean that the worker is ending; the locks expire by themselves.
            if held.batch.disposition() == BatchDisposition::Cancel {
                let _ = self.to_record.send(FinishedJob::cancelled(held)).await;
            } else {
                waiting += 1;
                let postponed = DeferredJob::for_paused_batch(held, self.batches.next_recheck_at());
                let _ = self.to_defer.send(postponed).await;
            }
        }
        waiting
    }

    /// Settles the redeliveries whose outcome is known; returns the others.
    async fn settle_known(&self, again: Vec<BoxedJob>) -> Result<Vec<BoxedJob>, WorkerError> {
        let mut by_batch: HashMap<BatchId, Vec<BoxedJob>> = HashMap::new();
        for held in again {
            by_batch.entry(held.delivery.job.batch_id.clone()).or_default().push(held);
        }
        let mut unknown = Vec::new();
        for (batch, held) in by_batch {
            let names: Vec<_> =
                held.iter().map(|held| held.delivery.job.custom_id.as_str()).collect();
            let known =
                record::retry_until_reachable(|| self.store.look_up(&batch, &names)).await?;
            let mut settlements = Vec::new();
            let mut done = Vec::new();
            let mut places = Vec::new();
            for (held, known) in held.into_iter().zip(known) {
                match known {
                    Some(proof) => {
                        done.extend(record::obsolete_payload(&held.delivery, proof));
                        settlements.push(record::settlement(held.delivery, proof, None));
                        places.push(held.slot);
                    }
                    None => unknown.push(held),
                }
            }
            debug!(batch.id = %batch, known = settlements.len(), "looked redeliveries up");
            record::delete_payloads(self.store.as_ref(), done).await;
            if let Err(error) = self.queue.settle(settlements).await {
                // They come again, and are looked up again.
                warn!(%error, "could not settle redeliveries that have an outcome");
            }
        }
        Ok(unknown)
    }

    /// Ends a job that was handed out again and again: most likely it takes its workers down.
    async fn give_up(&self, held: BoxedJob) {
        let description = format!(
            "handed out {} times without an outcome: its workers died or lost their locks",
            held.delivery.count
        );
        let finished = FinishedJob::dead(held, "MaxDeliveryCountExceeded", description);
        let _ = self.to_record.send(finished).await;
    }
}

fn estimate_of(delivery: &Delivery) -> TokenEstimate {
    let job = &delivery.job;
    job.estimate.unwrap_or_else(|| tokens::estimate(job.api, &job.model, &job.amended_body()))
}
