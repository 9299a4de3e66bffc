//! Taking away the outcomes of dead jobs, so that these can be worked again.
//!
//! What a batch cost is counted from its outcomes, so an outcome that goes leaves a note of its
//! tokens and tries: an item without an ending, in the same logical partition, written in the same
//! transaction. Its id is of the write that made the outcome, so no outcome leaves two.

use azure_data_cosmos::TransactionalBatch;
use azure_data_cosmos::options::{BatchDeleteOptions, Precondition};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::Inner;
use super::calls::{Answer, Purpose, Trouble, body};
use super::items::{OutcomeItem, Withdrawn, partition, shard};
use super::units::Operation;
use crate::{Recorded, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::Ending;

const READ: Purpose = Purpose(Operation::Record, "reading an outcome to withdraw");
const WITHDRAW: Purpose = Purpose(Operation::Record, "withdrawing an outcome");

impl Inner {
    pub(super) async fn withdraw_dead(
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
        let (pk, id) = (partition(batch, shard(job, shards)), job.to_string());
        let mut others = Trouble::new(self.calls.patience);
        loop {
            let read = || self.outcomes.read_item(pk.clone(), &id, None);
            let Answer::Done(response) = self.calls.read(READ, read).await? else {
                return Ok(None);
            };
            let etag = response.headers().etag().cloned();
            let item: OutcomeItem<'static> = body(READ, response)?;
            if item.ending != Ending::Dead {
                return Ok(Some(item.recorded(job)?));
            }
            let unchanged = etag.map(|e| {
                BatchDeleteOptions::default().with_precondition(Precondition::if_match(e))
            });
            let both = TransactionalBatch::new(pk.clone())
                .delete_item(id.clone(), unchanged)
                .create_item(Withdrawn::new(&item))
                .map_err(|e| super::error::store_error(WITHDRAW.1, e))?;
            let both = || self.outcomes.execute_transactional_batch(both.clone(), None);
            if self.calls.write_together(WITHDRAW, both).await? {
                self.after_withdrawal(batch, &item).await;
                return Ok(None);
            }
            others.wait_for_others(WITHDRAW.1).await?;
        }
    }

    async fn after_withdrawal(&self, batch: &BatchId, item: &OutcomeItem<'_>) {
        self.running.withdraw(batch, item);
        if let Some(payload) = &item.body_ref
            && let Err(error) = self.delete_payload(payload).await
        {
            tracing::warn!(%error, payload = %payload, "a withdrawn outcome's body stays behind");
        }
    }
}
