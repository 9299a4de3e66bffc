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
//! Every task has an owner and an end: [`Worker::run`] starts them and joins them, in the order in
//! which work drains. The number of jobs held is bounded by `max_held`, whatever the queue holds.

mod allowance;
mod attempt;
mod batch_registry;
mod budget_sync;
mod defer;
mod dispatcher;
pub mod inquiry;
mod leases;
mod prefetch;
mod pull;
mod record;
mod release;
pub mod retry;
mod shares;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use admission::{Admission, PoolMember};
use domain::job::BatchId;
use domain::prices::Prices;
use leases::{BoxedJob, LeaseTable};
use model::ModelClient;
use pull::PullEnd;
use queue::{Queue, QueueError};
use release::ReleasedJob;
use store::{Store, StoreError};
use telemetry::WorkerProgress;

/// Default of [`WorkerSettings::defer_from`]: half of Service Bus's usual lock, so that a job which
/// only waits for its retry costs no renewal.
pub const DEFER_FROM: Duration = Duration::from_secs(30);

/// Outcomes that may wait for the recorder before calls block: those that come in while one group
/// is being written, at the most that one instance can call for.
const RECORD_CHANNEL: usize = 256;

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

/// Reason why a worker failed. All jobs that it held are redelivered.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the store could not be reached within the grace time; \
         the last outcomes are not recorded and their jobs will be sent again"
    )]
    NotRecorded,
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
    #[expect(clippy::too_many_lines, reason = "its tasks move into a JoinSet next")]
    pub async fn run(self, stop: CancellationToken) -> Result<WorkerExit, WorkerError> {
        let locks = Arc::new(LeaseTable::new(self.progress.clone()));
        let grace = self.settings.shutdown_grace;
        let (to_admission, arriving) = mpsc::channel(4);
        let calls = self.targets.iter().map(|t| t.member.limits.concurrency).sum::<usize>();
        let (to_record, finished) = mpsc::channel(calls.max(RECORD_CHANNEL));
        // Ends the whole pipeline when one of its tasks fails.
        let ending = stop.child_token();

        let (to_conductor, orders) = mpsc::channel(4);
        let states = batch_registry::BatchRegistry::new(
            self.store.clone(),
            &self.settings,
            to_conductor.clone(),
        );
        let states = Arc::new(states);
        let watching = tokio::spawn(states.clone().watch(ending.clone()));
        let (to_postpone, postponed) = mpsc::channel(calls.max(64));
        let keeping = tokio::spawn(leases::renew_leases(self.queue.clone(), locks.clone()));
        let puller = pull::Puller {
            queue: self.queue.clone(),
            store: self.store.clone(),
            leases: locks,
            batches: states.clone(),
            prefetch: prefetch_limit_for(calls, &self.settings, &self.progress),
            settings: self.settings.clone(),
            to_admission,
            to_defer: to_postpone.clone(),
            to_record: to_record.clone(),
            only_paused_since: None,
        };
        let pulling =
            tokio::spawn(stop_others_on_error(ending.clone(), puller.run(ending.clone())));
        let postponing = defer::defer_all(self.queue.clone(), postponed);
        let postponing = tokio::spawn(stop_others_on_error(ending.clone(), postponing));
        let recording = record::record_all(
            self.store.clone(),
            self.queue.clone(),
            finished,
            self.progress.clone(),
        );
        let recording = tokio::spawn(stop_others_on_error(ending.clone(), recording));

        let admission = admission_to(&self.targets, self.settings.spill_after);
        let sharing = self.settings.shared.then(|| {
            let sharing =
                shares::ShareExchange::new(self.store.clone(), &self.targets, to_conductor);
            tokio::spawn(sharing.run(ending.clone()))
        });
        let caller = attempt::AttemptRunner {
            targets: self.targets,
            max_attempts: self.settings.max_attempts,
            defer_from: self.settings.defer_from,
            store: self.store,
            to_defer: to_postpone,
            to_record,
            progress: self.progress.clone(),
            abort: CancellationToken::new(),
        };
        let conductor = dispatcher::Dispatcher::new(
            admission,
            Arc::new(caller),
            self.settings.clone(),
            self.progress,
            states.clone(),
            dispatcher::DispatcherInbox { jobs: arriving, commands: orders },
        );
        let (halt, back) = conductor.run(&ending).await;
        ending.cancel();
        let max_deliveries = self.settings.max_deliveries;
        let back = back.into_iter().map(ReleasedJob::from).collect();
        release::release_all(self.queue.as_ref(), back, max_deliveries).await;
        states.close().await;
        if let Some(sharing) = sharing {
            sharing.await.map_err(|_| WorkerError::Panicked)?;
        }
        watching.await.map_err(|_| WorkerError::Panicked)?;
        // A store that is away for longer than the grace time must not keep us from ending.
        let patience = if matches!(halt, Ok(WorkerExit::Drained)) { Duration::MAX } else { grace };
        let pulled = join_within(pulling, patience).await?;
        let recorded = join_within(recording, patience).await?;
        let postponed = postponing.await.map_err(|_| WorkerError::Panicked)?;
        keeping.abort();
        recorded.and(postponed)?;
        match (halt?, pulled?) {
            (WorkerExit::Drained, PullEnd::Paused(batches)) => Ok(WorkerExit::Paused { batches }),
            (halt, _) => Ok(halt),
        }
    }
}

fn prefetch_limit_for(
    calls: usize,
    settings: &WorkerSettings,
    progress: &Arc<WorkerProgress>,
) -> prefetch::PrefetchLimit {
    let least = settings.shared.then_some(2 * calls);
    prefetch::PrefetchLimit::new(settings.max_held, least, progress.clone())
}

fn admission_to(targets: &[WorkerTarget], spill_after: Duration) -> Admission<BoxedJob> {
    let members = targets.iter().map(|target| target.member.clone()).collect();
    Admission::new(members, spill_after, Instant::now())
}

/// Runs a task of the pipeline; if it fails, stops the others.
async fn stop_others_on_error<T>(
    others: CancellationToken,
    task: impl Future<Output = Result<T, WorkerError>>,
) -> Result<T, WorkerError> {
    let result = task.await;
    if result.is_err() {
        others.cancel();
    }
    result
}

/// Joins a task that may wait for the store.
async fn join_within<T>(task: JoinHandle<T>, patience: Duration) -> Result<T, WorkerError> {
    let ended = tokio::time::timeout(patience, task).await;
    ended.map_err(|_| WorkerError::NotRecorded)?.map_err(|_| WorkerError::Panicked)
}
