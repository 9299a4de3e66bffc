//! A call that was let go, and what names its job and its deployment.

use tokio::time::Instant;

/// Index of a deployment in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeploymentIndex(pub usize);

/// Deployments that a job can't go to. It holds the first 128 of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeploymentSet(u128);

impl DeploymentSet {
    /// Adds a deployment; false if the set can't hold it.
    pub fn insert(&mut self, deployment: DeploymentIndex) -> bool {
        let bit = u32::try_from(deployment.0).ok().and_then(|n| 1_u128.checked_shl(n));
        self.0 |= bit.unwrap_or(0);
        bit.is_some()
    }

    pub fn contains(self, deployment: DeploymentIndex) -> bool {
        let bit = u32::try_from(deployment.0).ok().and_then(|n| 1_u128.checked_shl(n));
        bit.is_some_and(|bit| self.0 & bit != 0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Identity of a job in a deployment's memory of what it refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobTag {
    /// Hash of its id; 0: none.
    pub job: u64,
    /// Hash of what makes deployments treat it like others: model name and API.
    pub kind: u64,
}

/// Call that admission let go; its end is to be reported to [`Admission::observe`](crate::Admission::observe).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Booking {
    pub deployment: DeploymentIndex,
    pub charge: u64,
    pub at: Instant,
    /// Total of all bookings there, this one included.
    pub total: f64,
    /// It is the probe of a breaker.
    pub is_probe: bool,
    pub tag: JobTag,
}
