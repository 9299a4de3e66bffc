//! Lease within a record of the store: one owner until a time, renewed while it is used.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// Lease that a record holds, as a part of its JSON (`#[serde(flatten)]`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecordLease {
    #[serde(default, alias = "holder", skip_serializing_if = "Option::is_none")]
    owner: Option<Uuid>,
    /// End of the lease, in seconds since 1970; earlier versions wrote a text of RFC 3339 for some.
    #[serde(default, alias = "held_until", deserialize_with = "seconds")]
    until: i64,
}

impl RecordLease {
    /// Takes or renews the lease for `me`.
    ///
    /// # Errors
    /// Returns the time until which another owner holds it.
    pub fn acquire(&mut self, me: Uuid, now: Timestamp, term: Duration) -> Result<(), Timestamp> {
        let until = Timestamp::from_second(self.until).unwrap_or_default();
        if self.owner.is_some_and(|owner| owner != me) && until > now {
            return Err(until);
        }
        self.take(me, now, term);
        Ok(())
    }

    /// Takes the lease, whoever holds it: no other owner can be alive.
    pub fn take(&mut self, me: Uuid, now: Timestamp, term: Duration) {
        (self.owner, self.until) = (Some(me), (now + term).as_second());
    }

    /// Returns whether `me` was its last owner, whether or not it has run out since.
    pub fn is_held_by(&self, me: Uuid) -> bool {
        self.owner == Some(me)
    }

    pub fn release(&mut self) {
        *self = Self::default();
    }
}

/// Reads a time as seconds or as a text of RFC 3339.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum LeaseEnd {
        Seconds(i64),
        Text(Timestamp),
    }
    Ok(match LeaseEnd::deserialize(deserializer)? {
        LeaseEnd::Seconds(seconds) => seconds,
        LeaseEnd::Text(at) => at.as_second(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Duration = Duration::from_secs(20);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_lease_is_held_by_one_until_it_runs_out() {
        let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut lease = RecordLease::default();
        assert_eq!(lease.acquire(me, at(100), TERM), Ok(()));
        assert_eq!(lease.acquire(other, at(119), TERM), Err(at(120)));
        assert_eq!(lease.acquire(me, at(119), TERM), Ok(()), "renewed");
        assert_eq!(lease.acquire(other, at(120), TERM), Err(at(139)));
        assert_eq!(lease.acquire(other, at(139), TERM), Ok(()));
        assert!(lease.is_held_by(other) && !lease.is_held_by(me));
        lease.release();
        assert_eq!(lease.acquire(me, at(140), TERM), Ok(()));
    }

    #[test]
    fn leases_that_earlier_versions_wrote_are_kept_to() {
        let id = Uuid::from_u128(7);
        for json in [
            format!(r#"{{"owner":"{id}","until":1764547200}}"#),
            format!(r#"{{"holder":"{id}","held_until":"2025-12-01T00:00:00.5Z"}}"#),
        ] {
            let mut lease: RecordLease = serde_json::from_str(&json).unwrap();
            let taken = lease.acquire(Uuid::from_u128(8), at(1_764_547_199), TERM);
            assert_eq!(taken, Err(at(1_764_547_200)), "{json}");
        }
        assert_eq!(serde_json::from_str::<RecordLease>("{}").unwrap(), RecordLease::default());
    }
}
