//! Where a night's prompts and answers are: here, with a worker of our own, or with others.

use std::sync::Arc;

use anyhow::anyhow;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backends::{self, Backends};
use crate::cli::Failure;
use crate::config::Config;
use documents::conduct::Finish;
use domain::job::BatchId;
use domain::prices::Prices;
use queue::Queue;
use queue::local::LocalQueue;
use state::StateDir;
use state::sqlite::Database;
use store::Store;
use store::local::LocalStore;
use telemetry::{self, Progress};
use worker::{Halt, Settings, Worker, WorkerError};

/// Where the night's jobs and answers are.
pub(super) enum Place {
    /// Here: this process is the one worker, and nobody else uses the directory.
    Here {
        database: Database,
        store: Arc<LocalStore>,
        _state: StateDir,
    },
    There(Backends),
}

/// A worker of our own, until it ends.
pub(super) type Working = JoinHandle<Result<Halt, WorkerError>>;

impl Place {
    pub(super) async fn open(config: &Config, is_here: bool) -> Result<Self, Failure> {
        if !is_here {
            return Ok(Self::There(backends::open(config).await?));
        }
        let state = StateDir::hold(&config.state.dir).map_err(Failure::usage)?;
        let database = Database::open(&config.state.dir).map_err(Failure::usage)?;
        let store = Arc::new(LocalStore::new(database.clone()));
        Ok(Self::Here { database, store, _state: state })
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Here { store, .. } => store.clone(),
            Self::There(backends) => backends.store.clone(),
        }
    }

    pub(super) async fn queue(
        &self,
        config: &Config,
        batch: &BatchId,
    ) -> Result<Arc<dyn Queue>, Failure> {
        match self {
            Self::There(backends) => Ok(backends.queue.clone()),
            Self::Here { database, .. } => {
                let queue =
                    LocalQueue::new(database.clone(), config.lock_duration()).only(batch.clone());
                // The directory is ours alone: whoever held these jobs is dead.
                queue.release_orphans().await.map_err(Failure::unreachable)?;
                Ok(telemetry::observed(Arc::new(queue), telemetry::Labels::local()))
            }
        }
    }

    pub(super) async fn close(&self) {
        if let Self::There(backends) = self {
            backends.queue.close().await;
        }
    }

    /// Starts the worker, where the work is done here; it ends after either token.
    pub(super) fn worker(
        &self,
        (config, prices): (&Config, &Prices),
        queue: &Arc<dyn Queue>,
        batch: BatchId,
        [stop, through]: [CancellationToken; 2],
    ) -> Result<Option<Working>, Failure> {
        let Self::Here { store, .. } = self else { return Ok(None) };
        let progress = Arc::<Progress>::default();
        telemetry::watch(&progress);
        let worker = Worker {
            queue: queue.clone(),
            store: store.clone(),
            targets: config.targets().map_err(Failure::usage)?,
            settings: Settings {
                only: Some(batch),
                prices: Some(Arc::new(prices.clone())),
                ..config.worker()
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

/// The end of the worker, which is none if there is no worker.
pub(super) async fn ended(worker: &mut Option<Working>) -> Result<Halt, WorkerError> {
    match worker {
        Some(handle) => {
            let ended = handle.await.unwrap_or(Err(WorkerError::Panicked));
            *worker = None;
            ended
        }
        None => std::future::pending().await,
    }
}

/// A worker that ends before the night does.
pub(super) fn halted(halt: Result<Halt, WorkerError>) -> Result<Finish, Failure> {
    let again = "; nothing is lost: start it again when that is mended";
    match halt.map_err(Failure::unreachable)? {
        Halt::NoDeployment { why } => {
            Err(Failure::usage(anyhow!("no deployment answers: {why}{again}")))
        }
        Halt::Unreachable { why } => {
            Err(Failure::unreachable(anyhow!("no endpoint can be reached: {why}{again}")))
        }
        Halt::Drained | Halt::Paused { .. } | Halt::Stopped => Ok(Finish::Stopped),
    }
}
