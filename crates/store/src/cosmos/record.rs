//! Records outcomes: one create-if-absent each, many in flight.
//!
//! The service's 409 means that there is one already, which is then read for the proof.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::calls::{CallBackoff, CallPurpose, PointResult, decode_item};
use super::items::{OutcomeItem, ProofFields, partition_key, shard_of};
use super::request_units::CosmosOperation;
use super::{CosmosInner, CosmosStore, payloads};
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
        let mut proofs: Vec<(usize, Recorded)> = writes.try_collect().await?;
        proofs.sort_unstable_by_key(|(n, _)| *n);
        let proofs: Vec<Recorded> = proofs.into_iter().map(|(_, proof)| proof).collect();
        claims.settle();
        let counted = firsts.iter().zip(&proofs).filter(|(_, proof)| proof.first);
        self.worker_usage.add(counted.map(|(place, _)| &outcomes[*place]));
        self.flush_usage().await;
        let proof_of = |(place, outcome): (usize, &Outcome)| {
            let n = first_places[&outcome.job_id];
            Recorded { first: proofs[n].first && firsts[n] == place, ..proofs[n] }
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

    async fn record_one(
        &self,
        outcome: &Outcome,
        shards: u32,
        write_id: Uuid,
    ) -> Result<Recorded, StoreError> {
        let pk = partition_key(&outcome.batch_id, shard_of(outcome.job_id, shards));
        let write_id = write_id.simple().to_string();
        let mut item = OutcomeItem::new(outcome, &pk, &write_id)?;
        if is_too_big(&item) {
            let payload = payloads::body_payload_name(outcome.job_id, &write_id);
            let body = outcome.body.as_deref().unwrap_or_default();
            self.put_payload(&payload, body, None).await?;
            item.body = None;
            item.body_ref = Some(payload.into());
        }
        let proof = |first| {
            let (job_id, ending, digest) = (outcome.job_id, outcome.ending, outcome.digest);
            Recorded { job_id, ending, digest, first }
        };
        let mut others = CallBackoff::new(self.calls.patience);
        loop {
            let create = || self.outcomes.create_item(pk.clone(), &item.id, &item, None);
            if self.calls.write(CREATE, create).await?.written(CREATE)? {
                return Ok(proof(true));
            }
            let known = self.proof(PROVE, &outcome.batch_id, outcome.job_id, shards).await?;
            let Some(known) = known else {
                others.wait_for_others(PROVE.1).await?;
                continue;
            };
            if known.write_id == write_id {
                return Ok(proof(true));
            }
            if let Some(payload) = &item.body_ref {
                self.delete_payload(payload).await?;
            }
            return Ok(known.recorded(outcome.job_id, false)?);
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

fn is_too_big(item: &OutcomeItem<'_>) -> bool {
    let texts = [item.body.as_deref(), item.metadata.as_deref(), Some(&item.custom_id)];
    let texts: usize = texts.into_iter().flatten().map(str::len).sum();
    let message = item.failure.as_ref().map_or(0, |failure| failure.message.len());
    // Nearly every item passes here, without being written out only to be measured.
    if (texts + message) * JSON_GROWTH < ITEM_LIMIT {
        return false;
    }
    let mut size = ByteCounter(0);
    // What can't be written out here fails with its reason when it is sent.
    serde_json::to_writer(&mut size, item).is_ok() && size.0 > ITEM_LIMIT && item.body.is_some()
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
