//! Cache of batch snapshots: many clients poll, and counting may be billed.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::record::BatchSnapshot;
use domain::job::BatchId;
use domain::mutex::lock;
use store::{BatchTotals, Store, StoreError};

const FRESH_FOR: Duration = Duration::from_secs(1);

/// Latest snapshot of each batch that was requested recently.
#[derive(Default)]
pub struct SnapshotCache(Mutex<HashMap<String, (Instant, BatchSnapshot)>>);

impl SnapshotCache {
    pub(super) async fn get(
        &self,
        store: &dyn Store,
        id: &str,
    ) -> Result<BatchSnapshot, StoreError> {
        if let Some(seen) = self.fresh(id) {
            return Ok(seen);
        }
        let Ok(batch) = id.parse::<BatchId>() else { return Ok(BatchSnapshot::default()) };
        let state = store.batch(&batch).await?.map(|batch| batch.state);
        let totals =
            if state.is_some() { store.totals(&batch).await? } else { BatchTotals::default() };
        let seen = BatchSnapshot { state, totals };
        let mut all = lock(&self.0);
        all.retain(|_, (at, _)| at.elapsed() < FRESH_FOR);
        all.insert(id.to_owned(), (Instant::now(), seen.clone()));
        Ok(seen)
    }

    fn fresh(&self, id: &str) -> Option<BatchSnapshot> {
        let all = lock(&self.0);
        all.get(id).filter(|(at, _)| at.elapsed() < FRESH_FOR).map(|(_, seen)| seen.clone())
    }
}
