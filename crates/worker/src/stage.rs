//! Stages of the pipeline, for messages and for the order in which they end.

/// Stage of the pipeline that runs in a task of its own.
///
/// The order is that of importance: if several don't end in time, the first of them is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkerStage {
    Recorder,
    Settler,
    Deferrer,
    Puller,
    Dispatcher,
    BudgetSync,
    BatchWatch,
    ShareExchange,
    LeaseRenewal,
}

impl WorkerStage {
    /// Returns whether the stage ends when the jobs before it are done, however long that takes:
    /// it may wait for the queue or the store.
    pub(super) fn is_draining(self) -> bool {
        matches!(self, Self::Recorder | Self::Settler | Self::Deferrer | Self::Puller)
    }

    /// Returns whether the stage bounds the time that it takes to end.
    pub(super) fn is_bounded(self) -> bool {
        matches!(self, Self::BudgetSync | Self::BatchWatch | Self::ShareExchange)
    }

    /// Returns the reason why the stage did not end in time, and what follows for its jobs.
    pub(super) fn late_reason(self) -> &'static str {
        match self {
            Self::Recorder => {
                "the store could not be reached within the grace time; \
                 the last outcomes are not recorded and their jobs will be sent again"
            }
            Self::Settler => {
                "the queue could not be reached within the grace time; the last outcomes are \
                 recorded, and their jobs are settled when they are handed out again"
            }
            Self::Deferrer => {
                "the queue could not be reached within the grace time; jobs that wait for their \
                 next attempt are handed out again when their locks expire"
            }
            Self::Puller => {
                "the queue or the store did not answer within the grace time; jobs that were just \
                 received are handed out again when their locks expire"
            }
            Self::Dispatcher
            | Self::BudgetSync
            | Self::BatchWatch
            | Self::ShareExchange
            | Self::LeaseRenewal => "a task of the worker did not end within the grace time",
        }
    }
}
