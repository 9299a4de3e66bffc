//! Configuration of a deployment: what is known before its first call.

use domain::deployment::ServiceKind;

/// Limits of a deployment, known before its first call.
#[derive(Debug, Clone, PartialEq)]
pub struct DeploymentLimits {
    /// Tokens a minute; `None`: to be learnt.
    pub tpm: Option<u64>,
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Calls in flight at a time, where a known quota limits their rate.
    pub concurrency: usize,
    /// Calls in flight at a time, where none does.
    pub unpaced_concurrency: usize,
    pub service: ServiceKind,
    /// Part of the quota that is left to others, from 0 to 1.
    pub reserve: f64,
}

impl Default for DeploymentLimits {
    fn default() -> Self {
        Self {
            tpm: None,
            rpm: None,
            concurrency: 64,
            unpaced_concurrency: 64,
            service: ServiceKind::Standard,
            reserve: 0.0,
        }
    }
}
