//! Lease on the intake of one batch: the server that holds it turns the lines into jobs.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::notes;

/// Seconds after which a lease that was not renewed is free.
const LEASE_SECONDS: i64 = 20;

/// Lease on the intake of one batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct IntakeLease {
    /// The uploaded file.
    pub file: String,
    pub(super) created_at: i64,
    pub(super) owner: Option<Uuid>,
    until: i64,
}

impl IntakeLease {
    pub(super) fn free(file: String) -> Self {
        Self { file, created_at: notes::now(), owner: None, until: 0 }
    }

    /// Takes or renews the lease, unless another owner holds it; true if it did.
    pub(super) fn acquire(&mut self, me: Uuid, now: i64) -> bool {
        let is_free = self.owner == Some(me) || self.until <= now;
        if is_free {
            (self.owner, self.until) = (Some(me), now + LEASE_SECONDS);
        }
        is_free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_by_one_until_it_runs_out() {
        let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut lease = IntakeLease::free("file-1".into());
        assert!(lease.acquire(me, 100));
        assert!(!lease.acquire(other, 100 + LEASE_SECONDS - 1));
        assert!(lease.acquire(me, 100 + LEASE_SECONDS - 1), "renewed");
        assert!(!lease.acquire(other, 100 + LEASE_SECONDS));
        assert!(lease.acquire(other, 100 + 2 * LEASE_SECONDS));
    }
}
