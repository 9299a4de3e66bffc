//! Commands to the dispatcher from the tasks beside it.

use tokio::sync::oneshot;

use domain::deployment::DemandSnapshot;
use domain::inquiry::{InquiryAnswer, WorkerInquiry};

/// Command to the dispatcher.
pub(super) enum DispatcherCommand {
    /// Use these fractions of the quotas, in the order of the targets.
    UseShares(Vec<f64>),
    /// Take the jobs of batches that may not run any more out of the wait queues.
    Recheck,
    /// Report the state of the deployments.
    Report(oneshot::Sender<Vec<DemandSnapshot>>),
    /// Report on the jobs that it holds.
    Explain(WorkerInquiry, oneshot::Sender<InquiryAnswer>),
}
