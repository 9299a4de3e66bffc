//! Channels between the stages of the pipeline.

use tokio::sync::mpsc;

use super::budget_sync::BudgetSync;
use super::command::DispatcherCommand;
use super::defer::DeferredJob;
use super::leases::BoxedJob;
use super::record::{FinishedJob, SettlementGroup};

/// Outcomes that may wait for the recorder before calls block: those that come in while one group
/// is being written, at the most that one instance can call for.
const MIN_RECORD_CHANNEL: usize = 256;

/// Jobs that may wait for the deferrer before calls block.
const MIN_DEFER_CHANNEL: usize = 64;

/// Groups between recording and settling.
const GROUPS_BETWEEN: usize = 2;

/// Sending ends of the channels between the stages.
pub(super) struct StageSenders {
    /// To the dispatcher: jobs to call for.
    pub(super) jobs: mpsc::Sender<Vec<BoxedJob>>,
    pub(super) commands: mpsc::Sender<DispatcherCommand>,
    pub(super) deferred: mpsc::Sender<DeferredJob>,
    pub(super) finished: mpsc::Sender<Box<FinishedJob>>,
    pub(super) recorded: mpsc::Sender<SettlementGroup>,
    pub(super) budget_syncs: mpsc::Sender<BudgetSync>,
}

/// Receiving ends, by the same names.
pub(super) struct StageReceivers {
    pub(super) jobs: mpsc::Receiver<Vec<BoxedJob>>,
    pub(super) commands: mpsc::Receiver<DispatcherCommand>,
    pub(super) deferred: mpsc::Receiver<DeferredJob>,
    pub(super) finished: mpsc::Receiver<Box<FinishedJob>>,
    pub(super) recorded: mpsc::Receiver<SettlementGroup>,
    pub(super) budget_syncs: mpsc::Receiver<BudgetSync>,
}

/// Makes the channels of a worker that can have so many calls in flight.
pub(super) fn channels(calls: usize) -> (StageSenders, StageReceivers) {
    let (jobs, jobs_received) = mpsc::channel(4);
    let (commands, commands_received) = mpsc::channel(4);
    let (deferred, deferred_received) = mpsc::channel(calls.max(MIN_DEFER_CHANNEL));
    let (finished, finished_received) = mpsc::channel(calls.max(MIN_RECORD_CHANNEL));
    let (recorded, recorded_received) = mpsc::channel(GROUPS_BETWEEN);
    let (budget_syncs, budget_syncs_received) = mpsc::channel(4);
    let senders = StageSenders { jobs, commands, deferred, finished, recorded, budget_syncs };
    let receivers = StageReceivers {
        jobs: jobs_received,
        commands: commands_received,
        deferred: deferred_received,
        finished: finished_received,
        recorded: recorded_received,
        budget_syncs: budget_syncs_received,
    };
    (senders, receivers)
}
