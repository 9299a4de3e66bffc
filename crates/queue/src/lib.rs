//! The seam to every queue of jobs, and the guarantees that all of them share.
//!
//! A queue hands a job out under a **peek-lock**: no other receiver sees it until the lock expires
//! or the delivery is settled. Settling is one of three things: *complete* (removed), *abandon*
//! (back in its place, at once) and *dead-letter* (set aside with a reason). A lock that expires
//! puts the job back by itself, with its delivery count raised.
//!
//! The order "record first, settle after" is in the types: a delivery can leave the queue only with
//! the [`Recorded`] proof that the store gives out ([`Delivery::complete`]).
//!
//! Backends: [`local`] (SQLite) and [`service_bus`] (AMQP, or REST over HTTPS). No code outside a
//! backend knows which one it is; all pass the one contract suite in
//! `tests/support/contract_queue.rs`.

mod depth;
pub mod local;
pub mod peek;
#[cfg(feature = "service-bus")]
#[cfg_attr(
    not(feature = "service-bus-https"),
    allow(dead_code, reason = "some of it serves the REST transport alone")
)]
pub mod service_bus;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use depth::QueueDepth;
use domain::job::{Amendment, Job, JobId};
use peek::{PeekFilter, PeekResult};
use store::Recorded;

/// Lock of one hand-out; a redelivery gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockToken(pub Uuid);

/// One hand-out of a job under a lock.
#[derive(Debug)]
pub struct Delivery {
    pub job: Job,
    pub lock: LockToken,
    pub locked_until: Timestamp,
    /// Number of hand-outs of the job, this one included. Above 1 it may have an outcome already.
    pub count: u32,
}

impl Delivery {
    /// Turns the delivery into an order to remove the job from the queue.
    ///
    /// # Panics
    /// If the proof is another job's: that would lose a job.
    pub fn complete(self, proof: Recorded) -> Settlement {
        assert_eq!(self.job.id, proof.job_id(), "a proof completes its own job only");
        Settlement { lock: self.lock, kind: SettlementKind::Complete }
    }

    /// Turns the delivery into an order to keep the job in the queue until `until`, with its number
    /// of attempts and their last error. Nothing has to be recorded: the job stays.
    pub fn defer(self, until: Timestamp, attempts: u32, last_error: Option<&str>) -> DeferOrder {
        let mut job = self.job;
        job.not_before = Some(until);
        job.history.defer(attempts, last_error);
        DeferOrder { lock: self.lock, job, until }
    }

    /// Turns the delivery into an order to move the job to the dead letters.
    ///
    /// # Panics
    /// If the proof is another job's.
    pub fn dead_letter(self, proof: Recorded, reason: DeadLetterReason) -> Settlement {
        assert_eq!(self.job.id, proof.job_id(), "a proof dead-letters its own job only");
        Settlement { lock: self.lock, kind: SettlementKind::DeadLetter(reason) }
    }
}

/// Order to settle one delivery whose outcome is recorded. Made by [`Delivery`] alone.
#[derive(Debug)]
pub struct Settlement {
    lock: LockToken,
    kind: SettlementKind,
}

impl Settlement {
    pub fn lock(&self) -> LockToken {
        self.lock
    }

    pub fn kind(&self) -> &SettlementKind {
        &self.kind
    }
}

#[derive(Debug)]
pub enum SettlementKind {
    Complete,
    DeadLetter(DeadLetterReason),
}

/// Order to defer a job. Made by [`Delivery`] alone.
#[derive(Debug)]
pub struct DeferOrder {
    lock: LockToken,
    job: Job,
    until: Timestamp,
}

impl DeferOrder {
    pub fn lock(&self) -> LockToken {
        self.lock
    }
}

/// Cause of a dead letter, in the two fields that Service Bus has for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterReason {
    /// Short cause to group by, such as `RetriesExhausted`.
    pub reason: String,
    pub description: String,
}

/// Result of a [`Queue::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendCounts {
    pub accepted: u64,
    /// Jobs that the queue held already. Backends that drop duplicates silently count them as
    /// accepted.
    pub duplicates: u64,
}

/// Reason why a queue operation failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Transient error: the caller tries again with backoff.
    #[error("the queue can't be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Permanent error: wrong name, no permission, broken file.
    #[error("the queue refused: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Some jobs are larger than the queue takes; none was sent. The caller stores their bodies as
    /// claim checks and sends again.
    #[error("{} of the jobs are larger than the {limit} bytes that the queue takes", positions.len())]
    TooLarge {
        /// Positions of these jobs in the call.
        positions: Vec<usize>,
        /// Most bytes that one encoded message may have.
        limit: usize,
    },
}

impl QueueError {
    /// Returns whether the same call may succeed later: the queue is away, and nothing is wrong.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// A queue of jobs. Calls are batch-shaped; an empty batch does nothing.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Returns whether a job can never be in the queue twice. Otherwise it may come from several
    /// messages, perhaps at the same moment.
    fn keeps_one_of_each(&self) -> bool;

    /// Adds jobs. A job that is in the queue already, by its id, is not added again, as far as
    /// [`keeps_one_of_each`](Self::keeps_one_of_each) goes.
    async fn send(&self, jobs: Vec<Job>) -> Result<SendCounts, QueueError>;

    /// Hands out up to `max` jobs, waiting up to `wait` for the first one.
    ///
    /// Messages that are not jobs go to the dead letters with a reason and are never returned. A
    /// job that is handed out again and again is returned with its count: the worker judges it.
    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError>;

    /// Extends locks by the queue's lock duration. Returns the new expiries in the order of the
    /// request, `None` where the lock is lost.
    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError>;

    /// Settles deliveries whose outcomes are recorded. A lock lost meanwhile is no error: the
    /// redelivery will find the outcome.
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError>;

    /// Keeps jobs in the queue until their time, with their attempts. The deliveries end and are
    /// not counted. A lock lost meanwhile is no error.
    async fn defer(&self, orders: Vec<DeferOrder>) -> Result<(), QueueError>;

    /// Releases deliveries, to be handed out again at once. The backend decides whether that raises
    /// the delivery count.
    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError>;

    /// Returns the number of messages: exact where it is 0, and a lower bound where the backend can
    /// only look at the queue's head.
    async fn depth(&self) -> Result<QueueDepth, QueueError>;

    /// Peeks for jobs without locking them, as far as the backend can: over the whole queue, over
    /// its head alone, or not at all.
    async fn peek(&self, sought: &PeekFilter) -> Result<PeekResult, QueueError>;

    /// Lists up to `max` dead letters from a number on, oldest first, without locking them. Only an
    /// empty list means that there are no more.
    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError>;

    /// Puts dead letters back into the queue as new jobs, amended: delivery count and attempts
    /// begin anew, the history goes on. Returns the numbers of those that were put back; those that
    /// are no jobs, missing or locked by somebody else stay untouched.
    ///
    /// Call it after their outcomes are withdrawn: see `intake::dead_letters`.
    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError>;

    /// Deletes dead letters; returns the numbers of those that existed.
    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError>;

    /// Ends the connection, if there is one, after pending settlements have gone through. Call it
    /// before the process ends, and use the queue no more.
    async fn close(&self) {}
}

/// Message in the dead-letter queue.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Number among the dead letters, rising with time.
    pub number: i64,
    /// Absent if the message is no job.
    pub job_id: Option<JobId>,
    pub message: Vec<u8>,
    pub reason: DeadLetterReason,
    pub delivery_count: u32,
    pub at: Timestamp,
}

impl DeadLetter {
    /// The job, if it is one.
    pub fn job(&self) -> Option<Job> {
        Job::from_message(&self.message).ok()
    }
}
