//! The whole pipe, measured: jobs go into the queue, through one worker, and into the store.
//!
//! It is the worker that works anywhere else, on the queue, the store and the deployments that it is
//! given; only the jobs are made here.

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

pub use report::{Calls, Ended, Enqueued, PipeReport, PipeSetup, QuotaUse, Worked};

use super::drive::{micros, processor_time};
use super::prompts::Prompts;
use super::report::Dist;
use admission::snapshot::Snapshot;
use control::batches;
use control::{self, ControlError};
use domain::job::{BatchId, Job, JobId};
use domain::outcome::Ending;
use queue::{Queue, QueueError};
use store::{Batch, BatchState, Store, StoreError};
use telemetry::Progress;
use worker::{Halt, Settings, Target, Worker, WorkerError, all_queued};

/// Jobs that go to the queue in one call, and bytes of their bodies: as `enqueue` sends them.
const CHUNK: usize = 2_000;
const CHUNK_BYTES: usize = 4 << 20;

/// How exactly the end of the work is seen.
const LOOK: Duration = Duration::from_millis(10);

/// What is measured.
pub struct Pipe {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub targets: Vec<Target>,
    pub settings: Settings,
    pub prompts: Prompts,
    pub jobs: u64,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
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

/// How far it is, once a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PipeLive {
    pub elapsed: Duration,
    pub ended: u64,
    /// In this second.
    pub recent: u64,
    pub throttled: u64,
    pub held: u64,
}

/// Sends the jobs, works them to their ends, and says how that went. `live` hears of every second of
/// the work.
///
/// # Errors
/// If the queue is not empty, or the queue, the store or the worker fails.
pub async fn run(
    mut pipe: Pipe,
    setup: PipeSetup,
    stop: &CancellationToken,
    live: &mut (dyn FnMut(&PipeLive) + Send),
) -> Result<PipeReport, PipeError> {
    let pending = pipe.queue.depth().await?.pending();
    if pending > 0 {
        return Err(PipeError::Occupied { pending });
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
        // What is left of it must cost nothing, whoever receives it.
        control::cancel(pipe.store.as_ref(), &batch).await?;
    }
    let promptmill = env!("CARGO_PKG_VERSION").to_owned();
    Ok(PipeReport { promptmill, started_at, setup, batch, ended, enqueued, worked })
}

impl Pipe {
    async fn put_batch(&self, batch: &BatchId) -> Result<(), StoreError> {
        let document = Batch {
            id: batch.clone(),
            state: BatchState::Running,
            reason: None,
            jobs: self.jobs,
            prompt_tokens: 0,
            inputs: Vec::new(),
            created_at: Timestamp::now(),
        };
        self.store.put_batch(&document).await
    }

    /// Only the queue's time counts, not that of making the jobs.
    async fn enqueue(
        &mut self,
        batch: &BatchId,
        stop: &CancellationToken,
    ) -> Result<Enqueued, QueueError> {
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
            // It grows with the longest time, so there is none that it refuses.
            let _ = calls.record(micros(took));
        }
        let seconds = spent.as_secs_f64();
        let send = Dist::of(&calls);
        Ok(Enqueued { jobs: sent, seconds, jobs_per_second: sent as f64 / seconds.max(1e-9), send })
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
            if jobs.len() == CHUNK || bytes >= CHUNK_BYTES {
                break;
            }
        }
        jobs
    }

    async fn work(
        &self,
        batch: &BatchId,
        stop: &CancellationToken,
        live: &mut (dyn FnMut(&PipeLive) + Send),
    ) -> Result<(Worked, Ended), PipeError> {
        let progress = Arc::<Progress>::default();
        let worker = Worker {
            queue: self.queue.clone(),
            store: self.store.clone(),
            targets: self.targets.clone(),
            settings: Settings {
                drain: Some(all_queued()),
                only: Some(batch.clone()),
                ..self.settings.clone()
            },
            progress: progress.clone(),
        };
        let processor = processor_time();
        let began = Instant::now();
        let mut working = tokio::spawn(worker.run(stop.clone()));
        let (span, series) = watch(&progress, self.jobs, &mut working, live).await;
        let halt = working.await.map_err(|_| WorkerError::Panicked)??;
        let spent = processor_time().saturating_sub(processor);
        let ended = match halt {
            Halt::Drained => Ended::Complete,
            Halt::Stopped | Halt::Paused { .. } => Ended::Interrupted,
            Halt::NoDeployment { why } => Ended::NoDeployment { why },
            Halt::Unreachable { why } => Ended::Unreachable { why },
        };
        let span = span.unwrap_or_else(|| began.elapsed());
        Ok((worked(&progress, span, spent, series), ended))
    }
}

/// Looks on until all is recorded or the worker has ended; returns how long the first took, and the
/// jobs that ended in each whole second.
async fn watch(
    progress: &Progress,
    jobs: u64,
    working: &mut JoinHandle<Result<Halt, WorkerError>>,
    live: &mut (dyn FnMut(&PipeLive) + Send),
) -> (Option<Duration>, Vec<u64>) {
    let began = Instant::now();
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut series = Vec::new();
    let mut before = 0;
    loop {
        looks.tick().await;
        let (elapsed, ended) = (began.elapsed(), progress.ended());
        if elapsed.as_secs() > series.len() as u64 {
            let throttled = progress.throttled.load(Ordering::Relaxed);
            let held = progress.held.load(Ordering::Relaxed);
            live(&PipeLive { elapsed, ended, recent: ended - before, throttled, held });
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

fn worked(progress: &Progress, span: Duration, processor: Duration, series: Vec<u64>) -> Worked {
    let jobs = progress.ended();
    let per_job = |of: f64| if jobs > 0 { of / jobs as f64 } else { 0.0 };
    let seconds = span.as_secs_f64();
    let commits = progress.commits.load(Ordering::Relaxed);
    let charged = progress.charged.load(Ordering::Relaxed);
    let endings = Ending::ALL.map(|ending| (ending, progress.of(ending)));
    Worked {
        jobs,
        endings: endings.into_iter().filter(|(_, jobs)| *jobs > 0).collect(),
        seconds,
        jobs_per_second: jobs as f64 / seconds.max(1e-9),
        series,
        calls: Calls {
            throttled: progress.throttled.load(Ordering::Relaxed),
            faults: progress.faults.load(Ordering::Relaxed),
        },
        tokens_per_minute: progress.tokens() as f64 / seconds.max(1e-9) * 60.0,
        record: Dist::of(&progress.record.histogram()),
        settle: Dist::of(&progress.settle.histogram()),
        jobs_per_commit: if commits > 0 { jobs as f64 / commits as f64 } else { 0.0 },
        quota: QuotaUse::of(&progress.deployments.borrow(), charged, seconds),
        cpu_us_per_job: per_job(processor.as_secs_f64() * 1e6),
    }
}

impl QuotaUse {
    /// None where a deployment has no quota that is known.
    fn of(deployments: &[Snapshot], charged: u64, seconds: f64) -> Option<Self> {
        let tpm = |d: &Snapshot| d.tpm_learnt.or(d.tpm_configured);
        let tpm: u64 = deployments.iter().map(tpm).sum::<Option<u64>>().filter(|tpm| *tpm > 0)?;
        let charged_tpm = charged as f64 / seconds.max(1e-9) * 60.0;
        Some(Self { tpm, charged_tpm, used: charged_tpm / tpm as f64 })
    }
}
