//! Backends of a night: embedded, with a worker of our own, or configured, with other workers.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backends::{self, BackendError, Backends, LocalBackends};
use crate::config::{Config, ConfigError};
use domain::job::BatchId;
use domain::prices::Prices;
use queue::Queue;
use store::Store;
use telemetry::WorkerProgress;
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings};

/// Queue and store of a night.
pub(super) enum NightBackend {
    /// Embedded: this process is the only worker, and `stop` ends it.
    Embedded {
        local: LocalBackends,
        stop: CancellationToken,
    },
    Configured(Backends),
}

impl NightBackend {
    pub(super) async fn open(
        config: &Config,
        is_embedded: bool,
        stop: CancellationToken,
    ) -> Result<Self, BackendError> {
        if is_embedded {
            Ok(Self::Embedded { local: LocalBackends::open(config)?, stop })
        } else {
            Ok(Self::Configured(backends::open(config).await?))
        }
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded { local, .. } => local.store(),
            Self::Configured(backends) => backends.store.clone(),
        }
    }

    pub(super) async fn queue(&self, batch: &BatchId) -> Result<Arc<dyn Queue>, BackendError> {
        match self {
            Self::Embedded { local, .. } => local.queue_of(batch).await,
            Self::Configured(backends) => Ok(backends.queue.clone()),
        }
    }

    pub(super) async fn close(&self) {
        if let Self::Configured(backends) = self {
            backends.queue.close().await;
        }
    }

    /// Starts a worker on the batch, if the backends are embedded.
    ///
    /// # Errors
    /// If a deployment can't be called as configured.
    pub(super) fn worker(
        &self,
        config: &Config,
        prices: &Prices,
        (queue, batch): (&Arc<dyn Queue>, &BatchId),
    ) -> Result<Option<NightWorker>, ConfigError> {
        let Self::Embedded { local, stop } = self else { return Ok(None) };
        let progress = Arc::<WorkerProgress>::default();
        telemetry::register_gauges(&progress);
        let worker = Worker {
            queue: queue.clone(),
            store: local.store(),
            targets: config.targets()?,
            settings: WorkerSettings {
                only_batch: Some(batch.clone()),
                prices: Some(Arc::new(prices.clone())),
                ..config.worker_settings()
            },
            progress,
        };
        let ending = stop.child_token();
        let running = tokio::spawn(worker.run(ending.clone()));
        Ok(Some(NightWorker { running, ending }))
    }
}

/// Our own worker beside the night.
pub(super) struct NightWorker {
    running: JoinHandle<Result<WorkerExit, WorkerError>>,
    ending: CancellationToken,
}

impl NightWorker {
    /// Waits for the end of the worker, and takes it; without a worker, for ever.
    pub(super) async fn ended(worker: &mut Option<Self>) -> Result<WorkerExit, WorkerError> {
        let Some(running) = worker.as_mut() else { return std::future::pending().await };
        let ended = (&mut running.running).await;
        *worker = None;
        ended.unwrap_or(Err(WorkerError::Panicked))
    }

    /// Ends the worker, whose night is over.
    pub(super) async fn end(self) -> Result<(), WorkerError> {
        self.ending.cancel();
        self.running.await.unwrap_or(Err(WorkerError::Panicked)).map(drop)
    }
}
