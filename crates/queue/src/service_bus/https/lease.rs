//! Messages under lock: where each is settled, and until when.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use azure_core_rest::headers::{HeaderName, Headers};
use azure_messaging_servicebus::service_bus::PeekLockResponse;
use jiff::Timestamp;
use uuid::Uuid;

use super::carrier::fault;
use crate::service_bus::fault::{Fault, Trouble};
use crate::service_bus::message::{DESCRIPTION, REASON};
use crate::{DeadLetter, DeadLetterReason, LockToken};
use domain::job::Job;

/// How long after its end a lock is still kept in mind: clocks differ, and who holds it may yet
/// settle it.
const KEEP: Duration = Duration::from_secs(300);

/// One message under lock.
#[derive(Clone)]
pub(super) struct Lease {
    pub(super) lock: LockToken,
    pub(super) until: Timestamp,
    /// How often it was handed out, this time included.
    pub(super) count: u32,
    pub(super) message_id: String,
    /// Its name in its entity, rising with time.
    pub(super) number: i64,
    enqueued: Timestamp,
    /// What a renewal adds; the service does not say it.
    life: Duration,
    pub(super) response: Arc<PeekLockResponse>,
}

impl Lease {
    /// # Errors
    /// If the broker's properties are missing, without which nothing can be settled.
    pub(super) fn new(response: PeekLockResponse) -> Result<Self, Fault> {
        let missing = || Fault::from(Trouble::Unreadable("peek-lock"));
        let properties = response.broker_properties().ok_or_else(missing)?;
        let lock = Uuid::parse_str(&properties.lock_token).map_err(Fault::passing)?;
        let until = Timestamp::from_second(properties.locked_until_utc.unix_timestamp());
        let until = until.map_err(Fault::passing)?;
        let enqueued = properties.enqueued_time_utc.map(|at| at.unix_timestamp());
        let enqueued = enqueued.and_then(|at| Timestamp::from_second(at).ok());
        Ok(Self {
            lock: LockToken(lock),
            until,
            count: u32::try_from(properties.delivery_count).unwrap_or(1).max(1),
            message_id: properties.message_id,
            number: properties.sequence_number,
            enqueued: enqueued.unwrap_or_default(),
            life: Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default(),
            response: Arc::new(response),
        })
    }

    /// Asks once; a lost lock is a fault of its own.
    pub(super) async fn ask(&self, verb: Verb) -> Result<(), Fault> {
        let asked = match verb {
            Verb::Complete => self.response.delete_message().await.map(drop),
            Verb::Unlock => self.response.unlock_message().await,
            Verb::Renew => self.response.renew_message_lock().await,
        };
        asked.map_err(fault)
    }

    pub(super) fn job(&self) -> Result<Job, serde_json::Error> {
        let mut job = Job::from_message(self.response.body().as_bytes())?;
        job.history.first_enqueued.get_or_insert(self.enqueued);
        Ok(job)
    }

    /// The message as a dead letter.
    pub(super) fn letter(&self) -> DeadLetter {
        let headers: Headers = self.response.custom_properties().unwrap_or_default();
        let text = |name: &str| {
            let value = headers.get_optional_string(&HeaderName::from(name.to_ascii_lowercase()));
            let value = value.unwrap_or_default();
            serde_json::from_str(&value).unwrap_or(value)
        };
        DeadLetter {
            number: self.number,
            job_id: self.job().ok().map(|job| job.id),
            message: self.response.body().into_bytes(),
            reason: DeadLetterReason { reason: text(REASON), description: text(DESCRIPTION) },
            // This look was a hand-out too.
            delivery_count: self.count - 1,
            at: self.enqueued,
        }
    }
}

/// What is done with a message under lock.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    Complete,
    Unlock,
    Renew,
}

/// The messages that are held.
#[derive(Default)]
pub(super) struct Leases(Mutex<HashMap<LockToken, Lease>>);

impl Leases {
    pub(super) fn hold(&self, leases: impl IntoIterator<Item = Lease>) {
        let now = Timestamp::now();
        self.with(|held| {
            held.retain(|_, lease| lease.until + KEEP > now);
            held.extend(leases.into_iter().map(|lease| (lease.lock, lease)));
        });
    }

    pub(super) fn get(&self, lock: LockToken) -> Option<Lease> {
        self.with(|held| held.get(&lock).cloned())
    }

    pub(super) fn forget(&self, lock: LockToken) {
        self.with(|held| held.remove(&lock));
    }

    /// Notes a renewal that was asked for at `asked`; says the new end.
    pub(super) fn renewed(&self, lock: LockToken, asked: Timestamp) -> Option<Timestamp> {
        self.with(|held| {
            let lease = held.get_mut(&lock)?;
            lease.until = asked + lease.life;
            Some(lease.until)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<LockToken, Lease>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
