//! Benchmark of the whole pipeline: jobs go into the queue, through one worker, and into the store.
//!
//! It runs the ordinary worker on the queue, the store and the deployments that it is given; only
//! the jobs are generated here.

mod report;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use report::{
    CallErrorCounts, EnqueueStats, PipelineLiveStats, PipelineReport, PipelineSetup,
    PipelineStopReason, QuotaUse, WorkStats,
};

use super::drive::{micros, processor_time};
use super::prompts::PromptGenerator;
use super::report::LatencyDistribution;
use control::batches;
use control::{self, ControlError};
use domain::deployment::DeploymentSnapshot;
use domain::job::{BatchId, Job, JobId};
use domain::outcome::OutcomeStatus;
use queue::{Queue, QueueError};
use store::{Batch, BatchSenders, BatchState, Store, StoreError};
use telemetry::WorkerProgress;
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings, WorkerTarget, all_queued};

/// Jobs that go to the queue in one call, and bytes of their bodies: as `enqueue` sends them.
const CHUNK_JOBS: usize = 2_000;
const CHUNK_BYTES: usize = 4 << 20;

/// Interval of polling the progress: how exactly the end of the work is seen.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Pipeline to measure, and its jobs.
pub struct PipelineBench {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub targets: Vec<WorkerTarget>,
    pub settings: WorkerSettings,
    pub prompts: PromptGenerator,
    pub jobs: u64,
}

/// Reason why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(
        "the queue holds {pending} jobs already, and this worker would work them too: \
         drain it first, or measure on a queue of its own"
    )]
    Occupied { pending: u64 },
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Enqueues the jobs, works them to their ends, and returns the report. Calls `live` every second
/// of the work.
///
/// # Errors
/// If the queue is not empty, or the queue, the store or the worker fails.
pub async fn run(
    mut pipe: PipelineBench,
    setup: PipelineSetup,
    stop: &CancellationToken,
    live: &mut (dyn FnMut(&PipelineLiveStats) + Send),
) -> Result<PipelineReport, PipelineError> {
    let pending = pipe.queue.depth().await?.pending();
    if pending > 0 {
        return Err(PipelineError::Occupied { pending });
    }
    let started_at = Timestamp::now();
    let batch: BatchId =
        format!("bench-{}", Uuid::new_v4().simple()).parse().expect("letters and digits");
    pipe.put_batch(&batch).await?;
    let enqueued = pipe.enqueue(&batch, stop).await?;
    let (worked, ended) = pipe.work(&batch, stop, live).await?;
    if worked.jobs >= pipe.jobs {
        batches::close(pipe.store.as_ref(), &batch).await?;
    } else {
        // Jobs that are left must cost nothing, no matter which worker receives them.
        control::cancel(pipe.store.as_ref(), &batch).await?;
    }
    let promptmill = env!("CARGO_PKG_VERSION").to_owned();
    Ok(PipelineReport { promptmill, started_at, setup, batch, ended, enqueued, worked })
}

impl PipelineBench {
    async fn put_batch(&self, batch: &BatchId) -> Result<(), StoreError> {
        let document = Batch {
            id: batch.clone(),
            state: BatchState::Running,
            reason: None,
            jobs: self.jobs,
            prompt_tokens: 0,
            inputs: Vec::new(),
            senders: BatchSenders::One,
            created_at: Timestamp::now(),
        };
        self.store.put_batch(&document).await
    }

    /// Enqueues the jobs. Only the queue's time counts, not that of making them.
    async fn enqueue(
        &mut self,
        batch: &BatchId,
        stop: &CancellationToken,
    ) -> Result<EnqueueStats, QueueError> {
        let mut calls = Histogram::<u64>::new(3).expect("three digits are allowed");
        let mut spent = Duration::ZERO;
        let mut sent = 0;
        while sent < self.jobs && !stop.is_cancelled() {
            let jobs = self.chunk(batch, sent);
            sent += jobs.len() as u64;
            let began = Instant::now();
            self.queue.send(jobs).await?;
            let took = began.elapsed();
            spent += took;
            // The histogram grows with the longest time, so it refuses none.
            let _ = calls.record(micros(took));
        }
        let seconds = spent.as_secs_f64();
        let send = LatencyDistribution::of(&calls);
        Ok(EnqueueStats {
            jobs: sent,
            seconds,
            jobs_per_second: sent as f64 / seconds.max(1e-9),
            send,
        })
    }

    fn chunk(&mut self, batch: &BatchId, from: u64) -> Vec<Job> {
        let mut jobs = Vec::new();
        let mut bytes = 0;
        for position in from..self.jobs {
            let mut job = self.prompts.next(None);
            job.custom_id = format!("job-{position}");
            job.id = JobId::new(batch, &job.custom_id);
            job.batch_id = batch.clone();
            job.position = position;
            bytes += job.body.len();
            jobs.push(job);
            if jobs.len() == CHUNK_JOBS || bytes >= CHUNK_BYTES {
                break;
            }
        }
        jobs
    }

    async fn work(
        &self,
        batch: &BatchId,
        stop: &CancellationToken,
        live: &mut (dyn FnMut(&PipelineLiveStats) + Send),
    ) -> Result<(WorkStats, PipelineStopReason), PipelineError> {
        let progress = Arc::<WorkerProgress>::default();
        let worker = Worker {
            queue: self.queue.clone(),
            store: self.store.clone(),
            targets: self.targets.clone(),
            settings: WorkerSettings {
                drain: Some(all_queued()),
                only_batch: Some(batch.clone()),
                ..self.settings.clone()
            },
            progress: progress.clone(),
        };
        let processor = processor_time();
        let began = Instant::now();
        let mut working = tokio::spawn(worker.run(stop.clone()));
        let (span, series) = poll_progress(&progress, self.jobs, &mut working, live).await;
        let exit = working.await.map_err(|_| WorkerError::Panicked)??;
        let spent = processor_time().saturating_sub(processor);
        let ended = exit.into();
        let span = span.unwrap_or_else(|| began.elapsed());
        Ok((work_stats(&progress, span, spent, series), ended))
    }
}

/// Polls until all is recorded or the worker has ended; returns how long the first took, and the
/// jobs that ended in each whole second.
async fn poll_progress(
    progress: &WorkerProgress,
    jobs: u64,
    working: &mut JoinHandle<Result<WorkerExit, WorkerError>>,
    live: &mut (dyn FnMut(&PipelineLiveStats) + Send),
) -> (Option<Duration>, Vec<u64>) {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut series = Vec::new();
    let mut before = 0;
    loop {
        ticks.tick().await;
        let (elapsed, ended) = (began.elapsed(), progress.ended());
        if elapsed.as_secs() > series.len() as u64 {
            let throttled = progress.throttled.load(Ordering::Relaxed);
            let held = progress.held.load(Ordering::Relaxed);
            live(&PipelineLiveStats { elapsed, ended, recent: ended - before, throttled, held });
            series.push(ended - before);
            before = ended;
        }
        if ended >= jobs {
            return (Some(elapsed), series);
        }
        if working.is_finished() {
            return (None, series);
        }
    }
}

fn work_stats(
    progress: &WorkerProgress,
    span: Duration,
    processor: Duration,
    series: Vec<u64>,
) -> WorkStats {
    let jobs = progress.ended();
    let per_job = |of: f64| if jobs > 0 { of / jobs as f64 } else { 0.0 };
    let seconds = span.as_secs_f64();
    let commits = progress.commits.load(Ordering::Relaxed);
    let charged = progress.charged.load(Ordering::Relaxed);
    let endings = OutcomeStatus::ALL.map(|ending| (ending, progress.of(ending)));
    WorkStats {
        jobs,
        endings: endings.into_iter().filter(|(_, jobs)| *jobs > 0).collect(),
        seconds,
        jobs_per_second: jobs as f64 / seconds.max(1e-9),
        series,
        calls: CallErrorCounts {
            throttled: progress.throttled.load(Ordering::Relaxed),
            faults: progress.transient_errors.load(Ordering::Relaxed),
        },
        tokens_per_minute: progress.tokens() as f64 / seconds.max(1e-9) * 60.0,
        record: LatencyDistribution::of(&progress.record_latency.histogram()),
        settle: LatencyDistribution::of(&progress.settle_latency.histogram()),
        jobs_per_commit: if commits > 0 { jobs as f64 / commits as f64 } else { 0.0 },
        quota: QuotaUse::of(&progress.deployments.borrow(), charged, seconds),
        cpu_us_per_job: per_job(processor.as_secs_f64() * 1e6),
    }
}

impl QuotaUse {
    /// Returns `None` where a deployment's quota is unknown.
    fn of(deployments: &[DeploymentSnapshot], charged: u64, seconds: f64) -> Option<Self> {
        let tpm = |d: &DeploymentSnapshot| d.tpm_learnt.or(d.tpm_configured);
        let tpm: u64 = deployments.iter().map(tpm).sum::<Option<u64>>().filter(|tpm| *tpm > 0)?;
        let charged_tpm = charged as f64 / seconds.max(1e-9) * 60.0;
        Some(Self { tpm, charged_tpm, used: charged_tpm / tpm as f64 })
    }
}
