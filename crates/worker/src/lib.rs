//! The pipeline, written once for every queue and store: pull, admit, call, record, settle.
//!
//! ```text
//! puller ──jobs──▶ dispatcher ──spawns──▶ attempt ──outcome──▶ recorder ──▶ settler
//!    ▲                  ▲  owns Admission    │
//!    └── slots ─────────┼────────────────────┴── end of call, job to try again
//!                       ├─ defer_all returns jobs whose next attempt is far off
//!                       ├─ budget_sync keeps the allowance that calls draw on
//!                       ├─ batch_registry watches for paused and cancelled batches
//!                       ├─ renew_leases renews what all of them hold
//!                       └─ shares negotiates our share of the quotas
//! ```
//!
//! Every task has one owner (`tasks`) and an end: [`Worker::run`] starts them and joins them, in the
//! order in which work drains. The number of jobs held is bounded by `max_held`, whatever the queue
//! holds.

mod allowance;
mod attempt;
mod batch_registry;
mod budget_sync;
mod defer;
mod dispatcher;
mod inquiry;
mod leases;
mod prefetch;
mod pull;
mod record;
mod release;
pub mod retry;
mod shares;
mod tasks;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use admission::PoolMember;
use attempt::AttemptRunner;
use batch_registry::BatchRegistry;
use budget_sync::BudgetSync;
use defer::DeferredJob;
use dispatcher::{Dispatcher, DispatcherInbox};
use domain::job::BatchId;
use domain::prices::Prices;
use leases::{BoxedJob, LeaseTable};
use model::ModelClient;
use pull::Puller;
use queue::{Queue, QueueError};
use record::{FinishedJob, SettlementGroup};
use shares::{DispatcherCommand, ShareExchange};
use store::{Store, StoreError};
use tasks::WorkerTasks;
use telemetry::WorkerProgress;

pub use tasks::WorkerStage;

/// Default of [`WorkerSettings::defer_from`]: half of Service Bus's usual lock, so that a job which
/// only waits for its retry costs no renewal.
pub const DEFER_FROM: Duration = Duration::from_secs(30);

/// Outcomes that may wait for the recorder before calls block: those that come in while one group
/// is being written, at the most that one instance can call for.
const MIN_RECORD_CHANNEL: usize = 256;

/// Jobs that may wait for the deferrer before calls block.
const MIN_DEFER_CHANNEL: usize = 64;

/// Groups between recording and settling.
const GROUPS_BETWEEN: usize = 2;

/// Deployment that calls can go to.
#[derive(Clone)]
pub struct WorkerTarget {
    pub member: PoolMember,
    pub client: ModelClient,
}

/// Settings of the pipeline.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// Once cancelled, no more jobs are on their way to the queue: the worker ends when it is
    /// empty, or has only jobs of paused batches. `None`: it waits for more.
    pub drain: Option<CancellationToken>,
    /// The one batch that the queue hands out, if it is restricted to one.
    pub only_batch: Option<BatchId>,
    /// Other workers use the same queue and quotas: it takes its share of both.
    pub shared: bool,
    /// Prices of tokens, for batches with a budget of money.
    pub prices: Option<Arc<Prices>>,
    /// Deliveries held at a time, waiting and in flight together.
    pub max_held: usize,
    /// Attempts of one job that may end in a transient error before it is dead.
    pub max_attempts: u32,
    /// Hand-outs of one job without an outcome before it is dead.
    pub max_deliveries: u32,
    /// A retry that is at least so far off waits in the queue, a nearer one in the worker.
    pub defer_from: Duration,
    /// Time that calls in flight may take after a stop.
    pub shutdown_grace: Duration,
    /// Time without a reachable deployment after which the worker gives up.
    pub unreachable_after: Duration,
    /// Time that a job waits for a tier of deployments before the one below may take it.
    pub spill_after: Duration,
}

/// Returns a token for [`WorkerSettings::drain`], where all jobs are in the queue already.
pub fn all_queued() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

/// Reason why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerExit {
    /// The queue is empty and everything is settled.
    Drained,
    /// Only jobs of these batches are left in the queue; they are paused.
    Paused { batches: Vec<BatchId> },
    /// Stopped on request.
    Stopped,
    /// No deployment will answer as configured.
    NoDeployment { why: String },
    /// No deployment could be connected to for too long.
    Unreachable { why: String },
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("all jobs are settled"),
            Self::Paused { .. } => f.write_str("only jobs of paused batches are left"),
            Self::Stopped => f.write_str("interrupted"),
            Self::NoDeployment { why } => write!(f, "no deployment answers: {why}"),
            Self::Unreachable { why } => write!(f, "no endpoint can be reached: {why}"),
        }
    }
}

/// Reason why a worker failed. All jobs that it held are redelivered.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stage waited for a queue or a store that was away for longer than the grace time.
    #[error("{}", .0.late_reason())]
    Late(WorkerStage),
    #[error("a task of the worker panicked; its message is above")]
    Panicked,
}

/// One worker over one queue and one store.
pub struct Worker {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub targets: Vec<WorkerTarget>,
    pub settings: WorkerSettings,
    pub progress: Arc<WorkerProgress>,
}

impl Worker {
    /// Works until the queue is drained (if so set), a stop, or an error that is no job's fault.
    ///
    /// # Errors
    /// If the queue or the store fails permanently; no job that it held is lost.
    pub async fn run(self, stop: CancellationToken) -> Result<WorkerExit, WorkerError> {
        let mut tasks = WorkerTasks::new(stop.child_token());
        let batches = self.start(&mut tasks);
        tasks.join(|stage| stage == WorkerStage::Dispatcher).await;
        tasks.ending().cancel();
        // A queue or a store that is away for longer than the grace time must not keep us from
        // ending.
        let grace = self.settings.shutdown_grace;
        self.release(tasks.take_unfinished(), grace).await;
        batches.close();
        let patience = if tasks.is_drained() { Duration::MAX } else { grace };
        // `finish` ends those that are late, and says so.
        let _ = timeout(patience, tasks.join(WorkerStage::is_draining)).await;
        tasks.join(WorkerStage::is_bounded).await;
        tasks.finish().await
    }

    /// Starts all stages; returns the batches whose jobs they hold.
    fn start(&self, tasks: &mut WorkerTasks) -> Arc<BatchRegistry> {
        use WorkerStage as Stage;
        let (queue, store, progress) = (&self.queue, &self.store, &self.progress);
        let (to, from) = channels(self.max_calls());
        let ending = tasks.ending();
        let leases = Arc::new(LeaseTable::new(progress.clone()));
        let batches = Arc::new(BatchRegistry::new(self, &to));

        let puller = Puller::new(self, leases.clone(), batches.clone(), &to);
        tasks.spawn_with_end(Stage::Puller, puller.run(ending.clone()));
        let inbox = DispatcherInbox { jobs: from.jobs, commands: from.commands };
        let dispatcher =
            Dispatcher::new(self, batches.clone(), inbox, AttemptRunner::new(self, &to));
        tasks.spawn_with_end(Stage::Dispatcher, dispatcher.run(ending.clone()));
        let recording =
            record::record_all(store.clone(), from.finished, to.recorded, progress.clone());
        tasks.spawn(Stage::Recorder, recording);
        let settling = record::settle_all(queue.clone(), from.recorded, progress.clone());
        tasks.spawn(Stage::Settler, settling);
        tasks.spawn(Stage::Deferrer, defer::defer_all(queue.clone(), from.deferred));

        let syncing = budget_sync::run_all(from.budget_syncs, batches.closed());
        tasks.spawn(Stage::BudgetSync, syncing);
        tasks.spawn_infallible(Stage::BatchWatch, batches.clone().watch(ending.clone()));
        tasks.spawn_infallible(Stage::LeaseRenewal, leases::renew_leases(queue.clone(), leases));
        if self.settings.shared {
            let exchange = ShareExchange::new(store.clone(), &self.targets, to.commands);
            tasks.spawn_infallible(Stage::ShareExchange, exchange.run(ending));
        }
        batches
    }

    /// Releases jobs that have no outcome; within the time, or by the end of their locks.
    async fn release(&self, jobs: Vec<BoxedJob>, time: Duration) {
        let jobs: Vec<_> = jobs.into_iter().map(|job| job.into_delivery()).collect();
        let released =
            release::release_all(self.queue.as_ref(), jobs, self.settings.max_deliveries);
        if timeout(time, released).await.is_err() {
            warn!("the queue can't be reached: jobs are handed out again when their locks expire");
        }
    }

    /// Returns the number of calls that can be in flight.
    fn max_calls(&self) -> usize {
        self.targets.iter().map(|target| target.member.limits.concurrency).sum()
    }
}

/// Sending ends of the channels between the stages.
struct StageSenders {
    /// To the dispatcher: jobs to call for.
    jobs: mpsc::Sender<Vec<BoxedJob>>,
    commands: mpsc::Sender<DispatcherCommand>,
    deferred: mpsc::Sender<DeferredJob>,
    finished: mpsc::Sender<Box<FinishedJob>>,
    recorded: mpsc::Sender<SettlementGroup>,
    budget_syncs: mpsc::Sender<BudgetSync>,
}

/// Receiving ends, by the same names.
struct StageReceivers {
    jobs: mpsc::Receiver<Vec<BoxedJob>>,
    commands: mpsc::Receiver<DispatcherCommand>,
    deferred: mpsc::Receiver<DeferredJob>,
    finished: mpsc::Receiver<Box<FinishedJob>>,
    recorded: mpsc::Receiver<SettlementGroup>,
    budget_syncs: mpsc::Receiver<BudgetSync>,
}

/// Makes the channels of a worker that can have so many calls in flight.
fn channels(calls: usize) -> (StageSenders, StageReceivers) {
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
