//! The pipeline, written once for every queue and store: pull, admit, call, record, settle.
//!
//! ```text
//! puller ──jobs──▶ conductor ──spawns──▶ attempt ──outcome──▶ recorder ──▶ settler
//!    ▲                  ▲  owns Admission    │
//!    └── room ──────────┼────────────────────┴── end of call, job to try again
//!                       ├─ postpone_all gives jobs back whose next try is far off
//!                       ├─ treasury keeps a purse of each budget that calls draw on
//!                       ├─ states says whose batch is paused or cancelled
//!                       ├─ keep_locks renews what all of them hold
//!                       └─ sharing says which part of the quotas is ours
//! ```
//!
//! Every task has an owner and an end: [`Worker::run`] starts them and joins them, in the order in
//! which work drains. What is held at any time is bounded by `max_held`, whatever the queue holds.

mod attempt;
mod back;
mod conductor;
pub mod explain;
mod held;
mod hold;
mod postpone;
mod pull;
mod purse;
mod record;
pub mod retry;
mod shares;
mod states;
mod treasury;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use admission::{Admission, Member};
use back::Back;
use domain::job::BatchId;
use domain::prices::Prices;
use held::{Held, Locks};
use model::Client;
use pull::Pulled;
use queue::{Queue, QueueError};
use store::{Store, StoreError};
use telemetry::Progress;

/// The usual [`Settings::postpone_from`]: half of Service Bus's usual lock, so that a job which only
/// waits for its retry costs no renewal.
pub const POSTPONE_FROM: Duration = Duration::from_secs(30);

/// Outcomes that may wait for the recorder before calls do: what comes in while one group is being
/// written, at the most that one instance can call for.
const TO_RECORD: usize = 256;

/// A deployment that calls can go to.
#[derive(Clone)]
pub struct Target {
    pub member: Member,
    pub client: Client,
}

/// How the pipeline behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Once this is cancelled nothing more is on its way to the queue: the worker ends when it is
    /// empty, or has only jobs of paused batches. `None`: it waits for more.
    pub drain: Option<CancellationToken>,
    /// The one batch that the queue hands out, if it is one.
    pub only: Option<BatchId>,
    /// Other workers use the same queue and quotas: it takes its share of both.
    pub shared: bool,
    /// What tokens cost, for batches with a budget of money.
    pub prices: Option<Arc<Prices>>,
    /// Deliveries held at a time, waiting and in flight together.
    pub max_held: usize,
    /// Calls of one job that may end in a passing fault before it is dead.
    pub max_tries: u32,
    /// Hand-outs of one job without an outcome before it is dead.
    pub max_deliveries: u32,
    /// A retry that is at least so far off waits in the queue, a nearer one in the worker.
    pub postpone_from: Duration,
    /// How long calls in flight may go on after a stop.
    pub shutdown_grace: Duration,
    /// How long no deployment may be reachable before the worker gives up.
    pub unreachable_after: Duration,
    /// How long a job waits for a tier of deployments before the one below may take it.
    pub spill_after: Duration,
}

/// For [`Settings::drain`], where all jobs are in the queue already.
pub fn all_queued() -> CancellationToken {
    let token = CancellationToken::new();
    token.cancel();
    token
}

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Halt {
    /// The queue is empty and everything is settled.
    Drained,
    /// All that is left in the queue are jobs of these batches, which are paused.
    Paused { batches: Vec<BatchId> },
    /// It was asked to.
    Stopped,
    /// No deployment will answer as configured.
    NoDeployment { why: String },
    /// No deployment could be connected to for too long.
    Unreachable { why: String },
}

/// Why a worker failed. Whatever it held is redelivered.
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
    pub targets: Vec<Target>,
    pub settings: Settings,
    pub progress: Arc<Progress>,
}

impl Worker {
    /// Works until the queue is drained (if so set), a stop, or trouble that is no job's fault.
    ///
    /// # Errors
    /// If the queue or the store fails for good; nothing that it held is lost.
    pub async fn run(self, stop: CancellationToken) -> Result<Halt, WorkerError> {
        let locks = Arc::new(Locks::new(self.progress.clone()));
        let grace = self.settings.shutdown_grace;
        let (to_admission, arriving) = mpsc::channel(4);
        let calls = self.targets.iter().map(|t| t.member.limits.concurrency).sum::<usize>();
        let (to_record, finished) = mpsc::channel(calls.max(TO_RECORD));
        // Ends the whole pipeline when one of its tasks fails.
        let ending = stop.child_token();

        let (to_conductor, orders) = mpsc::channel(4);
        let states = states::States::new(self.store.clone(), &self.settings, to_conductor.clone());
        let states = Arc::new(states);
        let watching = tokio::spawn(states.clone().watch(ending.clone()));
        let (to_postpone, postponed) = mpsc::channel(calls.max(64));
        let keeping = tokio::spawn(held::keep_locks(self.queue.clone(), locks.clone()));
        let puller = pull::Puller {
            queue: self.queue.clone(),
            store: self.store.clone(),
            locks,
            states: states.clone(),
            hold: hold_for(calls, &self.settings, &self.progress),
            settings: self.settings.clone(),
            to_admission,
            to_postpone: to_postpone.clone(),
            to_record: to_record.clone(),
            only_waits_since: None,
        };
        let pulling = tokio::spawn(ends(ending.clone(), puller.run(ending.clone())));
        let postponing = postpone::postpone_all(self.queue.clone(), postponed);
        let postponing = tokio::spawn(ends(ending.clone(), postponing));
        let recording = record::record_all(
            self.store.clone(),
            self.queue.clone(),
            finished,
            self.progress.clone(),
        );
        let recording = tokio::spawn(ends(ending.clone(), recording));

        let admission = admission_to(&self.targets, self.settings.spill_after);
        let sharing = self.settings.shared.then(|| {
            let sharing = shares::Sharing::new(self.store.clone(), &self.targets, to_conductor);
            tokio::spawn(sharing.run(ending.clone()))
        });
        let caller = attempt::Caller {
            targets: self.targets,
            max_tries: self.settings.max_tries,
            postpone_from: self.settings.postpone_from,
            store: self.store,
            to_postpone,
            to_record,
            progress: self.progress.clone(),
            cut: CancellationToken::new(),
        };
        let conductor = conductor::Conductor::new(
            admission,
            Arc::new(caller),
            self.settings.clone(),
            self.progress,
            states.clone(),
            conductor::Inbox { arriving, orders },
        );
        let (halt, back) = conductor.run(&ending).await;
        ending.cancel();
        let max_deliveries = self.settings.max_deliveries;
        let back = back.into_iter().map(Back::from).collect();
        back::give_back(self.queue.as_ref(), back, max_deliveries).await;
        states.close().await;
        if let Some(sharing) = sharing {
            sharing.await.map_err(|_| WorkerError::Panicked)?;
        }
        watching.await.map_err(|_| WorkerError::Panicked)?;
        // A store that is away for longer than the grace time must not keep us from ending.
        let patience = if matches!(halt, Ok(Halt::Drained)) { Duration::MAX } else { grace };
        let pulled = in_time(pulling, patience).await?;
        let recorded = in_time(recording, patience).await?;
        let postponed = postponing.await.map_err(|_| WorkerError::Panicked)?;
        keeping.abort();
        recorded.and(postponed)?;
        match (halt?, pulled?) {
            (Halt::Drained, Pulled::Paused(batches)) => Ok(Halt::Paused { batches }),
            (halt, _) => Ok(halt),
        }
    }
}

fn hold_for(calls: usize, settings: &Settings, progress: &Arc<Progress>) -> hold::Hold {
    let least = settings.shared.then_some(2 * calls);
    hold::Hold::new(settings.max_held, least, progress.clone())
}

fn admission_to(targets: &[Target], spill_after: Duration) -> Admission<Held> {
    let members = targets.iter().map(|target| target.member.clone()).collect();
    Admission::new(members, spill_after, Instant::now())
}

/// Runs a task of the pipeline; if it fails, the others are told to stop.
async fn ends<T>(
    others: CancellationToken,
    task: impl Future<Output = Result<T, WorkerError>>,
) -> Result<T, WorkerError> {
    let result = task.await;
    if result.is_err() {
        others.cancel();
    }
    result
}

/// The end of a task that may wait for the store.
async fn in_time<T>(task: JoinHandle<T>, patience: Duration) -> Result<T, WorkerError> {
    let ended = tokio::time::timeout(patience, task).await;
    ended.map_err(|_| WorkerError::NotRecorded)?.map_err(|_| WorkerError::Panicked)
}
