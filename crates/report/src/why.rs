//! Why a job, or a batch, is not done: put together from the store, the queue and the workers.
//!
//! Workers are asked through their words ([`worker::explain`]); who does not answer within
//! some beats is taken for silent, and said to be. Nothing is changed by asking.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use admission::shares::BEAT;
use control::batches::{self, Standing};
use domain::job::{BatchId, JobId};
use domain::outcome::{Ending, Failure};
use domain::share::Word;
use queue::sight::{Seen, Sought};
use queue::{Depth, Queue, QueueError};
use store::{Store, StoreError};
use worker::explain::{Answer, Holding, Question, Told};

/// How long the workers' answers are waited for.
const PATIENCE: Duration = BEAT.saturating_mul(4);

/// How often their words are read meanwhile.
const LOOK: Duration = Duration::from_millis(250);

/// The batches among which a job is looked for whose batch was not named, the newest first.
const MOST_BATCHES: usize = 100;

/// Why there is no answer.
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

/// The answer.
#[derive(Debug, Serialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Why {
    Batch(Box<OfBatch>),
    Job(Box<OfJob>),
}

/// How a batch's jobs stand.
#[derive(Debug, Serialize)]
pub struct OfBatch {
    #[serde(flatten)]
    pub standing: Standing,
    /// Its messages in the queue, those under lock included.
    pub queue: Depth,
    /// How many messages at the queue's head these were counted from; absent: all there are.
    pub looked_at: Option<u64>,
    pub workers: Vec<WorkerOf<Holding>>,
}

/// What is known of one job.
#[derive(Debug, Serialize)]
pub struct OfJob {
    pub batch: BatchId,
    pub id: JobId,
    /// How its batch stands: a paused one keeps its jobs.
    pub standing: Option<Standing>,
    #[serde(flatten)]
    pub place: Place,
    /// Workers that are alive.
    pub workers: u64,
    /// Workers that did not answer.
    pub silent: u64,
}

/// Where a job is.
#[derive(Debug, Serialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum Place {
    Ended {
        ending: Ending,
        failure: Option<Failure>,
        attempts: u32,
        deployment: String,
        finished_at: Timestamp,
    },
    /// A worker holds it.
    Held { worker: Who, job: Told },
    /// In the queue, once or, after a crash, more than once.
    Queued { seen: Vec<Seen> },
    /// Not among the messages that could be looked at.
    NotSeen { looked_at: Option<u64> },
}

/// One worker, and what it said; `None`: it did not answer.
#[derive(Debug, Serialize)]
pub struct WorkerOf<T> {
    #[serde(flatten)]
    pub worker: Who,
    pub holds: Option<T>,
}

/// A worker as people know it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Who {
    pub host: String,
    pub pid: Option<u64>,
}

/// Says why the batch or job of this name is not done.
///
/// # Errors
/// If there is none, or what the queue or the store said.
pub async fn explain(
    queue: &dyn Queue,
    store: &dyn Store,
    name: &str,
    batch: Option<&BatchId>,
) -> Result<Why, WhyError> {
    if let Some(batch) = batch {
        if store.batch(batch).await?.is_none() {
            return Err(WhyError::NoSuchBatch(batch.clone()));
        }
        return of_job(queue, store, name, vec![batch.clone()]).await;
    }
    if let Ok(id) = name.parse::<BatchId>()
        && let Some(standing) = batches::standings(store, Some(&id)).await?.pop()
    {
        return of_batch(queue, store, standing).await;
    }
    let known = store.batches().await?.into_iter().take(MOST_BATCHES).map(|batch| batch.id);
    of_job(queue, store, name, known.collect()).await
}

async fn of_batch(
    queue: &dyn Queue,
    store: &dyn Store,
    standing: Standing,
) -> Result<Why, WhyError> {
    let batch = Some(standing.batch.clone());
    let question = Question { jobs: BTreeSet::new(), batch: batch.clone() };
    let workers = if standing.pending == 0 { Vec::new() } else { ask(store, &question).await? };
    let sight = queue.look(&Sought { jobs: BTreeSet::new(), batch }).await?;
    let holds = |(worker, answer): (Who, Option<Answer>)| WorkerOf {
        worker,
        holds: answer.map(|answer| answer.batch.unwrap_or_default()),
    };
    let workers = workers.into_iter().map(holds).collect();
    let (queue, looked_at) = (sight.batch, sight.looked_at);
    Ok(Why::Batch(Box::new(OfBatch { standing, queue, looked_at, workers })))
}

/// A job by its custom_id in one of these batches, or by its id.
async fn of_job(
    queue: &dyn Queue,
    store: &dyn Store,
    name: &str,
    batches: Vec<BatchId>,
) -> Result<Why, WhyError> {
    let by_id = name.parse::<Uuid>().ok().map(|id| JobId::from_bytes(id.into_bytes()));
    let mut candidates = Vec::new();
    for batch in &batches {
        let ids = [Some(JobId::new(batch, name)), by_id].into_iter().flatten();
        candidates.extend(ids.map(|id| (id, batch.clone())));
    }
    let ended = || ended(store, &batches, name, by_id);
    if let Some(ended) = ended().await? {
        return Ok(ended);
    }
    let jobs: BTreeSet<_> = candidates.iter().map(|(id, _)| *id).collect();
    let answers = ask(store, &Question { jobs: jobs.clone(), batch: None }).await?;
    let workers = answers.len() as u64;
    let silent = answers.iter().filter(|(_, answer)| answer.is_none()).count() as u64;
    let mut held = answers.into_iter().filter_map(|(who, answer)| Some((who, answer?)));
    let held = held.find_map(|(who, answer)| Some((who, answer.jobs.into_iter().next()?)));
    let (batch, id, place) = match held {
        Some((worker, job)) => (job.batch.clone(), job.job, Place::Held { worker, job }),
        None => {
            let sight = queue.look(&Sought { jobs, batch: None }).await?;
            match (sight.jobs.first(), candidates.as_slice()) {
                (Some(first), _) => {
                    (first.batch.clone(), first.job, Place::Queued { seen: sight.jobs })
                }
                (None, candidates) => {
                    // It may have ended while we asked.
                    if let Some(ended) = ended().await? {
                        return Ok(ended);
                    }
                    let looked_at = sight.looked_at;
                    match candidates {
                        // Of one batch it can be said that it was not seen; of any it is a guess.
                        [(id, batch)] if looked_at.is_some() => {
                            (batch.clone(), *id, Place::NotSeen { looked_at })
                        }
                        _ => return Err(WhyError::Unknown(name.to_owned())),
                    }
                }
            }
        }
    };
    let standing = batches::standings(store, Some(&batch)).await?.pop();
    Ok(Why::Job(Box::new(OfJob { batch, id, standing, place, workers, silent })))
}

/// The first job of that custom_id in these batches, or of that id, that has ended.
async fn ended(
    store: &dyn Store,
    batches: &[BatchId],
    name: &str,
    by_id: Option<JobId>,
) -> Result<Option<Why>, StoreError> {
    for batch in batches {
        let found = match (store.outcome(batch, name).await?, by_id) {
            (None, Some(id)) => store.outcome_by_id(batch, id).await?,
            (found, _) => found,
        };
        let Some(outcome) = found else { continue };
        let id = outcome.job_id;
        let place = Place::Ended {
            ending: outcome.ending,
            failure: outcome.failure,
            attempts: outcome.attempts,
            deployment: outcome.deployment,
            finished_at: outcome.finished_at,
        };
        let (batch, standing) = (batch.clone(), None);
        let of = OfJob { batch, id, standing, place, workers: 0, silent: 0 };
        return Ok(Some(Why::Job(Box::new(of))));
    }
    Ok(None)
}

/// Asks every worker that is alive, and takes the question back.
async fn ask(
    store: &dyn Store,
    question: &Question,
) -> Result<Vec<(Who, Option<Answer>)>, StoreError> {
    let id = Uuid::new_v4();
    let before = store.words().await?;
    if !before.iter().any(Word::is_worker) {
        return Ok(Vec::new());
    }
    store.put_word(&question.word(id)).await?;
    let answers = hear(store, id, &before).await;
    store.remove_word(id).await?;
    answers
}

/// The answers of all, or of those who answered in time. A worker whose beat stands still is dead.
async fn hear(
    store: &dyn Store,
    question: Uuid,
    before: &[Word],
) -> Result<Vec<(Who, Option<Answer>)>, StoreError> {
    let beats: BTreeMap<Uuid, u64> = before.iter().map(|word| (word.instance, word.beat)).collect();
    let began = Instant::now();
    loop {
        let words = store.words().await?;
        let told = |word: &Word| (who(word), Answer::of(word, question));
        let answers: Vec<_> = words.iter().filter(|word| word.is_worker()).map(told).collect();
        if answers.iter().all(|(_, answer)| answer.is_some()) {
            return Ok(answers);
        }
        if began.elapsed() >= PATIENCE {
            let lives = |word: &&Word| {
                word.is_worker() && beats.get(&word.instance).is_none_or(|beat| *beat != word.beat)
            };
            return Ok(words.iter().filter(lives).map(told).collect());
        }
        sleep(LOOK).await;
    }
}

fn who(word: &Word) -> Who {
    let about = &word.about;
    Who {
        host: about.get("host").and_then(Value::as_str).unwrap_or("unknown").to_owned(),
        pid: about.get("pid").and_then(Value::as_u64),
    }
}
