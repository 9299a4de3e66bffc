//! One batch worked to its end in this process, on the embedded queue and store.
//!
//! ```text
//! open ─▶ work: enqueue beside the worker ─▶ finish: results, webhook, batch closed
//! ```

use std::io;
use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::input::InputFiles;
use super::webhook_task;
use crate::backends::{BackendError, LocalBackends};
use crate::config::{Config, ConfigError};
use crate::webhook::{WebhookSettings, WebhookSettingsError};
use control::batches;
use domain::job::BatchId;
use domain::prices::Prices;
use intake::{EnqueueCounts, EnqueueError};
use queue::Queue;
use report::results::{OutcomeSelection, ResultCounts, ResultPaths, ResultsError, jsonl};
use store::{BatchTotals, SortOrder, Store, StoreError};
use telemetry::WorkerProgress;
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings};

/// Reason why a run did not come to its end. What is recorded stays; the next run resumes.
#[derive(Debug, thiserror::Error)]
pub enum LocalRunError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error(transparent)]
    Webhook(#[from] WebhookSettingsError),
    /// Can't happen; if it does, the results must not pass for complete.
    #[error("{left} jobs have neither an outcome nor a place in the queue")]
    Lost { left: u64 },
}

/// One batch, worked through in this process.
pub struct LocalRun {
    pub batch: BatchId,
    pub input: InputFiles,
    pub progress: Arc<WorkerProgress>,
    /// The batch's totals over all runs before this one.
    pub totals_before: BatchTotals,
    queue: Arc<dyn Queue>,
    store: Arc<dyn Store>,
    _backends: LocalBackends,
}

/// End of the work.
#[derive(Debug)]
pub struct LocalRunEnd {
    pub exit: WorkerExit,
    /// Time of the work, from its first job.
    pub seconds: f64,
    /// The batch's totals over all its runs.
    pub totals: BatchTotals,
    /// Jobs of the input without an outcome.
    pub left: u64,
}

impl LocalRun {
    /// Opens the batch's queue.
    ///
    /// # Errors
    /// If the state file can't be used.
    pub async fn open(
        backends: LocalBackends,
        input: InputFiles,
        batch: BatchId,
    ) -> Result<Self, LocalRunError> {
        let (queue, store) = (backends.queue_of(&batch).await?, backends.store());
        let totals_before = store.totals(&batch).await?;
        let progress = Arc::default();
        Ok(Self { batch, input, progress, totals_before, queue, store, _backends: backends })
    }

    pub fn store(&self) -> &dyn Store {
        self.store.as_ref()
    }

    /// Works on the first jobs while the last are still being enqueued.
    ///
    /// # Errors
    /// If the input, the state file or the worker fails.
    pub async fn work(
        &self,
        config: &Config,
        prices: Prices,
        stop: &CancellationToken,
        on_enqueued: impl FnOnce(&EnqueueCounts),
    ) -> Result<LocalRunEnd, LocalRunError> {
        let (begun, fed) = (CancellationToken::new(), CancellationToken::new());
        let stop = stop.child_token();
        let worker = self.worker(config, prices, fed.clone())?;
        let working = async {
            begun.cancelled().await;
            let began = Instant::now();
            // On the runtime's own threads, so that its tasks wake each other without crossing threads.
            let exit = tokio::spawn(worker.run(stop.clone())).await;
            (exit, began.elapsed().as_secs_f64())
        };
        tokio::pin!(working);
        let (exit, seconds) = tokio::select! {
            // The worker ended early, so it needs no more jobs: the next run enqueues the others.
            worked = &mut working => worked,
            enqueued = self.enqueue(&begun) => {
                match enqueued {
                    Ok(counts) => on_enqueued(&counts),
                    Err(error) => {
                        stop.cancel();
                        if begun.is_cancelled() {
                            let _ = working.await;
                        }
                        return Err(error.into());
                    }
                }
                begun.cancel();
                fed.cancel();
                working.await
            }
        };
        let exit = exit.unwrap_or(Err(WorkerError::Panicked))?;
        let totals = self.store.totals(&self.batch).await?;
        let left = self.input.report.jobs.saturating_sub(totals.ended());
        Ok(LocalRunEnd { exit, seconds, totals, left })
    }

    /// Sends the jobs to the queue; cancels `begun` once the first of them are there.
    async fn enqueue(&self, begun: &CancellationToken) -> Result<EnqueueCounts, EnqueueError> {
        let InputFiles { sources, options, report } = &self.input;
        let to = (self.queue.as_ref(), self.store.as_ref());
        intake::enqueue(sources, options, report, &self.batch, to, |_| begun.cancel()).await
    }

    /// Builds a worker that ends once `fed` is cancelled and all jobs have ended.
    fn worker(
        &self,
        config: &Config,
        prices: Prices,
        fed: CancellationToken,
    ) -> Result<Worker, ConfigError> {
        telemetry::register_gauges(&self.progress);
        Ok(Worker {
            queue: self.queue.clone(),
            store: self.store.clone(),
            targets: config.targets()?,
            settings: WorkerSettings {
                drain: Some(fed),
                only_batch: Some(self.batch.clone()),
                prices: Some(Arc::new(prices)),
                ..config.worker_settings()
            },
            progress: self.progress.clone(),
        })
    }

    /// Writes the results of a batch whose jobs have all ended, sends its notice, and closes it.
    ///
    /// # Errors
    /// If a file can't be written, or the store fails.
    pub async fn finish(
        &mut self,
        end: &LocalRunEnd,
        paths: &ResultPaths,
        order: SortOrder,
        webhook: &WebhookSettings,
    ) -> Result<ResultCounts, LocalRunError> {
        if end.left > 0 {
            return Err(LocalRunError::Lost { left: end.left });
        }
        let report = &mut self.input.report;
        let faults = |file: &mut dyn io::Write| report.write_faults(file);
        let selection = OutcomeSelection { batch: self.batch.clone(), order, kinds: Vec::new() };
        let written = jsonl::write(self.store.as_ref(), &selection, paths, faults).await?;
        webhook_task::notify_once(webhook, self.store.clone()).await?;
        if let Some(batch) = self.store.batch(&self.batch).await?
            && end.totals.ended() >= batch.jobs
        {
            batches::close(self.store.as_ref(), &batch.id).await?;
        }
        Ok(written)
    }
}
