//! Diagnosis of a job or batch that is not done, from the store, the queue and the workers.
//!
//! Workers are asked through their heartbeats ([`domain::inquiry`]); a worker that does not
//! answer within some beats is reported as silent. Asking changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use control::batches::{self, BatchStatus};
use domain::heartbeat::{EXCHANGE_INTERVAL, Heartbeat};
use domain::inquiry::{InquiryAnswer, LeasedJobCounts, LeasedJobReport, WorkerInquiry};
use domain::job::{BatchId, JobId};
use domain::outcome::{JobFailure, OutcomeStatus};
use queue::peek::{PeekFilter, PeekedJob};
use queue::{Queue, QueueDepth, QueueError};
use store::{Store, StoreError};

/// Longest wait for the workers' answers.
const ANSWER_TIMEOUT: Duration = EXCHANGE_INTERVAL.saturating_mul(4);

/// Interval at which heartbeats are read meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Batches searched, newest first, for a job whose batch was not named.
const MAX_BATCHES_SEARCHED: usize = 100;

/// Failure to explain a job or batch.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "'{0}' is neither a batch nor the custom_id or id of a job that is known: name its batch by \
         --batch; `promptmill status` lists the batches"
    )]
    Unknown(String),
    #[error("there is no batch '{0}': `promptmill status` lists those that there are")]
    NoSuchBatch(BatchId),
}

/// Explanation of a batch or job.
#[derive(Debug, Serialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum WhyReport {
    Batch(Box<BatchExplanation>),
    Job(Box<JobExplanation>),
}

/// Explanation of a batch: its status, queue and workers.
#[derive(Debug, Serialize)]
pub struct BatchExplanation {
    #[serde(flatten)]
    pub status: BatchStatus,
    /// Its messages in the queue, including locked ones.
    pub queue: QueueDepth,
    /// Messages at the queue's head that were peeked; absent if all were counted.
    pub looked_at: Option<u64>,
    pub workers: Vec<WorkerAnswer<LeasedJobCounts>>,
}

/// Explanation of one job.
#[derive(Debug, Serialize)]
pub struct JobExplanation {
    pub batch: BatchId,
    pub id: JobId,
    /// Status of its batch: a paused one keeps its jobs.
    #[serde(rename = "standing")]
    pub status: Option<BatchStatus>,
    #[serde(flatten)]
    pub location: JobLocation,
    /// Workers that are alive.
    pub workers: u64,
    /// Workers that did not answer.
    pub silent: u64,
}

/// Location of a job.
#[derive(Debug, Serialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum JobLocation {
    Ended {
        ending: OutcomeStatus,
        failure: Option<JobFailure>,
        attempts: u32,
        deployment: String,
        finished_at: Timestamp,
    },
    /// A worker holds it.
    Held { worker: WorkerProcess, job: LeasedJobReport },
    /// In the queue, once or, after a crash, more than once.
    Queued { seen: Vec<PeekedJob> },
    /// Not among the messages that were peeked.
    NotSeen { looked_at: Option<u64> },
}

/// One worker and its answer; `None` if it did not answer.
#[derive(Debug, Serialize)]
pub struct WorkerAnswer<T> {
    #[serde(flatten)]
    pub worker: WorkerProcess,
    pub holds: Option<T>,
}

/// Host and process of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerProcess {
    pub host: String,
    pub pid: Option<u32>,
}

/// Explains why the batch or job of this name is not done.
///
/// # Errors
/// If there is none, or if the queue or the store fails.
pub async fn explain(
    queue: &dyn Queue,
    store: &dyn Store,
    name: &str,
    batch: Option<&BatchId>,
) -> Result<WhyReport, WhyError> {
    if let Some(batch) = batch {
        if store.batch(batch).await?.is_none() {
            return Err(WhyError::NoSuchBatch(batch.clone()));
        }
        return explain_job(queue, store, name, vec![batch.clone()]).await;
    }
    if let Ok(id) = name.parse::<BatchId>()
        && let Some(standing) = batches::batch_statuses(store, Some(&id)).await?.pop()
    {
        return explain_batch(queue, store, standing).await;
    }
    let known = store.batches().await?.into_iter().take(MAX_BATCHES_SEARCHED).map(|batch| batch.id);
    explain_job(queue, store, name, known.collect()).await
}

async fn explain_batch(
    queue: &dyn Queue,
    store: &dyn Store,
    standing: BatchStatus,
) -> Result<WhyReport, WhyError> {
    let batch = Some(standing.batch.clone());
    let question = WorkerInquiry { jobs: BTreeSet::new(), batch: batch.clone() };
    let workers =
        if standing.pending == 0 { Vec::new() } else { ask_workers(store, question).await? };
    let sight = queue.peek(&PeekFilter { jobs: BTreeSet::new(), batch }).await?;
    let counts = |answered: WorkerAnswer<InquiryAnswer>| WorkerAnswer {
        worker: answered.worker,
        holds: answered.holds.map(|answer| answer.batch.unwrap_or_default()),
    };
    let workers = workers.into_iter().map(counts).collect();
    let (queue, looked_at) = (sight.batch, sight.examined);
    Ok(WhyReport::Batch(Box::new(BatchExplanation { status: standing, queue, looked_at, workers })))
}

/// Explains a job, found by its custom_id in one of these batches, or by its id.
async fn explain_job(
    queue: &dyn Queue,
    store: &dyn Store,
    name: &str,
    batches: Vec<BatchId>,
) -> Result<WhyReport, WhyError> {
    let by_id = name.parse::<Uuid>().ok().map(|id| JobId::from_bytes(id.into_bytes()));
    let mut candidates = Vec::new();
    for batch in &batches {
        let ids = [Some(JobId::new(batch, name)), by_id].into_iter().flatten();
        candidates.extend(ids.map(|id| (id, batch.clone())));
    }
    let ended = || find_ended(store, &batches, name, by_id);
    if let Some(ended) = ended().await? {
        return Ok(ended);
    }
    let jobs: BTreeSet<_> = candidates.iter().map(|(id, _)| *id).collect();
    let question = WorkerInquiry { jobs: jobs.clone(), batch: None };
    let answers = ask_workers(store, question).await?;
    let workers = answers.len() as u64;
    let silent = answers.iter().filter(|answered| answered.holds.is_none()).count() as u64;
    let held = answers.into_iter().find_map(|answered| {
        let job = answered.holds?.jobs.into_iter().next()?;
        Some((answered.worker, job))
    });
    let (batch, id, place) = match held {
        Some((worker, job)) => (job.batch.clone(), job.job, JobLocation::Held { worker, job }),
        None => {
            let sight = queue.peek(&PeekFilter { jobs, batch: None }).await?;
            match (sight.jobs.first(), candidates.as_slice()) {
                (Some(first), _) => {
                    (first.batch.clone(), first.job, JobLocation::Queued { seen: sight.jobs })
                }
                (None, candidates) => {
                    // It may have ended while we asked.
                    if let Some(ended) = ended().await? {
                        return Ok(ended);
                    }
                    let looked_at = sight.examined;
                    match candidates {
                        // With one candidate "not seen" is a fact; with several, a guess.
                        [(id, batch)] if looked_at.is_some() => {
                            (batch.clone(), *id, JobLocation::NotSeen { looked_at })
                        }
                        _ => return Err(WhyError::Unknown(name.to_owned())),
                    }
                }
            }
        }
    };
    let standing = batches::batch_statuses(store, Some(&batch)).await?.pop();
    Ok(WhyReport::Job(Box::new(JobExplanation {
        batch,
        id,
        status: standing,
        location: place,
        workers,
        silent,
    })))
}

/// Finds the first ended job with that custom_id in these batches, or with that id.
async fn find_ended(
    store: &dyn Store,
    batches: &[BatchId],
    name: &str,
    by_id: Option<JobId>,
) -> Result<Option<WhyReport>, StoreError> {
    for batch in batches {
        let found = match (store.outcome(batch, name).await?, by_id) {
            (None, Some(id)) => store.outcome_by_id(batch, id).await?,
            (found, _) => found,
        };
        let Some(outcome) = found else { continue };
        let id = outcome.job_id;
        let place = JobLocation::Ended {
            ending: outcome.ending,
            failure: outcome.failure,
            attempts: outcome.attempts,
            deployment: outcome.deployment,
            finished_at: outcome.finished_at,
        };
        let (batch, standing) = (batch.clone(), None);
        let of =
            JobExplanation { batch, id, status: standing, location: place, workers: 0, silent: 0 };
        return Ok(Some(WhyReport::Job(Box::new(of))));
    }
    Ok(None)
}

/// Asks every live worker, then withdraws the question.
async fn ask_workers(
    store: &dyn Store,
    question: WorkerInquiry,
) -> Result<Vec<WorkerAnswer<InquiryAnswer>>, StoreError> {
    let id = Uuid::new_v4();
    let before = store.heartbeats().await?;
    if !before.iter().any(Heartbeat::is_worker) {
        return Ok(Vec::new());
    }
    store.put_heartbeat(&Heartbeat::asking(question, id)).await?;
    let answers = wait_for_answers(store, id, &before).await;
    store.delete_heartbeat(id).await?;
    answers
}

/// Waits for all answers, at most [`ANSWER_TIMEOUT`]. A worker without a new beat by then is dead.
async fn wait_for_answers(
    store: &dyn Store,
    question: Uuid,
    before: &[Heartbeat],
) -> Result<Vec<WorkerAnswer<InquiryAnswer>>, StoreError> {
    let beats: BTreeMap<Uuid, u64> =
        before.iter().map(|heartbeat| (heartbeat.instance, heartbeat.sequence)).collect();
    let began = Instant::now();
    loop {
        let mut workers = store.heartbeats().await?;
        workers.retain(Heartbeat::is_worker);
        let is_answered = |worker: &Heartbeat| worker.status.answers.contains_key(&question);
        let is_late = began.elapsed() >= ANSWER_TIMEOUT;
        if is_late || workers.iter().all(is_answered) {
            if is_late {
                let is_alive = |worker: &Heartbeat| {
                    beats.get(&worker.instance).is_none_or(|beat| *beat != worker.sequence)
                };
                workers.retain(is_alive);
            }
            return Ok(workers.into_iter().map(|worker| answer_of(worker, question)).collect());
        }
        sleep(POLL_INTERVAL).await;
    }
}

fn answer_of(worker: Heartbeat, question: Uuid) -> WorkerAnswer<InquiryAnswer> {
    let mut status = worker.status;
    let host = status.host.unwrap_or_else(|| "unknown".to_owned());
    WorkerAnswer {
        worker: WorkerProcess { host, pid: status.pid },
        holds: status.answers.remove(&question),
    }
}
