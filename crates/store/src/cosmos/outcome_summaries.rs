//! A batch's outcomes without their bodies, as a stream: a fraction of the bytes, for sums.

use std::sync::Arc;

use azure_data_cosmos::feed::FeedScope;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde::Deserialize;

use super::calls::{CallPurpose, QueryPages, page_of};
use super::error::BadItem;
use super::items::partition_key;
use super::request_units::CosmosOperation;
use super::{CosmosInner, SHARDS_AT_A_TIME};
use crate::{OutcomeSummary, StoreError};
use domain::job::BatchId;
use domain::outcome::{AnswerFinish, JobFailure, OutcomeStatus, TokenUsage};

const READ: CallPurpose = CallPurpose(CosmosOperation::Totals, "reading outcome summaries");

const QUERY: &str = "SELECT c.id, c.ending, c.failure, c.usage, c.finish, c.serviceTier, c.attempts, c.throttled, c.deployment, \
                     c.model, c.latencyMs, c.finishedAt, c.deadline, c.metadata FROM c";

const PAGE_ITEMS: u32 = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SummaryItem {
    id: String,
    #[serde(default)]
    ending: Option<OutcomeStatus>,
    #[serde(default)]
    failure: Option<JobFailure>,
    usage: TokenUsage,
    #[serde(default)]
    finish: Option<AnswerFinish>,
    #[serde(default)]
    service_tier: Option<Box<str>>,
    attempts: u32,
    #[serde(default)]
    throttled: u32,
    deployment: String,
    model: String,
    latency_ms: u64,
    finished_at: String,
    #[serde(default)]
    deadline: Option<Timestamp>,
    #[serde(default)]
    metadata: Option<Box<str>>,
}

impl SummaryItem {
    fn into_summary(self) -> Result<OutcomeSummary, BadItem> {
        let bad = || BadItem::Field { id: self.id.clone(), field: "finishedAt" };
        Ok(OutcomeSummary {
            finished_at: self.finished_at.parse().map_err(|_| bad())?,
            ending: self.ending,
            failure: self.failure,
            usage: self.usage,
            finish: self.finish,
            service_tier: self.service_tier,
            attempts: self.attempts,
            throttled: self.throttled,
            deadline: self.deadline,
            deployment: self.deployment,
            model: self.model,
            latency_ms: self.latency_ms,
            metadata: self.metadata,
        })
    }
}

impl CosmosInner {
    pub(super) async fn stream_summaries(
        self: Arc<Self>,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<OutcomeSummary, StoreError>>, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else {
            return Ok(stream::empty().boxed());
        };
        let batch = batch.clone();
        let of_shard = move |shard| {
            let scope = FeedScope::partition(partition_key(&batch, shard));
            let pages =
                QueryPages::new(&self.outcomes, QUERY.into(), scope, page_of(PAGE_ITEMS), READ);
            let store = Arc::clone(&self);
            let pages = stream::try_unfold((store, pages), async |(store, mut pages)| {
                let page: Option<Vec<SummaryItem>> = pages.next(&store.calls).await?;
                Ok::<_, StoreError>(page.map(|page| (page, (store, pages))))
            });
            let brief = |item: SummaryItem| item.into_summary().map_err(StoreError::from);
            pages
                .map_ok(move |page| stream::iter(page.into_iter().map(brief)))
                .try_flatten()
                .boxed()
        };
        Ok(stream::iter(0..shards).map(of_shard).flatten_unordered(SHARDS_AT_A_TIME).boxed())
    }
}
