//! Peek locks: the messages under lock, and their expiry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use azure_core_rest::headers::{HeaderName, Headers};
use azure_messaging_servicebus::service_bus::PeekLockResponse;
use jiff::Timestamp;
use uuid::Uuid;

use super::adapter::broker_error;
use crate::service_bus::error::{BrokerError, TransportError};
use crate::service_bus::message::{DESCRIPTION, REASON};
use crate::{DeadLetter, DeadLetterReason, LockToken};
use domain::job::Job;
use domain::mutex::lock;

/// Time that an expired lock is still kept: clocks differ, and its holder may yet settle it.
const KEEP_EXPIRED: Duration = Duration::from_secs(300);

/// One message under lock.
#[derive(Clone)]
pub(super) struct PeekLock {
    pub(super) lock: LockToken,
    pub(super) until: Timestamp,
    /// Number of deliveries, this one included.
    pub(super) count: u32,
    pub(super) message_id: String,
    /// Sequence number in its entity, rising with time.
    pub(super) sequence_number: i64,
    enqueued: Timestamp,
    /// Time that a renewal adds; the service does not report it.
    lock_duration: Duration,
    pub(super) response: Arc<PeekLockResponse>,
}

impl PeekLock {
    /// # Errors
    /// If the broker's properties are missing, without which nothing can be settled.
    pub(super) fn new(response: PeekLockResponse) -> Result<Self, BrokerError> {
        let missing = || BrokerError::from(TransportError::Unreadable("peek-lock"));
        let properties = response.broker_properties().ok_or_else(missing)?;
        let lock = Uuid::parse_str(&properties.lock_token).map_err(BrokerError::transient)?;
        let until = Timestamp::from_second(properties.locked_until_utc.unix_timestamp());
        let until = until.map_err(BrokerError::transient)?;
        let enqueued = properties.enqueued_time_utc.map(|at| at.unix_timestamp());
        let enqueued = enqueued.and_then(|at| Timestamp::from_second(at).ok());
        Ok(Self {
            lock: LockToken(lock),
            until,
            count: u32::try_from(properties.delivery_count).unwrap_or(1).max(1),
            message_id: properties.message_id,
            sequence_number: properties.sequence_number,
            enqueued: enqueued.unwrap_or_default(),
            lock_duration: Duration::try_from(until.duration_since(Timestamp::now()))
                .unwrap_or_default(),
            response: Arc::new(response),
        })
    }

    /// Sends the request once; a lost lock is an error of its own.
    pub(super) async fn apply(&self, verb: LockAction) -> Result<(), BrokerError> {
        let asked = match verb {
            LockAction::Complete => self.response.delete_message().await.map(drop),
            LockAction::Unlock => self.response.unlock_message().await,
            LockAction::Renew => self.response.renew_message_lock().await,
        };
        asked.map_err(broker_error)
    }

    pub(super) fn job(&self) -> Result<Job, serde_json::Error> {
        let mut job = Job::from_message(self.response.body().as_bytes())?;
        job.history.first_enqueued.get_or_insert(self.enqueued);
        Ok(job)
    }

    /// Converts the message to a dead letter.
    pub(super) fn dead_letter(&self) -> DeadLetter {
        let headers: Headers = self.response.custom_properties().unwrap_or_default();
        let text = |name: &str| {
            let value = headers.get_optional_string(&HeaderName::from(name.to_ascii_lowercase()));
            let value = value.unwrap_or_default();
            serde_json::from_str(&value).unwrap_or(value)
        };
        DeadLetter {
            number: self.sequence_number,
            job_id: self.job().ok().map(|job| job.id),
            message: self.response.body().into_bytes(),
            reason: DeadLetterReason { reason: text(REASON), description: text(DESCRIPTION) },
            // This listing was a delivery too.
            delivery_count: self.count - 1,
            at: self.enqueued,
        }
    }
}

/// Operation on a message under lock.
#[derive(Debug, Clone, Copy)]
pub(super) enum LockAction {
    Complete,
    Unlock,
    Renew,
}

/// The messages that are held.
#[derive(Default)]
pub(super) struct PeekLocks(Mutex<HashMap<LockToken, PeekLock>>);

impl PeekLocks {
    pub(super) fn insert(&self, leases: impl IntoIterator<Item = PeekLock>) {
        let now = Timestamp::now();
        self.with(|held| {
            held.retain(|_, lease| lease.until + KEEP_EXPIRED > now);
            held.extend(leases.into_iter().map(|lease| (lease.lock, lease)));
        });
    }

    pub(super) fn get(&self, lock: LockToken) -> Option<PeekLock> {
        self.with(|held| held.get(&lock).cloned())
    }

    pub(super) fn remove(&self, lock: LockToken) {
        self.with(|held| held.remove(&lock));
    }

    /// Records a renewal that was requested at `asked`; returns the new expiry.
    pub(super) fn record_renewal(&self, lock: LockToken, asked: Timestamp) -> Option<Timestamp> {
        self.with(|held| {
            let lease = held.get_mut(&lock)?;
            lease.until = asked + lease.lock_duration;
            Some(lease.until)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<LockToken, PeekLock>) -> T) -> T {
        work(&mut lock(&self.0))
    }
}
