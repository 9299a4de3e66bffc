//! What a stage leaves behind when it ends.

use super::exit::{WorkerError, WorkerExit};
use super::leases::BoxedJob;
use domain::job::BatchId;

/// End of a stage.
pub(super) enum StageEnd {
    Dispatched(DispatchEnd),
    Pulled(PullEnd),
    /// It has nothing to report.
    Done,
}

/// End of the dispatcher.
pub(super) struct DispatchEnd {
    pub(super) exit: Result<WorkerExit, WorkerError>,
    /// Jobs that it held and that have no outcome.
    pub(super) unfinished: Vec<BoxedJob>,
}

/// Reason why pulling ended.
pub(super) enum PullEnd {
    /// A stop, or an empty queue.
    Finished,
    /// Only jobs of these batches are left.
    Paused(Vec<BatchId>),
}
