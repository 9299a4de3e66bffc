//! Leases on jobs: the jobs a worker holds, their locks, and the slots that bound their number.
//!
//! A [`BoxedJob`] carries its slot and its entry in the table of leases, so that both are freed
//! wherever it ends.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::batch_handle::BatchHandle;
use super::claims::CallNote;
use admission::{DeploymentIndex, DeploymentSet, JobTag};
use domain::job::{Job, JobId, TokenEstimate};
use domain::mutex::lock;
use domain::outcome::TokenUsage;
use model::verdict::ErrorReply;
use queue::{DeferOrder, Delivery, LockToken, Queue};
use telemetry::WorkerProgress;

/// Interval of lock checks; Service Bus locks last 5 s at the least.
const RENEW_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Locks shorter than this are judged by the queue alone.
const SHORTEST_JUDGED_LOCK: Duration = Duration::from_secs(2);

/// Boxed leased job. It moves through every stage, so tasks and channels move a pointer instead of
/// all that is known of a job.
pub(super) type BoxedJob = Box<LeasedJob>;

/// Delivery whose lock is renewed for as long as its slot lives.
pub(super) struct LeasedDelivery {
    pub(super) delivery: Delivery,
    /// Time of its receipt.
    received_at: Instant,
    /// Another message of its job was held when it came.
    is_copy: bool,
    pub(super) slot: LeaseSlot,
}

impl LeasedDelivery {
    /// Turns the delivery into an order to keep the job in the queue, with the attempts and the
    /// last error that its history tells. The slot is to live until the queue has it.
    pub(super) fn defer(mut self, until: Timestamp) -> (DeferOrder, LeaseSlot) {
        let history = &mut self.delivery.job.history;
        let (attempts, last_error) = (history.attempts, history.last_error.take());
        (self.delivery.defer(until, attempts, last_error.as_deref()), self.slot)
    }

    /// Turns the delivery into a job to work on.
    pub(super) fn into_job(self, estimate: TokenEstimate, batch: Arc<BatchHandle>) -> BoxedJob {
        let Self { delivery, received_at, is_copy, slot } = self;
        let (attempts, charge) = (delivery.job.history.attempts, estimate.charge());
        let tag = tag_of(&delivery.job);
        Box::new(LeasedJob {
            delivery,
            estimate,
            charge,
            attempts,
            last_error: None,
            no_answers: 0,
            spent: TokenUsage::default(),
            last_failed_on: None,
            excluded: DeploymentSet::default(),
            tag,
            batch,
            received_at,
            is_copy,
            call: None,
            slot,
        })
    }
}

pub(super) struct LeasedJob {
    pub(super) delivery: Delivery,
    /// Most tokens that it may take.
    pub(super) estimate: TokenEstimate,
    /// Tokens that the service books for one call of it.
    pub(super) charge: u64,
    /// Calls so far that count as attempts, those of earlier deliveries included.
    pub(super) attempts: u32,
    pub(super) last_error: Option<ErrorReply>,
    /// Complete replies to it that were no answers or could not be read.
    pub(super) no_answers: u32,
    /// Tokens of replies that are not kept, and were paid for.
    pub(super) spent: TokenUsage,
    /// Deployment on which it failed last.
    pub(super) last_failed_on: Option<DeploymentIndex>,
    /// Deployments that refused it for good.
    pub(super) excluded: DeploymentSet,
    pub(super) tag: JobTag,
    /// Its batch.
    pub(super) batch: Arc<BatchHandle>,
    /// Time of its receipt.
    pub(super) received_at: Instant,
    /// Another message of its job was held when it came.
    pub(super) is_copy: bool,
    /// Note of its call, from the first attempt on.
    pub(super) call: Option<CallNote>,
    pub(super) slot: LeaseSlot,
}

impl LeasedJob {
    /// Returns whether it was handed out before, or its job has another message.
    pub(super) fn is_further(&self) -> bool {
        self.is_copy || self.delivery.count > 1 || may_be_copy(&self.delivery.job)
    }

    /// Returns until when a further message of a job waits for all workers to know of it.
    pub(super) fn waits_until(&self) -> Option<Instant> {
        let is_further = self.is_copy || may_be_copy(&self.delivery.job);
        is_further.then(|| self.batch.copies_known_at()).flatten()
    }

    /// Returns the error of its last attempt, in this delivery or an earlier one.
    pub(super) fn last_error(&self) -> Option<String> {
        let failure = self.last_error.as_ref().map(|error| &error.failure);
        let last = failure.map(|failure| format!("{}: {}", failure.code, failure.message));
        last.or_else(|| self.delivery.job.history.last_error.clone())
    }

    /// Turns the job into a delivery that knows its attempts, on its way back to the queue.
    pub(super) fn into_delivery(self) -> LeasedDelivery {
        let last_error = self.last_error();
        let Self { mut delivery, attempts, received_at, is_copy, slot, .. } = self;
        delivery.job.history.attempts = attempts;
        delivery.job.history.last_error = last_error;
        LeasedDelivery { delivery, received_at, is_copy, slot }
    }
}

/// Returns whether a message may be one of several of its job: it says so, or another program wrote
/// it, since ours count the tokens of each job.
pub(super) fn may_be_copy(job: &Job) -> bool {
    job.may_have_outcome || job.estimate.is_none()
}

/// Deployments treat jobs of one model and API alike.
fn tag_of(job: &Job) -> JobTag {
    let hash = |value: &dyn Fn(&mut DefaultHasher)| {
        let mut hasher = DefaultHasher::new();
        value(&mut hasher);
        hasher.finish() | 1
    };
    JobTag { job: hash(&|h| job.id.hash(h)), kind: hash(&|h| (&job.model, job.api).hash(h)) }
}

/// Frees the slot and the table's entry when dropped.
pub(super) struct LeaseSlot {
    lock: LockToken,
    job: JobId,
    leases: Arc<LeaseTable>,
    _permit: OwnedSemaphorePermit,
}

impl LeaseSlot {
    /// Returns whether another worker may hold the job by now.
    pub(super) fn is_lost(&self) -> bool {
        let now = Instant::now();
        self.leases.with(|held| held.locks.get(&self.lock).is_none_or(|lock| lock.is_lost(now)))
    }
}

impl Drop for LeaseSlot {
    fn drop(&mut self) {
        self.leases.with(|held| {
            held.locks.remove(&self.lock);
            match held.messages.get_mut(&self.job) {
                Some(messages) if *messages > 1 => *messages -= 1,
                _ => drop(held.messages.remove(&self.job)),
            }
        });
        self.leases.progress.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The locks of all jobs that this worker holds, and the number of messages of each job.
#[derive(Default)]
struct HeldLeases {
    locks: HashMap<LockToken, LockState>,
    messages: HashMap<JobId, u32>,
}

/// The jobs that this worker holds.
pub(super) struct LeaseTable {
    leases: Mutex<HeldLeases>,
    /// Receives their number.
    progress: Arc<WorkerProgress>,
}

struct LockState {
    expires: Instant,
    /// Remaining life at which it is renewed.
    half_life: Duration,
    lost: bool,
}

impl LockState {
    /// Nobody may have reported the loss: while a queue is away its locks expire unrenewed.
    fn is_lost(&self, now: Instant) -> bool {
        // A life this short means our clock is ahead of the queue's; then only it can tell.
        let can_judge = self.half_life >= SHORTEST_JUDGED_LOCK / 2;
        self.lost || can_judge && self.expires <= now
    }
}

impl LeaseTable {
    pub(super) fn new(progress: Arc<WorkerProgress>) -> Self {
        Self { leases: Mutex::default(), progress }
    }

    /// Keeps a delivery's lock from now on.
    pub(super) fn lease(
        self: &Arc<Self>,
        delivery: Delivery,
        permit: OwnedSemaphorePermit,
    ) -> LeasedDelivery {
        let left = time_until(delivery.locked_until);
        let received_at = Instant::now();
        let lock = LockState { expires: received_at + left, half_life: left / 2, lost: false };
        let job = delivery.job.id;
        let is_copy = self.with(|held| {
            held.locks.insert(delivery.lock, lock);
            let messages = held.messages.entry(job).or_default();
            *messages += 1;
            *messages > 1
        });
        self.progress.held.fetch_add(1, Ordering::Relaxed);
        let slot = LeaseSlot { lock: delivery.lock, job, leases: self.clone(), _permit: permit };
        LeasedDelivery { delivery, received_at, is_copy, slot }
    }

    fn due(&self, now: Instant) -> Vec<LockToken> {
        self.with(|held| {
            let due = held
                .locks
                .iter()
                .filter(|(_, lock)| !lock.lost && lock.expires < now + lock.half_life);
            due.map(|(token, _)| *token).collect()
        })
    }

    fn renewed(&self, token: LockToken, until_at: Option<Timestamp>) {
        self.with(|held| {
            let Some(lock) = held.locks.get_mut(&token) else { return };
            match until_at {
                Some(at) => lock.expires = Instant::now() + time_until(at),
                None => lock.lost = true,
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut HeldLeases) -> T) -> T {
        work(&mut lock(&self.leases))
    }
}

/// Returns the time left until `at`.
pub(super) fn time_until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Renews every lock at half of its life, for as long as the task runs.
pub(super) async fn renew_leases(queue: Arc<dyn Queue>, leases: Arc<LeaseTable>) {
    let mut look = tokio::time::interval(RENEW_CHECK_INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let due = leases.due(look.tick().await);
        if due.is_empty() {
            continue;
        }
        match queue.renew(&due).await {
            Ok(renewed) => {
                let lost = renewed.iter().filter(|until| until.is_none()).count();
                debug!(locks = due.len(), lost, "renewed locks");
                due.into_iter().zip(renewed).for_each(|(token, at)| leases.renewed(token, at));
            }
            // The next check tries again; a lock that expires meanwhile is settled by redelivery.
            Err(error) => warn!(%error, locks = due.len(), "could not renew locks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_ran_out_unrenewed_is_lost() {
        let now = Instant::now();
        let lock = |seconds| {
            let left = Duration::from_secs(seconds);
            LockState { expires: now + left, half_life: left / 2, lost: false }
        };
        assert!(!lock(5).is_lost(now + Duration::from_secs(4)));
        assert!(lock(5).is_lost(now + Duration::from_secs(5)));
        assert!(LockState { lost: true, ..lock(5) }.is_lost(now));
        assert!(!lock(0).is_lost(now), "our clock goes ahead of the queue's");
    }
}
