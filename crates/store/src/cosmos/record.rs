//! Records outcomes: one create-if-absent each, many in flight.
//!
//! The service's 409 means that there is one already, which is then read for the proof.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::calls::{CallBackoff, CallPurpose, PointResult, decode_item};
use super::error::is_about_the_item;
use super::items::{OutcomeItem, ProofFields, partition_key, shard_of};
use super::request_units::CosmosOperation;
use super::{CosmosInner, CosmosStore, payloads};
use crate::unstorable::{self, UnstorableReason};
use crate::{OutcomeStore, Recorded, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::Outcome;

const CREATE: CallPurpose = CallPurpose(CosmosOperation::Record, "recording an outcome");
const PROVE: CallPurpose = CallPurpose(CosmosOperation::Record, "reading an outcome that exists");
const LOOK_UP: CallPurpose = CallPurpose(CosmosOperation::LookUp, "looking an outcome up");

/// The service takes 2 MB of JSON an item; what it adds to it is far below the difference.
const ITEM_LIMIT: usize = 1_900_000;
/// The longest that one byte of text can become in JSON: `\u0000`.
const JSON_GROWTH: usize = 6;

#[async_trait]
impl OutcomeStore for CosmosStore {
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.record(&outcomes).await
    }

    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        if custom_ids.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.look_up(batch, &job_ids(batch, custom_ids)).await
    }

    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        if custom_ids.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.reopen_dead(batch, &job_ids(batch, custom_ids)).await
    }
}

/// Returns the items' ids, which are the jobs'.
fn job_ids(batch: &BatchId, custom_ids: &[&str]) -> Vec<JobId> {
    custom_ids.iter().map(|custom_id| JobId::new(batch, custom_id)).collect()
}

/// Outcome as it was offered to the database in the end, and the proof for its job.
struct WrittenOutcome<'o> {
    outcome: Cow<'o, Outcome>,
    proof: Recorded,
}

/// Failure to create an outcome's item.
enum CreateError {
    /// The reason lies in the outcome; another one may pass.
    Unstorable(UnstorableReason),
    Store(StoreError),
}

impl From<UnstorableReason> for CreateError {
    fn from(reason: UnstorableReason) -> Self {
        Self::Unstorable(reason)
    }
}

impl From<StoreError> for CreateError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Refused(source) if is_about_the_item(source.as_ref()) => {
                Self::Unstorable(UnstorableReason::Refused(source.to_string()))
            }
            _ => Self::Store(error),
        }
    }
}

impl From<CreateError> for StoreError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Unstorable(reason) => Self::Refused(reason.into()),
            CreateError::Store(error) => error,
        }
    }
}

impl CosmosInner {
    pub(super) async fn record(&self, outcomes: &[Outcome]) -> Result<Vec<Recorded>, StoreError> {
        let shards = self.shards_of_all(outcomes).await?;
        // A job that is there twice in one call is written once; its second outcome is too late.
        let mut first_places: HashMap<JobId, usize> = HashMap::with_capacity(outcomes.len());
        let mut firsts = Vec::with_capacity(outcomes.len());
        for (place, outcome) in outcomes.iter().enumerate() {
            first_places.entry(outcome.job_id).or_insert_with(|| {
                firsts.push(place);
                firsts.len() - 1
            });
        }
        let claims = self.write_ids.claim(firsts.iter().map(|place| &outcomes[*place]));
        let record = async |n: usize| {
            let outcome = &outcomes[firsts[n]];
            let shards = shards[&outcome.batch_id];
            Ok::<_, StoreError>((n, self.record_one(outcome, shards, claims.id(n)).await?))
        };
        // Unordered: one write that is slow must not hold back those after it.
        let writes = stream::iter(0..firsts.len()).map(record);
        let writes = writes.buffer_unordered(self.writes_in_flight);
        let mut written: Vec<(usize, WrittenOutcome<'_>)> = writes.try_collect().await?;
        written.sort_unstable_by_key(|(n, _)| *n);
        claims.settle();
        let counted = written.iter().filter(|(_, written)| written.proof.first);
        self.worker_usage.add(counted.map(|(_, written)| written.outcome.as_ref()));
        self.flush_usage().await;
        let proof_of = |(place, outcome): (usize, &Outcome)| {
            let n = first_places[&outcome.job_id];
            let proof = written[n].1.proof;
            Recorded { first: proof.first && firsts[n] == place, ..proof }
        };
        Ok(outcomes.iter().enumerate().map(proof_of).collect())
    }

    pub(super) async fn look_up(
        &self,
        batch: &BatchId,
        jobs: &[JobId],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else {
            return Ok(vec![None; jobs.len()]);
        };
        let look_up = async |n: usize| {
            let proof = self.proof(LOOK_UP, batch, jobs[n], shards).await?;
            proof.map(|proof| proof.recorded(jobs[n], false)).transpose().map_err(StoreError::from)
        };
        let reads = stream::iter(0..jobs.len()).map(look_up).buffered(self.writes_in_flight);
        reads.try_collect().await
    }

    async fn shards_of_all(
        &self,
        outcomes: &[Outcome],
    ) -> Result<HashMap<BatchId, u32>, StoreError> {
        let mut shards = HashMap::new();
        for outcome in outcomes {
            if !shards.contains_key(&outcome.batch_id) {
                let batch = outcome.batch_id.clone();
                let number = self.shards(&batch).await?;
                shards.insert(batch, number);
            }
        }
        Ok(shards)
    }

    /// Records an outcome if its job has none; if it can't be kept as it is, what can be kept of it.
    async fn record_one<'o>(
        &self,
        outcome: &'o Outcome,
        shards: u32,
        write_id: Uuid,
    ) -> Result<WrittenOutcome<'o>, StoreError> {
        let write_id = write_id.simple().to_string();
        let reason = match unstorable::check(outcome) {
            Ok(()) => match self.create(outcome, shards, &write_id).await {
                Err(CreateError::Unstorable(reason)) => reason,
                Err(CreateError::Store(error)) => return Err(error),
                Ok(proof) => return Ok(WrittenOutcome { outcome: Cow::Borrowed(outcome), proof }),
            },
            Err(reason) => reason,
        };
        tracing::warn!(job.id = %outcome.job_id, batch.id = %outcome.batch_id, %reason,
            "an outcome can't be stored as it came; it is recorded with the reason");
        let [full, bare] = reason.replacements(outcome);
        match self.create(&full, shards, &write_id).await {
            Err(CreateError::Unstorable(_)) => {
                let proof = self.create(&bare, shards, &write_id).await?;
                Ok(WrittenOutcome { outcome: Cow::Owned(bare), proof })
            }
            proof => Ok(WrittenOutcome { outcome: Cow::Owned(full), proof: proof? }),
        }
    }

    async fn create(
        &self,
        outcome: &Outcome,
        shards: u32,
        write_id: &str,
    ) -> Result<Recorded, CreateError> {
        let pk = partition_key(&outcome.batch_id, shard_of(outcome.job_id, shards));
        let mut item = OutcomeItem::new(outcome, &pk, write_id)?;
        if size_over_limit(&item).is_some() {
            let payload = payloads::body_payload_name(outcome.job_id, write_id);
            let body = item.body.take().unwrap_or_default();
            if let Some(bytes) = size_over_limit(&item) {
                return Err(UnstorableReason::TooLarge { bytes, limit: ITEM_LIMIT }.into());
            }
            self.put_payload(&payload, body.as_bytes(), None).await?;
            item.body_ref = Some(payload.into());
        }
        let created = self.create_item(outcome, &item, shards).await;
        // Whoever was first has a body of its own; a refused item has no use for one.
        let is_ours = created.as_ref().is_ok_and(Recorded::is_first);
        let is_open = matches!(created, Err(CreateError::Store(_)));
        if let (Some(payload), false) = (&item.body_ref, is_ours || is_open) {
            self.delete_payload(payload).await?;
        }
        created
    }

    async fn create_item(
        &self,
        outcome: &Outcome,
        item: &OutcomeItem<'_>,
        shards: u32,
    ) -> Result<Recorded, CreateError> {
        let proof = |first| {
            let (job_id, ending, digest) = (outcome.job_id, outcome.ending, outcome.digest);
            Recorded { job_id, ending, digest, first }
        };
        let mut others = CallBackoff::new(self.calls.patience);
        loop {
            let create = || self.outcomes.create_item(item.pk.to_string(), &item.id, item, None);
            if self.calls.write(CREATE, create).await?.written(CREATE)? {
                return Ok(proof(true));
            }
            let known = self.proof(PROVE, &outcome.batch_id, outcome.job_id, shards).await?;
            let Some(known) = known else {
                others.wait_for_others(PROVE.1).await?;
                continue;
            };
            if known.write_id == item.write_id {
                return Ok(proof(true));
            }
            return Ok(known.recorded(outcome.job_id, false).map_err(StoreError::from)?);
        }
    }

    async fn proof(
        &self,
        purpose: CallPurpose,
        batch: &BatchId,
        job: JobId,
        shards: u32,
    ) -> Result<Option<ProofFields>, StoreError> {
        let (pk, id) = (partition_key(batch, shard_of(job, shards)), job.to_string());
        let read = || self.outcomes.read_item(pk.clone(), &id, None);
        match self.calls.read(purpose, read).await? {
            PointResult::Done(response) => Ok(Some(decode_item(purpose, response)?)),
            PointResult::NotFound(_) | PointResult::Conflict | PointResult::PreconditionFailed => {
                Ok(None)
            }
        }
    }
}

/// Returns the item's size as JSON, if it is more than the service takes.
fn size_over_limit(item: &OutcomeItem<'_>) -> Option<usize> {
    let texts = [item.body.as_deref(), item.metadata.as_deref(), Some(&item.custom_id)];
    let texts: usize = texts.into_iter().flatten().map(str::len).sum();
    let message = item.failure.as_ref().map_or(0, |failure| failure.message.len());
    // Nearly every item passes here, without being written out only to be measured.
    if (texts + message) * JSON_GROWTH < ITEM_LIMIT {
        return None;
    }
    let mut size = ByteCounter(0);
    // What can't be written out here fails with its reason when it is sent.
    serde_json::to_writer(&mut size, item).ok()?;
    (size.0 > ITEM_LIMIT).then_some(size.0)
}

struct ByteCounter(usize);

impl io::Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
