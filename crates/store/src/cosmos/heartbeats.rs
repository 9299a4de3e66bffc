//! Heartbeats by which worker instances share quotas: one small item each, all in one partition.
//!
//! One write and one read of one partition make an exchange. Neither waits for its turn among the
//! outcomes: a late heartbeat costs its instance the share.

use async_trait::async_trait;
use azure_data_cosmos::feed::FeedScope;
use uuid::Uuid;

use super::CosmosStore;
use super::calls::{CallPurpose, QueryPages, page_of};
use super::items::{HEARTBEATS, HeartbeatItem};
use super::request_units::CosmosOperation;
use crate::{StoreError, WorkerRegistry};
use domain::heartbeat::Heartbeat;

const PUT: CallPurpose = CallPurpose(CosmosOperation::Shares, "writing this worker's share");
const LIST: CallPurpose = CallPurpose(CosmosOperation::Shares, "reading the workers' shares");
const REMOVE: CallPurpose = CallPurpose(CosmosOperation::Shares, "removing this worker's share");

const HEARTBEATS_A_PAGE: u32 = 1000;

#[async_trait]
impl WorkerRegistry for CosmosStore {
    async fn put_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let (id, item) = (heartbeat.instance.to_string(), HeartbeatItem::new(heartbeat));
        let upsert = || self.inner.shares.upsert_item(HEARTBEATS, &id, &item, None);
        self.inner.calls.call_unpaced(PUT, upsert).await?.written(PUT).map(drop)
    }

    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError> {
        let (query, scope) = ("SELECT * FROM c".into(), FeedScope::partition(HEARTBEATS));
        let mut pages: QueryPages<HeartbeatItem<'static>> =
            QueryPages::new(&self.inner.shares, query, scope, page_of(HEARTBEATS_A_PAGE), LIST);
        let mut heartbeats = Vec::new();
        while let Some(items) = pages.next(&self.inner.calls).await? {
            heartbeats.extend(items.into_iter().map(HeartbeatItem::into_heartbeat));
        }
        Ok(heartbeats)
    }

    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError> {
        let id = instance.to_string();
        let delete = || self.inner.shares.delete_item(HEARTBEATS, &id, None);
        self.inner.calls.call_unpaced(REMOVE, delete).await.map(drop)
    }
}
