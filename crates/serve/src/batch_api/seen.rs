//! How batches stand, looked up at most once in a while: many poll, and counting may be billed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::record::Seen;
use domain::job::BatchId;
use store::{Store, StoreError, Totals};

const FRESH_FOR: Duration = Duration::from_secs(1);

/// The last look at each batch that was asked for lately.
#[derive(Default)]
pub struct LastSeen(Mutex<HashMap<String, (Instant, Seen)>>);

impl LastSeen {
    pub(super) async fn of(&self, store: &dyn Store, id: &str) -> Result<Seen, StoreError> {
        if let Some(seen) = self.fresh(id) {
            return Ok(seen);
        }
        let Ok(batch) = id.parse::<BatchId>() else { return Ok(Seen::default()) };
        let state = store.batch(&batch).await?.map(|batch| batch.state);
        let totals = if state.is_some() { store.totals(&batch).await? } else { Totals::default() };
        let seen = Seen { state, totals };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, (at, _)| at.elapsed() < FRESH_FOR);
        all.insert(id.to_owned(), (Instant::now(), seen.clone()));
        Ok(seen)
    }

    fn fresh(&self, id: &str) -> Option<Seen> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(id).filter(|(at, _)| at.elapsed() < FRESH_FOR).map(|(_, seen)| seen.clone())
    }
}
