//! One worker of any number, on the configured queue and store.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::webhook_task::WebhookTask;
use crate::backends::{self, BackendError, Backends};
use crate::config::{Config, ConfigError};
use crate::webhook::{WebhookSettings, WebhookSettingsError};
use control::batches;
use domain::prices::{Prices, PricesError};
use store::{Store, StoreError};
use telemetry::WorkerProgress;
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings, WorkerTarget, all_queued};

/// Reason why a worker could not start, or failed. All jobs that it held are redelivered.
#[derive(Debug, thiserror::Error)]
pub enum QueueWorkerError {
    #[error("no endpoint to send the prompts to: set one in [[deployments]]")]
    NoEndpoint,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Prices(#[from] PricesError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Webhook(#[from] WebhookSettingsError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A worker with its queue and store open.
pub struct QueueWorker {
    pub progress: Arc<WorkerProgress>,
    targets: Vec<WorkerTarget>,
    settings: WorkerSettings,
    webhook: WebhookSettings,
    backends: Backends,
}

impl QueueWorker {
    /// Opens queue and store. With `drain` it ends when the queue is empty and all is settled.
    ///
    /// # Errors
    /// Names the setting or the backend that is at fault.
    pub async fn open(config: &Config, drain: bool) -> Result<Self, QueueWorkerError> {
        let targets = config.targets()?;
        if targets.is_empty() {
            return Err(QueueWorkerError::NoEndpoint);
        }
        let prices = Prices::load(config.prices.file.as_deref())?;
        Ok(Self {
            progress: Arc::default(),
            targets,
            settings: WorkerSettings {
                shared: true,
                prices: Some(Arc::new(prices)),
                drain: drain.then(all_queued),
                ..config.worker_settings()
            },
            webhook: config.webhook.clone(),
            backends: backends::open(config).await?,
        })
    }

    /// Returns the tokens a minute of all deployments, if each has its own configured.
    pub fn tpm(&self) -> Option<u64> {
        self.targets.iter().map(|target| target.member.limits.tpm).sum()
    }

    pub fn store(&self) -> &dyn Store {
        self.backends.store.as_ref()
    }

    /// Works until a stop, or until the queue is drained if so opened; sends the notices of batches
    /// that end meanwhile, and closes these.
    ///
    /// # Errors
    /// If the queue or the store fails for good.
    pub async fn work(&self, stop: CancellationToken) -> Result<WorkerExit, QueueWorkerError> {
        let ended = self.work_and_close(stop).await;
        // Settlements must reach the queue before the process ends.
        self.backends.queue.close().await;
        ended
    }

    async fn work_and_close(
        &self,
        stop: CancellationToken,
    ) -> Result<WorkerExit, QueueWorkerError> {
        telemetry::register_gauges(&self.progress);
        let webhook = WebhookTask::start(&self.webhook, &self.backends.store, &self.progress)?;
        let worker = Worker {
            queue: self.backends.queue.clone(),
            store: self.backends.store.clone(),
            targets: self.targets.clone(),
            settings: self.settings.clone(),
            progress: self.progress.clone(),
        };
        let ended = tokio::spawn(worker.run(stop)).await.unwrap_or(Err(WorkerError::Panicked));
        if let Some(webhook) = webhook {
            webhook.finish(matches!(ended, Ok(WorkerExit::Drained))).await;
        }
        let exit = ended?;
        if matches!(exit, WorkerExit::Drained | WorkerExit::Paused { .. }) {
            batches::close_finished(self.store()).await?;
        }
        Ok(exit)
    }
}
