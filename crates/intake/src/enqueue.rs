//! The second pass: streams jobs to the queue, without those that have an outcome already.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::batch_counts::{self, EnqueueCounts, fingerprint};
use super::batch_file::{LineOptions, read_line};
use super::check::{CheckReport, LineHash};
use super::source::{InputSource, InputSourceError, LineReader};
use domain::job::{BatchId, Job};
use queue::{Queue, QueueError};
use store::{Batch, BatchSenders, BatchState, Store, StoreError};

/// Jobs sent to the queue in one call.
const CHUNK: usize = 2_000;

/// Bytes of bodies sent in one call; reading ahead may take a few times this in memory.
const CHUNK_BYTES: usize = 4 << 20;

/// Chunks that are read ahead while one is being sent.
const READ_AHEAD: usize = 1;

/// Bodies that are stored at the same time.
const PAYLOADS_AT_A_TIME: usize = 4;

/// Reason why jobs could not be enqueued. Those that were stay; running it again adds the rest.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    #[error(transparent)]
    Source(#[from] InputSourceError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "custom_id '{custom_id}' of batch '{batch}' has its outcome already, for another body: \
         choose another --batch, or another custom_id"
    )]
    Changed { batch: BatchId, custom_id: String },
    #[error(
        "the input changed while it was read: it was checked with {checked} jobs and now has {now}"
    )]
    InputChanged { checked: u64, now: u64 },
    #[error(
        "the job '{custom_id}' is larger than the {limit} bytes that the queue takes in a message, \
         even without its body: shorten its custom_id or its metadata"
    )]
    TooLarge { custom_id: String, limit: usize },
    #[error(
        "batch '{0}' is cancelled: its pending jobs end as cancelled, and it takes no more; choose \
         another --batch"
    )]
    Cancelled(BatchId),
    #[error(
        "batch '{batch}' has a budget of {budget}: give it here too, so that the input is checked for \
         what its prompts may cost"
    )]
    Budgeted { batch: BatchId, budget: String },
    #[error("the task that reads the input panicked; its message is above")]
    Panicked,
}

impl EnqueueError {
    /// Returns whether the same input may be enqueued later, unchanged.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Queue(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            _ => false,
        }
    }
}

/// Sends the input's jobs to the queue under the batch's name. `sent` is called with the progress.
///
/// # Errors
/// If the input, the queue or the store fails; see [`EnqueueError`].
pub async fn enqueue(
    sources: &[InputSource],
    reading: &LineOptions,
    checked: &CheckReport,
    batch: &BatchId,
    (queue, store): (&dyn Queue, &dyn Store),
    sent: impl Fn(u64),
) -> Result<EnqueueCounts, EnqueueError> {
    if !reading.must_limit_output
        && let Some(budget) = store.budget(batch).await?
    {
        let budget = budget.show(budget.allowed).to_string();
        return Err(EnqueueError::Budgeted { batch: batch.clone(), budget });
    }
    let Some(mut open) = OpenBatch::open(batch, (queue, store)).await? else {
        return Err(EnqueueError::Cancelled(batch.clone()));
    };
    let given = batch_counts::begin(&mut open.document, checked);
    store.put_batch(&open.document).await?;
    let (send, mut chunks) = mpsc::channel(READ_AHEAD);
    let input = InputReader {
        sources: sources.to_vec(),
        reading: reading.clone(),
        repeated: checked.repeated.clone().into(),
        batch: batch.clone(),
        shorter: given.possible_prefixes(&open.document),
    };
    let reader = tokio::task::spawn_blocking(move || input.read(&send));
    let mut total = EnqueueCounts::default();
    while let Some(jobs) = chunks.recv().await {
        total.jobs += jobs.len() as u64;
        let tokens = jobs.iter().filter_map(|job| job.estimate).map(|e| u64::from(e.prompt));
        total.prompt_tokens += tokens.sum::<u64>();
        let sent_now = open.send_unknown(jobs, (queue, store)).await?;
        total.known += sent_now.known;
        total.waiting += sent_now.waiting;
        sent(total.jobs);
    }
    let starts_with = reader.await.map_err(|_| EnqueueError::Panicked)??;
    if total.jobs != checked.jobs {
        return Err(EnqueueError::InputChanged { checked: checked.jobs, now: total.jobs });
    }
    given.settle(&mut open.document, &total, &starts_with);
    store.put_batch(&open.document).await?;
    // A pause or cancellation made meanwhile is kept.
    let end = [BatchState::Enqueuing];
    let after = store.change_state(batch, &end, BatchState::Running, None).await?;
    match after.map(|batch| batch.state) {
        Some(BatchState::Cancelled) => Err(EnqueueError::Cancelled(batch.clone())),
        _ => Ok(total),
    }
}

/// Batch that jobs are being added to.
pub struct OpenBatch {
    pub document: Batch,
    /// It existed before: it may be worked on at this moment.
    is_old: bool,
    /// If no job has ended there is no need to ask for each.
    any_ended: bool,
}

impl OpenBatch {
    /// Marks the batch as enqueuing in the store, and creates it there if it is new; `None` if it is
    /// cancelled. Of several callers one is the first; the others' jobs may be in the queue already,
    /// which the workers are told before any is sent.
    ///
    /// # Errors
    /// The store's error.
    pub async fn open(
        batch: &BatchId,
        (queue, store): (&dyn Queue, &dyn Store),
    ) -> Result<Option<Self>, StoreError> {
        let begin = [BatchState::Running, BatchState::Done];
        loop {
            let before = store.change_state(batch, &begin, BatchState::Enqueuing, None).await?;
            if let Some(document) = before {
                if document.state == BatchState::Cancelled {
                    return Ok(None);
                }
                if !queue.keeps_one_of_each() {
                    store.add_senders(batch, BatchSenders::Several).await?;
                }
                let any_ended = store.totals(batch).await?.ended() > 0;
                return Ok(Some(Self { document, is_old: true, any_ended }));
            }
            let document = Batch {
                id: batch.clone(),
                state: BatchState::Enqueuing,
                reason: None,
                jobs: 0,
                prompt_tokens: 0,
                inputs: Vec::new(),
                senders: BatchSenders::One,
                created_at: Timestamp::now(),
            };
            if store.create_batch(&document).await? {
                return Ok(Some(Self { document, is_old: false, any_ended: false }));
            }
        }
    }

    /// Sends the jobs that have no outcome yet. If one may get it meanwhile, the worker that
    /// receives its job asks again before a call.
    ///
    /// # Errors
    /// If the queue or the store fails, or a job has its outcome for another body.
    pub async fn send_unknown(
        &self,
        mut jobs: Vec<Job>,
        (queue, store): (&dyn Queue, &dyn Store),
    ) -> Result<EnqueueCounts, EnqueueError> {
        let all = jobs.len();
        if self.any_ended {
            jobs = without_known(jobs, &self.document.id, store).await?;
        }
        jobs.iter_mut().for_each(|job| job.may_have_outcome = self.is_old);
        let known = (all - jobs.len()) as u64;
        let waiting = send_all(queue, store, jobs).await?;
        Ok(EnqueueCounts { jobs: all as u64, waiting, known, prompt_tokens: 0 })
    }
}

/// Sends a chunk; returns how many of it the queue had already. Bodies too large for the queue are
/// stored first, so that no message ever names a missing body.
async fn send_all(
    queue: &dyn Queue,
    store: &dyn Store,
    mut jobs: Vec<Job>,
) -> Result<u64, EnqueueError> {
    let (positions, limit) = match queue.send(jobs.clone()).await {
        Err(QueueError::TooLarge { positions, limit }) => (positions, limit),
        sent => return Ok(sent?.duplicates),
    };
    let bodies: Vec<_> = positions.iter().map(|n| jobs[*n].offload_body()).collect();
    let names = positions.iter().filter_map(|n| jobs[*n].payload_name());
    let put = |(name, body): (String, Bytes)| async move { store.put_payload(&name, body).await };
    let puts = stream::iter(names.zip(bodies)).map(put).buffer_unordered(PAYLOADS_AT_A_TIME);
    puts.try_collect::<()>().await?;
    match queue.send(jobs.clone()).await {
        Err(QueueError::TooLarge { positions, .. }) => {
            let custom_id = positions.first().map(|n| jobs.swap_remove(*n).custom_id);
            Err(EnqueueError::TooLarge { custom_id: custom_id.unwrap_or_default(), limit })
        }
        sent => Ok(sent?.duplicates),
    }
}

/// Leaves out the jobs with an outcome.
async fn without_known(
    jobs: Vec<Job>,
    batch: &BatchId,
    store: &dyn Store,
) -> Result<Vec<Job>, EnqueueError> {
    let names: Vec<_> = jobs.iter().map(|job| job.custom_id.as_str()).collect();
    let known = store.look_up(batch, &names).await?;
    let mut unknown = Vec::new();
    for (job, known) in jobs.into_iter().zip(known) {
        match known {
            Some(proof) if proof.digest() != job.digest() => {
                return Err(EnqueueError::Changed {
                    batch: batch.clone(),
                    custom_id: job.custom_id,
                });
            }
            Some(_) => {}
            None => unknown.push(job),
        }
    }
    Ok(unknown)
}

/// Input of the reading thread.
struct InputReader {
    sources: Vec<InputSource>,
    reading: LineOptions,
    repeated: Arc<[u64]>,
    batch: BatchId,
    /// Known inputs that this one may start with: lines and fingerprint.
    shorter: Vec<(u64, String)>,
}

impl InputReader {
    /// Sends all jobs; returns the fingerprints of the known inputs that this one starts with.
    fn read(self, send: &mpsc::Sender<Vec<Job>>) -> Result<Vec<String>, InputSourceError> {
        let mut starts_with = Vec::new();
        let mut hash = LineHash::new(&self.reading);
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let mut ordinal = 0;
        for source in &self.sources {
            let mut lines = LineReader::open(source)?;
            while let Some(line) = lines.next()? {
                let position = ordinal;
                ordinal += 1;
                hash.add(&line);
                let so_far = self.shorter.iter().filter(|(lines, _)| *lines == ordinal);
                let same = so_far.filter(|(_, known)| *known == fingerprint(hash.digest()));
                starts_with.extend(same.map(|(_, known)| known.clone()));
                let text = line.checked(self.reading.max_line_bytes);
                // Faults were reported by the first pass.
                let Ok(job) = text.and_then(|text| read_line(text, &self.reading)) else {
                    continue;
                };
                if self.repeated.binary_search(&position).is_ok() {
                    continue;
                }
                let job = job.into_job(&self.batch, position);
                bytes += job.body.len();
                chunk.push(job);
                if chunk.len() < CHUNK && bytes < CHUNK_BYTES {
                    continue;
                }
                bytes = 0;
                if send.blocking_send(std::mem::take(&mut chunk)).is_err() {
                    // Sending failed; the sender returns the error.
                    return Ok(starts_with);
                }
            }
        }
        if !chunk.is_empty() {
            let _ = send.blocking_send(chunk);
        }
        Ok(starts_with)
    }
}
