//! A worker before it runs: its queue, its store, its deployments, its settings.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use admission::PoolMember;
use domain::job::BatchId;
use domain::prices::Prices;
use model::ModelClient;
use queue::Queue;
use store::Store;
use telemetry::WorkerProgress;

/// Default of [`WorkerSettings::defer_from`]: half of Service Bus's usual lock, so that a job which
/// only waits for its retry costs no renewal.
pub const DEFER_FROM: Duration = Duration::from_secs(30);

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
    /// Share of a batch's jobs, from 0 to 1, that may fail before it is paused; 1: all.
    pub max_failure_rate: f64,
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

/// One worker over one queue and one store.
pub struct Worker {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub targets: Vec<WorkerTarget>,
    pub settings: WorkerSettings,
    pub progress: Arc<WorkerProgress>,
}

impl Worker {
    /// Returns the number of calls that can be in flight.
    pub(super) fn max_calls(&self) -> usize {
        self.targets.iter().map(|target| target.member.limits.concurrency).sum()
    }

    /// Returns the number of calls that can be in flight before a quota is known.
    pub(super) fn unpaced_calls(&self) -> usize {
        let limits = self.targets.iter().map(|target| &target.member.limits);
        limits.map(|limits| limits.concurrency.min(limits.unpaced_concurrency)).sum()
    }
}
