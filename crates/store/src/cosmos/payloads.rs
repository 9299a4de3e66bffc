//! Payloads too big for their own place: claim checks of queue messages, bodies of large outcomes.
//!
//! A payload is one or more parts, each an item and a logical partition of its own: `NAME:0` says
//! how many there are. It is written last and deleted last, so that a payload that can be found is
//! whole, and an interrupted deletion can be repeated. A process that dies between the parts and
//! the outcome they belong to leaves them behind; that costs storage, nothing else. Bodies of jobs
//! expire, where the container has its time to live switched on (`promptmill init` does).

use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::calls::{CallPurpose, PointResult, decode_item};
use super::error::BadItem;
use super::request_units::CosmosOperation;
use super::{CosmosInner, CosmosStore};
use crate::{PAYLOAD_TTL, PayloadStore, StoreError};
use domain::job::JobId;

const PUT: CallPurpose = CallPurpose(CosmosOperation::Payloads, "writing a payload");
const GET: CallPurpose = CallPurpose(CosmosOperation::Payloads, "reading a payload");
const DELETE: CallPurpose = CallPurpose(CosmosOperation::Payloads, "deleting a payload");

/// Base64 makes 1.8 MB of it; the service takes 2 MB an item.
const PART_BYTES: usize = 1_350_000;
const PARTS_IN_FLIGHT: usize = 4;

#[derive(Serialize, Deserialize)]
struct PayloadPart {
    id: String,
    parts: u32,
    /// Base64 of this part's bytes.
    data: String,
    /// Seconds from the last write until the service deletes the item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
}

/// Names the payload of a large body. The name has the write id: two workers that record the same
/// job have one each, and the later one deletes only its own.
pub(super) fn body_payload_name(job: JobId, write_id: &str) -> String {
    format!("{job}.{write_id}")
}

#[async_trait]
impl PayloadStore for CosmosStore {
    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put_payload(name, &bytes, Some(PAYLOAD_TTL)).await
    }

    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_payload(name).await
    }

    async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete_payload(name).await
    }
}

impl CosmosInner {
    /// Stores a payload for `life`, or until it is deleted.
    pub(super) async fn put_payload(
        &self,
        name: &str,
        bytes: &[u8],
        life: Option<Duration>,
    ) -> Result<(), StoreError> {
        let chunks: Vec<&[u8]> =
            if bytes.is_empty() { vec![bytes] } else { bytes.chunks(PART_BYTES).collect() };
        let parts = chunks.len() as u32;
        let put = async |n: usize| {
            let id = part_id(name, n as u32);
            let data = BASE64.encode(chunks[n]);
            let part =
                PayloadPart { id: id.clone(), parts, data, ttl: life.map(|life| life.as_secs()) };
            let upsert = || self.payloads.upsert_item(id.clone(), &id, &part, None);
            self.calls.write(PUT, upsert).await?.written(PUT).map(drop)
        };
        let rest = stream::iter(1..chunks.len()).map(&put).buffered(PARTS_IN_FLIGHT);
        rest.try_collect::<()>().await?;
        put(0).await
    }

    /// Returns `None` if there is no such payload, or not all of it: it is being deleted then.
    pub(super) async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let Some(first) = self.get_part(name, 0).await? else { return Ok(None) };
        let mut bytes = decode(&first)?;
        let rest = (1..first.parts).map(|n| self.get_part(name, n));
        let mut rest = stream::iter(rest).buffered(PARTS_IN_FLIGHT);
        while let Some(part) = rest.try_next().await? {
            let Some(part) = part else { return Ok(None) };
            bytes.extend_from_slice(&decode(&part)?);
        }
        Ok(Some(bytes.into()))
    }

    /// Deletes a payload; a missing one is no error.
    pub(super) async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        let Some(first) = self.get_part(name, 0).await? else { return Ok(()) };
        for n in (0..first.parts).rev() {
            let id = part_id(name, n);
            let delete = || self.payloads.delete_item(id.clone(), &id, None);
            self.calls.write(DELETE, delete).await?;
        }
        Ok(())
    }

    async fn get_part(&self, name: &str, n: u32) -> Result<Option<PayloadPart>, StoreError> {
        let id = part_id(name, n);
        let read = || self.payloads.read_item(id.clone(), &id, None);
        match self.calls.read(GET, read).await? {
            PointResult::Done(response) => Ok(Some(decode_item(GET, response)?)),
            PointResult::NotFound(_) | PointResult::Conflict | PointResult::PreconditionFailed => {
                Ok(None)
            }
        }
    }
}

fn part_id(name: &str, n: u32) -> String {
    format!("{name}:{n}")
}

fn decode(part: &PayloadPart) -> Result<Vec<u8>, StoreError> {
    let bad = |_| BadItem::Field { id: part.id.clone(), field: "data" }.into();
    BASE64.decode(&part.data).map_err(bad)
}
