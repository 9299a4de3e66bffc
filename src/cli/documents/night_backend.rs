//! Backends of a night: embedded, with a worker of our own, or configured, with other workers.

use std::sync::Arc;

use anyhow::anyhow;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backends::{self, Backends};
use crate::cli::CommandError;
use crate::config::Config;
use documents::run::NightExit;
use domain::job::BatchId;
use domain::prices::Prices;
use queue::Queue;
use queue::local::LocalQueue;
use state::StateDir;
use state::sqlite::Database;
use store::Store;
use store::local::LocalStore;
use telemetry::{self, WorkerProgress};
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings};

/// Queue and store of a night.
pub(super) enum NightBackend {
    /// Embedded: this process is the only worker, and no other uses the directory.
    Embedded {
        database: Database,
        store: Arc<LocalStore>,
        _state: StateDir,
    },
    Configured(Backends),
}

/// Task of our own worker.
pub(super) type NightWorkerTask = JoinHandle<Result<WorkerExit, WorkerError>>;

impl NightBackend {
    pub(super) async fn open(config: &Config, is_embedded: bool) -> Result<Self, CommandError> {
        if !is_embedded {
            return Ok(Self::Configured(backends::open(config).await?));
        }
        let state = StateDir::lock_exclusive(&config.state.dir)?;
        let database = Database::open(&config.state.dir)?;
        let store = Arc::new(LocalStore::new(database.clone()));
        Ok(Self::Embedded { database, store, _state: state })
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded { store, .. } => store.clone(),
            Self::Configured(backends) => backends.store.clone(),
        }
    }

    pub(super) async fn queue(
        &self,
        config: &Config,
        batch: &BatchId,
    ) -> Result<Arc<dyn Queue>, CommandError> {
        match self {
            Self::Configured(backends) => Ok(backends.queue.clone()),
            Self::Embedded { database, .. } => {
                let queue = LocalQueue::new(database.clone(), config.lease_duration())
                    .only_batch(batch.clone());
                // We alone hold the directory: any process that leased these jobs is dead.
                queue.release_orphans().await?;
                Ok(telemetry::instrument_queue(Arc::new(queue), telemetry::QueueLabels::local()))
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Self::Configured(backends) = self {
            backends.queue.close().await;
        }
    }

    /// Starts the worker, if the backends are embedded; either token ends it.
    pub(super) fn worker(
        &self,
        (config, prices): (&Config, &Prices),
        queue: &Arc<dyn Queue>,
        batch: BatchId,
        [stop, through]: [CancellationToken; 2],
    ) -> Result<Option<NightWorkerTask>, CommandError> {
        let Self::Embedded { store, .. } = self else { return Ok(None) };
        let progress = Arc::<WorkerProgress>::default();
        telemetry::register_gauges(&progress);
        let worker = Worker {
            queue: queue.clone(),
            store: store.clone(),
            targets: config.targets()?,
            settings: WorkerSettings {
                only_batch: Some(batch),
                prices: Some(Arc::new(prices.clone())),
                ..config.worker_settings()
            },
            progress,
        };
        Ok(Some(tokio::spawn(async move {
            let ended = CancellationToken::new();
            let running = worker.run(ended.clone());
            tokio::pin!(running);
            tokio::select! {
                halt = &mut running => return halt,
                () = stop.cancelled() => {}
                () = through.cancelled() => {}
            }
            ended.cancel();
            running.await
        })))
    }
}

/// Waits for the end of the worker; without a worker, forever.
pub(super) async fn worker_exit(
    worker: &mut Option<NightWorkerTask>,
) -> Result<WorkerExit, WorkerError> {
    match worker {
        Some(handle) => {
            let ended = handle.await.unwrap_or(Err(WorkerError::Panicked));
            *worker = None;
            ended
        }
        None => std::future::pending().await,
    }
}

/// Handles a worker that ends before the night does.
pub(super) fn finish_after_worker(
    halt: Result<WorkerExit, WorkerError>,
) -> Result<NightExit, CommandError> {
    let again = "; nothing is lost: start it again when that is fixed";
    match halt? {
        WorkerExit::NoDeployment { why } => {
            Err(CommandError::usage_text(format!("no deployment answers: {why}{again}")))
        }
        WorkerExit::Unreachable { why } => {
            Err(CommandError::unreachable(anyhow!("no endpoint can be reached: {why}{again}")))
        }
        WorkerExit::Drained | WorkerExit::Paused { .. } | WorkerExit::Stopped => {
            Ok(NightExit::Stopped)
        }
    }
}
