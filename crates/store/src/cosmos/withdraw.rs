//! Withdraws the outcomes of dead jobs, so that these can be worked again.
//!
//! A batch's cost is counted from its outcomes, so a withdrawn outcome leaves its tokens and
//! attempts: an item without an ending, in the same logical partition, written in the same
//! transaction. Its id has that of the write that made the outcome, so no outcome leaves two.

use azure_data_cosmos::TransactionalBatch;
use azure_data_cosmos::options::{BatchDeleteOptions, Precondition};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::CosmosInner;
use super::calls::{CallBackoff, CallPurpose, PointResult, decode_item};
use super::items::{OutcomeItem, WithdrawnItem, partition_key, shard_of};
use super::request_units::CosmosOperation;
use crate::{Recorded, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::OutcomeStatus;

const READ: CallPurpose = CallPurpose(CosmosOperation::Record, "reading an outcome to withdraw");
const WITHDRAW: CallPurpose = CallPurpose(CosmosOperation::Record, "withdrawing an outcome");

impl CosmosInner {
    pub(super) async fn reopen_dead(
        &self,
        batch: &BatchId,
        jobs: &[JobId],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else {
            return Ok(vec![None; jobs.len()]);
        };
        let withdraw = |n: usize| self.withdraw_one(batch, jobs[n], shards);
        let writes = stream::iter(0..jobs.len()).map(withdraw).buffered(self.writes_in_flight);
        let stand = writes.try_collect().await?;
        self.flush_usage().await;
        Ok(stand)
    }

    async fn withdraw_one(
        &self,
        batch: &BatchId,
        job: JobId,
        shards: u32,
    ) -> Result<Option<Recorded>, StoreError> {
        let (pk, id) = (partition_key(batch, shard_of(job, shards)), job.to_string());
        let mut others = CallBackoff::new(self.calls.patience);
        loop {
            let read = || self.outcomes.read_item(pk.clone(), &id, None);
            let PointResult::Done(response) = self.calls.read(READ, read).await? else {
                return Ok(None);
            };
            let etag = response.headers().etag().cloned();
            let item: OutcomeItem<'static> = decode_item(READ, response)?;
            if item.ending != OutcomeStatus::Dead {
                return Ok(Some(item.recorded(job)?));
            }
            let unchanged = etag.map(|e| {
                BatchDeleteOptions::default().with_precondition(Precondition::if_match(e))
            });
            let both = TransactionalBatch::new(pk.clone())
                .delete_item(id.clone(), unchanged)
                .create_item(WithdrawnItem::new(&item))
                .map_err(|e| super::error::store_error(WITHDRAW.1, e))?;
            let both = || self.outcomes.execute_transactional_batch(both.clone(), None);
            if self.calls.write_transaction(WITHDRAW, both).await? {
                self.after_withdrawal(batch, &item).await;
                return Ok(None);
            }
            others.wait_for_others(WITHDRAW.1).await?;
        }
    }

    async fn after_withdrawal(&self, batch: &BatchId, item: &OutcomeItem<'_>) {
        self.worker_usage.count_withdrawn(batch, item);
        if let Some(payload) = &item.body_ref
            && let Err(error) = self.delete_payload(payload).await
        {
            tracing::warn!(%error, payload = %payload, "could not delete a withdrawn outcome's body; it stays in storage");
        }
    }
}
