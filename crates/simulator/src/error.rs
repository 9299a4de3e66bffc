//! Error in the settings of the simulator or of one of its deployments.

use std::time::Duration;

/// Output tokens beyond any model's answer; bounds the memory that a simulated answer takes.
pub(super) const MOST_OUTPUT: u32 = 1_000_000;

/// Error in the simulator settings.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BadSimulatorSettings {
    #[error("window is {0:?}: give it at least 1 ms, since quotas are counted per window")]
    Window(Duration),
    #[error("request_slice is {0:?}: Azure judges requests in slices of 1 s or 10 s")]
    Slice(Duration),
    #[error("fault rates are shares from 0 to 1 that add up to 1 at most")]
    FaultRates,
    #[error("latency is in milliseconds, not negative and finite")]
    Latency,
    #[error("ptu must be at least 1 token a minute, or none for a standard deployment")]
    NoPtu,
    #[error("a provisioned deployment has no flex tier: leave out flex or ptu")]
    FlexOnPtu,
    #[error(
        "a duty cycle (flex, other-bursts) must be on for some time and no longer than its period"
    )]
    DutyCycle,
    #[error(
        "a meter needs a cut above 0 and at most 1, a gateway-tpm above 0, and a time above 0 after \
         'bucket:' and 'stale:'"
    )]
    Meter,
    #[error("there is no deployment '{0}': name one of those that were set up")]
    NoSuchDeployment(String),
    #[error("charge_factor is {0}: it must be above 0 and finite")]
    ChargeFactor(f64),
    #[error("misfits is {0}: it must be a share from 0 to 1")]
    Misfits(f64),
    #[error("typical_output is {0}: it must be from 1 to {MOST_OUTPUT} tokens")]
    TypicalOutput(u32),
    #[error("max_context must be at least 1")]
    NoContext,
    #[error("'{0}' is no deployment name: use 1 to 64 letters, digits, '-', '_' or '.'")]
    DeploymentName(String),
    #[error("region '{0}' does not fit a header: use visible ASCII")]
    Region(String),
}
