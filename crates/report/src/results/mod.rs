//! A batch's outcomes as files: Batch API JSONL for programs, tables for analysts.

pub mod jsonl;
pub mod table;

mod atomic_file;
mod columns;
mod error;
#[cfg(feature = "parquet")]
mod parquet;

use std::path::PathBuf;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, future};
use serde::Serialize;

pub use atomic_file::AtomicFile;
pub use columns::{CellValue, ColumnKind, answer as answer_text};
pub use error::ResultsError;

use domain::job::BatchId;
use domain::outcome::{Outcome, OutcomeStatus};
use store::{SortOrder, Store, StoreError};

/// Paths of the two files in Batch format.
#[derive(Debug, Clone)]
pub struct ResultPaths {
    pub out: PathBuf,
    pub errors: PathBuf,
}

impl ResultPaths {
    /// Checks that both files can be created, before anything is paid for.
    ///
    /// # Errors
    /// Names the file that can't be.
    pub fn check(&self) -> Result<(), ResultsError> {
        AtomicFile::check(&self.out)?;
        AtomicFile::check(&self.errors)
    }
}

/// Lines written to each file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ResultCounts {
    pub results: u64,
    pub errors: u64,
}

/// Selected outcomes, and their order.
#[derive(Debug, Clone)]
pub struct OutcomeSelection {
    pub batch: BatchId,
    pub order: SortOrder,
    /// Only these endings; empty: all.
    pub endings: Vec<OutcomeStatus>,
}

impl OutcomeSelection {
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
