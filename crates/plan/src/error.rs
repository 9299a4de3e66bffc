//! Reasons why an input can't be planned.

use std::io;

use intake::{CheckError, InputSourceError};

/// Reason why an input can't be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Source(#[from] InputSourceError),
    #[error("can't write the counted jobs to a temporary file")]
    Temporary(#[source] io::Error),
    #[error(
        "the input changed while it was read: it was checked with {checked} jobs and now has {now}"
    )]
    InputChanged { checked: u64, now: u64 },
    #[error(
        "no deployment to plan with: add [[deployments]] to the configuration, or give --tpm N"
    )]
    NoDeployment,
}
