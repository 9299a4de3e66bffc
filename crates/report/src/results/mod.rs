//! A batch's outcomes as files: what programs of the Batch API read, and what analysts do.

pub mod jsonl;
pub mod table;

mod columns;
mod parquet;
mod target;

use std::io;
use std::path::PathBuf;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, future};
use serde::Serialize;

pub use columns::{Kind, Value, answer as answer_text};
pub use target::Target;

use domain::job::BatchId;
use domain::outcome::{Ending, Outcome};
use store::{Order, Store, StoreError};

/// Why results could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("can't write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stored body of '{custom_id}' is not JSON")]
    Body { custom_id: String, source: serde_json::Error },
}

/// Where the lines of the two files in Batch format go.
#[derive(Debug, Clone)]
pub struct Paths {
    pub out: PathBuf,
    pub errors: PathBuf,
}

/// Lines written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    pub results: u64,
    pub errors: u64,
}

/// Which outcomes, and in what order.
#[derive(Debug, Clone)]
pub struct Selection {
    pub batch: BatchId,
    pub order: Order,
    /// Only these endings; empty: all.
    pub endings: Vec<Ending>,
}

impl Selection {
    async fn stream(
        &self,
        store: &dyn Store,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        let endings = self.endings.clone();
        let wanted = move |outcome: &Result<Outcome, StoreError>| {
            future::ready(match outcome {
                Ok(outcome) => endings.is_empty() || endings.contains(&outcome.ending),
                Err(_) => true,
            })
        };
        Ok(store.outcomes(&self.batch, self.order).await?.filter(wanted).boxed())
    }
}
