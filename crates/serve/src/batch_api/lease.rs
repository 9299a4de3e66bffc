//! Lease on the intake of one batch: the server that holds it turns the lines into jobs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::notes;
use store::RecordLease;

/// Duration of a lease without renewal: the holder of an expired one is dead.
const LEASE_DURATION: Duration = Duration::from_secs(20);

/// Lease on the intake of one batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IntakeLease {
    /// The uploaded file.
    pub file: String,
    pub(super) created_at: i64,
    #[serde(flatten)]
    lease: RecordLease,
}

impl IntakeLease {
    pub(super) fn free(file: String) -> Self {
        Self { file, created_at: notes::now(), lease: RecordLease::default() }
    }

    /// Takes or renews the lease, unless another server holds it; true if it did.
    pub(super) fn acquire(&mut self, me: Uuid, now: Timestamp) -> bool {
        self.lease.acquire(me, now, LEASE_DURATION).is_ok()
    }

    pub(super) fn is_held_by(&self, me: Uuid) -> bool {
        self.lease.is_held_by(me)
    }
}
