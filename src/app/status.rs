//! Status of batches, deployments, workers and the queue at one moment.

use crate::backends;
use crate::config::Config;
use domain::heartbeat::Heartbeat;
use domain::job::BatchId;
use domain::prices::Prices;
use queue::{QueueDepth, QueueError};
use report::autoscale::{self, ScalingAdvice};
use report::deployments::{self, DeploymentStatus};
use report::live::{self, BatchFilter, LiveInputs, LiveStatus, LiveWatcher};
use store::{Store, StoreError};

use backends::BackendError;

/// Reason why there is no status.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("there is no batch '{0}'")]
    NoSuchBatch(BatchId),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Status at one moment.
pub struct StatusSnapshot {
    pub batches: Vec<LiveStatus>,
    pub deployments: Vec<DeploymentStatus>,
    pub workers: Vec<Heartbeat>,
}

/// Depth of the queue, and the number of workers useful for it.
#[derive(Clone, Copy)]
pub struct StatusBacklog {
    pub depth: QueueDepth,
    pub advice: ScalingAdvice,
}

impl StatusSnapshot {
    /// Reads the status of all batches, or of `only`; `watcher` knows the snapshots before.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn read(
        store: &dyn Store,
        only: Option<&BatchId>,
        prices: &Prices,
        watcher: Option<&mut LiveWatcher>,
    ) -> Result<Self, StoreError> {
        let mut workers = store.heartbeats().await?;
        workers.retain(Heartbeat::is_worker);
        let deployments = deployments::aggregate(&workers);
        let inputs = LiveInputs { deployments: &deployments, prices };
        let which = only.map_or(BatchFilter::All, BatchFilter::One);
        let batches = match watcher {
            Some(watcher) => watcher.snapshot(store, which, inputs).await?,
            None => live::snapshot(store, which, inputs).await?,
        };
        Ok(Self { batches, deployments, workers })
    }

    /// Reads the queue's depth, and computes how many workers are useful for it.
    ///
    /// # Errors
    /// If the queue or the store fails.
    pub async fn backlog(
        &self,
        store: &dyn Store,
        config: &Config,
    ) -> Result<StatusBacklog, StatusError> {
        let queue = backends::open_queue(config)?;
        let depth = queue.depth().await;
        queue.close().await;
        let depth = depth?;
        let backlog = autoscale::backlog(store, &store.batches().await?).await?;
        let advice = autoscale::advise(depth, backlog, &self.workers, &config.scaling);
        Ok(StatusBacklog { depth, advice })
    }
}

/// Fails if the batch is not in the store.
///
/// # Errors
/// Names the batch, or says why the store can't be asked.
pub async fn require_batch(
    store: &dyn Store,
    batch: &BatchId,
) -> Result<store::Batch, StatusError> {
    store.batch(batch).await?.ok_or_else(|| StatusError::NoSuchBatch(batch.clone()))
}
