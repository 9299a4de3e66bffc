//! Jobs wait: the seam to every queue, and what all of them promise.
//!
//! A queue hands a job out under a **peek-lock**: nobody else sees it until the lock expires or the
//! delivery is settled. Settling is one of three things: *complete* (gone), *abandon* (back in its
//! place, at once) and *dead-letter* (set aside with a reason). A lock that runs out puts the job
//! back by itself, with its delivery count raised.
//!
//! The order "record first, settle after" is in the types: a delivery can leave the queue only with
//! the [`Recorded`] proof that the store gives out ([`Delivery::complete`]).
//!
//! Backends: [`local`] (SQLite) and [`service_bus`] (AMQP, or REST over HTTPS). Nothing outside a
//! backend's file knows which one it is; all pass the one contract suite in
//! `tests/support/contract_queue.rs`.

pub mod local;
pub mod service_bus;
pub mod sight;

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use domain::job::{Amendment, Job, JobId};
use sight::{Sight, Sought};
use store::Recorded;

/// One hand-out's key to its lock; a redelivery gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockToken(pub Uuid);

/// One hand-out of a job under a lock.
#[derive(Debug)]
pub struct Delivery {
    pub job: Job,
    pub lock: LockToken,
    pub locked_until: Timestamp,
    /// How often the job was handed out, this time included. Above 1 it may have an outcome already.
    pub count: u32,
}

impl Delivery {
    /// Turns the delivery into an order to take the job off the queue.
    ///
    /// # Panics
    /// If the proof is another job's: that would lose a job.
    pub fn complete(self, proof: Recorded) -> Settlement {
        assert_eq!(self.job.id, proof.job_id(), "a proof completes its own job only");
        Settlement { lock: self.lock, kind: SettlementKind::Complete }
    }

    /// Turns the delivery into an order to let the job wait in the queue until `until`, after so
    /// many tries and their last error. Nothing has to be recorded: the job stays.
    pub fn postpone(self, until: Timestamp, tries: u32, last_error: Option<&str>) -> Postponement {
        let mut job = self.job;
        job.not_before = Some(until);
        job.history.postpone(tries, last_error);
        Postponement { lock: self.lock, job, until }
    }

    /// Turns the delivery into an order to set the job aside among the dead letters.
    ///
    /// # Panics
    /// If the proof is another job's.
    pub fn dead_letter(self, proof: Recorded, reason: DeadLetterReason) -> Settlement {
        assert_eq!(self.job.id, proof.job_id(), "a proof dead-letters its own job only");
        Settlement { lock: self.lock, kind: SettlementKind::DeadLetter(reason) }
    }
}

/// An order to settle one delivery whose outcome is recorded. Made by [`Delivery`] alone.
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

/// An order to let a job wait. Made by [`Delivery`] alone.
#[derive(Debug)]
pub struct Postponement {
    lock: LockToken,
    job: Job,
    until: Timestamp,
}

impl Postponement {
    pub fn lock(&self) -> LockToken {
        self.lock
    }
}

/// Why a job was set aside, in the two fields that Service Bus has for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterReason {
    /// A short cause to group by, such as `RetriesExhausted`.
    pub reason: String,
    pub description: String,
}

/// What became of a [`Queue::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    pub accepted: u64,
    /// Jobs that the queue already held. Backends that drop duplicates in silence count them as
    /// accepted.
    pub duplicates: u64,
}

/// How many messages a queue holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Depth {
    /// Ready to be handed out.
    pub active: u64,
    /// Handed out and under lock. 0 where the backend counts these as active.
    pub locked: u64,
    /// Not to be handed out before a set time.
    pub scheduled: u64,
    pub dead_letters: u64,
}

impl Depth {
    /// Messages that still need work.
    pub fn pending(self) -> u64 {
        self.active + self.locked + self.scheduled
    }
}

/// Why a queue operation failed.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Passing trouble: the caller tries again with backoff.
    #[error("the queue can't be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Trying again can't help: wrong name, no permission, broken file.
    #[error("the queue refused: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Some jobs are larger than the queue takes; none was sent. The caller puts their bodies aside
    /// and sends again.
    #[error("{} of the jobs are larger than the {limit} bytes that the queue takes", positions.len())]
    TooLarge {
        /// Where these jobs stood in the call.
        positions: Vec<usize>,
        /// What one encoded message may weigh.
        limit: usize,
    },
}

/// Where jobs wait. Calls are batch-shaped; an empty batch does nothing.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Adds jobs. A job that is in the queue already, by its id, is not added again.
    async fn send(&self, jobs: Vec<Job>) -> Result<Sent, QueueError>;

    /// Hands out up to `max` jobs, waiting up to `wait` for the first one.
    ///
    /// Messages that are not jobs go to the dead letters with a reason and are never returned. A
    /// job that is handed out again and again is returned with its count: the worker judges it.
    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError>;

    /// Extends locks by the queue's lock duration; in the order asked, the new expiry, or `None`
    /// where the lock is lost.
    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError>;

    /// Settles deliveries whose outcomes are recorded. A lock that was lost meanwhile is no error:
    /// the redelivery will find the outcome.
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError>;

    /// Lets jobs wait in the queue until their time, with their tries. The deliveries end and are not
    /// counted. A lock that was lost meanwhile is no error.
    async fn postpone(&self, postponements: Vec<Postponement>) -> Result<(), QueueError>;

    /// Gives deliveries back, to be handed out again at once. Whether that raises the delivery
    /// count is the backend's.
    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError>;

    /// How much is there: exact where it is 0, and at least what is said where the backend can only
    /// look at its head.
    async fn depth(&self) -> Result<Depth, QueueError>;

    /// Looks for jobs without taking them, as far as the backend can: over all of the queue, over its
    /// head alone, or not at all.
    async fn look(&self, sought: &Sought) -> Result<Sight, QueueError>;

    /// Lists up to `max` dead letters from a number on, oldest first, without locking them. Only an
    /// empty list says that there are no more.
    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError>;

    /// Puts dead letters back into the queue as new jobs, amended: delivery count and tries begin
    /// anew, the history goes on. Returns the numbers of those that were put back; what is no job, not there
    /// or held by somebody else is left alone.
    ///
    /// To be called when their outcomes are withdrawn: see [`intake::dead_letters`].
    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError>;

    /// Deletes dead letters; returns the numbers of those that were there.
    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError>;

    /// Ends the connection, if there is one, after what was settled has gone through. To be called
    /// before the process ends; nothing is to be asked of the queue any more.
    async fn close(&self) {}
}

/// A message that was set aside.
#[derive(Debug, Clone, PartialEq)]
pub struct DeadLetter {
    /// Its name among the dead letters, rising with time.
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
