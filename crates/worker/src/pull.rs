//! Takes no more from the queue than there are slots for, and looks redeliveries up before any
//! call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::random;
use tokio::sync::mpsc::error::SendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::batch_handle::{BatchDisposition, BatchHandle};
use super::batch_registry::{self, BatchRegistry};
use super::channels::StageSenders;
use super::defer::DeferredJob;
use super::exit::WorkerError;
use super::leases::{BoxedJob, LeaseTable, LeasedDelivery, may_be_copy, time_until};
use super::prefetch::{CALLS_AHEAD, PrefetchLimit};
use super::record::{self, FinishedJob};
use super::settings::{Worker, WorkerSettings};
use super::stage_end::{PullEnd, StageEnd};
use super::{release, retry};
use domain::backoff::Backoff;
use domain::job::{BatchId, Job, TokenEstimate};
use queue::{Delivery, Queue};
use store::Store;

/// Longest wait of one receive; a stop does not wait for it.
const RECEIVE_WAIT: Duration = Duration::from_secs(10);

/// Longest wait of one receive while draining: so often the queue is asked whether it is empty for
/// good, while it holds jobs that others work on or that come due later.
const DRAIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// Time without other jobs after which only paused ones are left, where counting can't tell.
const QUIET_TIME: Duration = Duration::from_secs(60);

pub(super) struct Puller {
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    leases: Arc<LeaseTable>,
    batches: Arc<BatchRegistry>,
    prefetch: PrefetchLimit,
    settings: WorkerSettings,
    to_admission: mpsc::Sender<Vec<BoxedJob>>,
    to_defer: mpsc::Sender<DeferredJob>,
    to_record: mpsc::Sender<Box<FinishedJob>>,
    /// Time since which only jobs of paused batches have come, and of the next check for others.
    only_paused_since: Option<(Instant, Instant)>,
}

/// Jobs just received, or the end.
enum PullStep {
    Received(Vec<LeasedDelivery>),
    /// The queue may be empty for good.
    Idle,
    End,
}

impl Puller {
    pub(super) fn new(
        worker: &Worker,
        leases: Arc<LeaseTable>,
        batches: Arc<BatchRegistry>,
        to: &StageSenders,
    ) -> Self {
        let settings = worker.settings.clone();
        let least = settings.shared.then(|| CALLS_AHEAD * worker.unpaced_calls());
        Self {
            queue: worker.queue.clone(),
            store: worker.store.clone(),
            leases,
            batches,
            prefetch: PrefetchLimit::new(settings.max_held, least, worker.progress.clone()),
            settings,
            to_admission: to.jobs.clone(),
            to_defer: to.deferred.clone(),
            to_record: to.finished.clone(),
            only_paused_since: None,
        }
    }

    /// Pulls until stopped, or, when draining, until no job is left and all is settled.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<StageEnd, WorkerError> {
        let mut failures = 0;
        loop {
            match self.pull(&stop).await {
                Ok(None) => failures = 0,
                Ok(Some(end)) => return Ok(StageEnd::Pulled(end)),
                Err(WorkerError::Queue(error)) if error.is_transient() => {
                    failures += 1;
                    let pause = Backoff::DEFAULT.delay(failures, random());
                    warn!(%error, ?pause, "the queue can't be reached; trying again");
                    stop.run_until_cancelled(sleep(pause)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives jobs once and passes them on; returns how pulling ends, if it ends.
    async fn pull(&mut self, stop: &CancellationToken) -> Result<Option<PullEnd>, WorkerError> {
        let jobs = match self.receive(stop).await? {
            PullStep::Received(jobs) => jobs,
            PullStep::Idle => {
                let checked = stop.run_until_cancelled(self.check_drained()).await;
                return checked.unwrap_or(Ok(Some(PullEnd::Finished)));
            }
            PullStep::End => return Ok(Some(PullEnd::Finished)),
        };
        let named = jobs.iter().map(|job| &job.delivery.job.batch_id);
        let Some(batches) = stop.run_until_cancelled(self.batches.handles_for(named)).await else {
            self.release(jobs).await;
            return Ok(Some(PullEnd::Finished));
        };
        let batches = batches?;
        for batch in self.with_new_copies(&jobs, &batches) {
            if let Some(added) = stop.run_until_cancelled(self.batches.add_sender(batch)).await {
                added?;
            }
        }
        let with_batch = |job: LeasedDelivery| {
            let estimate = estimate_of(&job.delivery);
            let batch = batches[&job.delivery.job.batch_id].clone();
            job.into_job(estimate, batch)
        };
        if self.pass_on(jobs.into_iter().map(with_batch).collect(), stop).await? {
            self.only_paused_since = None;
        }
        Ok(None)
    }

    /// Waits for jobs, for the end of all that we hold, or for a stop, and not for long.
    async fn receive(&mut self, stop: &CancellationToken) -> Result<PullStep, WorkerError> {
        let Some(mut room) = stop.run_until_cancelled(self.prefetch.acquire()).await.flatten()
        else {
            return Ok(PullStep::End);
        };
        let is_draining = self.settings.drain.is_some();
        let wait = if is_draining { DRAIN_CHECK_INTERVAL } else { RECEIVE_WAIT };
        // Nothing but a stop may break a receive off: jobs on their way to us stay locked then.
        let received = tokio::select! {
            () = stop.cancelled() => return Ok(PullStep::End),
            received = self.queue.receive(room.num_permits(), wait) => received?,
        };
        if received.is_empty() && self.is_idle(&room).await {
            return Ok(PullStep::Idle);
        }
        if let Some(first) = received.first() {
            self.prefetch.adjust(time_until(first.locked_until), Instant::now());
        }
        // From here on their locks are renewed, however long the store may take.
        let lease = |delivery: Delivery| {
            let permit = room.split(1).expect("no more is received than there is room for");
            self.leases.lease(delivery, permit)
        };
        Ok(PullStep::Received(received.into_iter().map(lease).collect()))
    }

    /// Returns whether, when draining, no more jobs are on their way and all that we hold is settled.
    /// Waits for that, but not for long: retries and scheduled jobs come due meanwhile.
    async fn is_idle(&self, room: &OwnedSemaphorePermit) -> bool {
        let all_queued = self.settings.drain.as_ref().is_some_and(|fed| fed.is_cancelled());
        let settled = self.prefetch.wait_until_idle(room);
        all_queued && timeout(DRAIN_CHECK_INTERVAL, settled).await.is_ok()
    }

    /// Returns how pulling ends, if no job is left anywhere.
    async fn check_drained(&mut self) -> Result<Option<PullEnd>, WorkerError> {
        let depth = self.queue.depth().await?;
        if depth.pending() == 0 {
            return Ok(Some(PullEnd::Finished));
        }
        if self.batches.any_paused() { self.only_paused().await } else { Ok(None) }
    }

    /// Returns the batches of which a job was sent again, and of which nobody knows that yet.
    fn with_new_copies<'b>(
        &self,
        jobs: &[LeasedDelivery],
        batches: &'b HashMap<BatchId, Arc<BatchHandle>>,
    ) -> Vec<&'b BatchHandle> {
        if self.queue.keeps_one_of_each() {
            return Vec::new();
        }
        let again = jobs.iter().map(|job| &job.delivery.job).filter(|job| was_sent_again(job));
        let mut ids: Vec<_> = again.map(|job| &job.batch_id).collect();
        ids.dedup();
        let batches = ids.into_iter().map(|id| batches[id].as_ref());
        batches.filter(|batch| !batch.may_have_copies()).collect()
    }

    async fn release(&self, jobs: Vec<LeasedDelivery>) {
        release::release_all(self.queue.as_ref(), jobs, self.settings.max_deliveries).await;
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
                let batch = retry::until_reachable(|| self.store.batch(batch)).await?;
                Some(batch_registry::paused_ids(batch.into_iter().collect()))
            }
            None => {
                let all_else_ended = || batch_registry::only_paused(self.store.as_ref());
                match retry::until_reachable(all_else_ended).await? {
                    None if now >= since + QUIET_TIME => {
                        let batches = retry::until_reachable(|| self.store.batches()).await?;
                        Some(batch_registry::paused_ids(batches))
                    }
                    left => left,
                }
            }
        };
        // Counting may cost much, and more the longer it takes.
        self.only_paused_since =
            Some((since, Instant::now() + now.elapsed() * 10 + DRAIN_CHECK_INTERVAL));
        Ok(left.filter(|paused| !paused.is_empty()).map(PullEnd::Paused))
    }

    /// Passes jobs on to where they belong; returns whether there was anything but jobs of paused
    /// batches.
    async fn pass_on(
        &self,
        jobs: Vec<BoxedJob>,
        stop: &CancellationToken,
    ) -> Result<bool, WorkerError> {
        let received = jobs.len();
        let (run, stay): (Vec<_>, Vec<_>) =
            jobs.into_iter().partition(|job| job.batch.disposition() == BatchDisposition::Run);
        let deferred = self.defer_or_cancel(stay).await;
        let (again, mut fresh): (Vec<_>, Vec<_>) =
            run.into_iter().partition(|job| job.is_further());
        for job in self.settle_known(again, stop).await? {
            if job.is_copy {
                let _ = self.to_defer.send(DeferredJob::copy(job)).await;
            } else if job.delivery.count >= self.settings.max_deliveries {
                self.give_up(job).await;
            } else {
                fresh.push(job);
            }
        }
        if !fresh.is_empty()
            && let Err(SendError(jobs)) = self.to_admission.send(fresh).await
        {
            // The dispatcher has ended, and soon the worker does.
            self.release(jobs.into_iter().map(|job| job.into_delivery()).collect()).await;
        }
        Ok(deferred < received)
    }

    /// Defers or cancels the jobs of batches that may not run; returns how many were deferred.
    async fn defer_or_cancel(&self, jobs: Vec<BoxedJob>) -> usize {
        let mut deferred = 0;
        for job in jobs {
            // Closed channels mean that the worker is ending; the locks expire by themselves.
            if job.batch.disposition() == BatchDisposition::Cancel {
                let _ = self.to_record.send(FinishedJob::cancelled(job)).await;
            } else {
                deferred += 1;
                let job = DeferredJob::new(job, self.batches.next_recheck_at());
                let _ = self.to_defer.send(job).await;
            }
        }
        deferred
    }

    /// Settles the redeliveries whose outcome is known; returns those that have none. A stop
    /// releases those that could not be looked up: nobody may call for them before.
    async fn settle_known(
        &self,
        again: Vec<BoxedJob>,
        stop: &CancellationToken,
    ) -> Result<Vec<BoxedJob>, WorkerError> {
        let mut by_batch: HashMap<BatchId, Vec<BoxedJob>> = HashMap::new();
        for job in again {
            by_batch.entry(job.delivery.job.batch_id.clone()).or_default().push(job);
        }
        let mut unknown = Vec::new();
        for (batch, jobs) in by_batch {
            let names: Vec<_> =
                jobs.iter().map(|job| job.delivery.job.custom_id.as_str()).collect();
            let look_up = retry::until_reachable(|| self.store.look_up(&batch, &names));
            let Some(proofs) = stop.run_until_cancelled(look_up).await else {
                self.release(jobs.into_iter().map(|job| job.into_delivery()).collect()).await;
                continue;
            };
            let mut settlements = Vec::new();
            let mut payloads = Vec::new();
            let mut slots = Vec::new();
            for (job, proof) in jobs.into_iter().zip(proofs?) {
                match proof {
                    Some(proof) => {
                        payloads.extend(record::obsolete_payload(&job.delivery, proof));
                        settlements.push(record::settlement(job.delivery, proof, None));
                        slots.push(job.slot);
                    }
                    None => unknown.push(job),
                }
            }
            debug!(batch.id = %batch, known = settlements.len(), "looked redeliveries up");
            record::delete_payloads(self.store.as_ref(), payloads).await;
            if let Err(error) = self.queue.settle(settlements).await {
                // They come again, and are looked up again.
                warn!(%error, "could not settle redeliveries that have an outcome");
            }
        }
        Ok(unknown)
    }

    /// Ends a job that was handed out again and again: most likely it takes its workers down.
    async fn give_up(&self, job: BoxedJob) {
        let description = format!(
            "handed out {} times without an outcome: its workers died or lost their locks",
            job.delivery.count
        );
        let finished = FinishedJob::dead(job, "MaxDeliveryCountExceeded", description);
        let _ = self.to_record.send(finished).await;
    }
}

/// Returns whether a sender was not sure that its first message of a job arrived, or is no `enqueue`.
fn was_sent_again(job: &Job) -> bool {
    may_be_copy(job) && job.history.deferred == 0 && job.history.resubmitted == 0
}

fn estimate_of(delivery: &Delivery) -> TokenEstimate {
    let job = &delivery.job;
    job.estimate.unwrap_or_else(|| tokens::estimate(job.api, &job.model, &job.amended_body()))
}
