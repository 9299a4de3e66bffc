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
use store::{FinishCounts, SortOrder, Store, StoreError};

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

/// Kind of outcome by which results are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeKind {
    Ended(OutcomeStatus),
    /// Succeeded, with an answer that is cut off for want of room.
    Truncated,
    /// Succeeded, with an answer that a content filter cut off or left out.
    Filtered,
    /// Succeeded, with an answer of which bytes or numbers were replaced.
    Flawed,
}

impl OutcomeKind {
    /// Lists the names that [`Self::from_name`] knows.
    pub fn names() -> Vec<&'static str> {
        let endings = OutcomeStatus::ALL.iter().map(|ending| ending.as_str());
        endings.chain(["truncated", "filtered", "flawed"]).collect()
    }

    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "truncated" => Some(Self::Truncated),
            "filtered" => Some(Self::Filtered),
            "flawed" => Some(Self::Flawed),
            ending => OutcomeStatus::from_name(ending).map(Self::Ended),
        }
    }

    fn includes(self, outcome: &Outcome) -> bool {
        let counts = FinishCounts::of(Some(outcome.ending), outcome.finish);
        match self {
            Self::Ended(ending) => outcome.ending == ending,
            Self::Truncated => counts.truncated > 0,
            Self::Filtered => counts.filtered > 0,
            Self::Flawed => outcome.flaw.is_some(),
        }
    }
}

/// Selected outcomes, and their order.
#[derive(Debug, Clone)]
pub struct OutcomeSelection {
    pub batch: BatchId,
    pub order: SortOrder,
    /// Outcomes of these kinds; empty: all.
    pub kinds: Vec<OutcomeKind>,
}

impl OutcomeSelection {
    async fn stream(
        &self,
        store: &dyn Store,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        let kinds = self.kinds.clone();
        let wanted = move |outcome: &Result<Outcome, StoreError>| {
            future::ready(match outcome {
                Ok(outcome) => kinds.is_empty() || kinds.iter().any(|kind| kind.includes(outcome)),
                Err(_) => true,
            })
        };
        Ok(store.outcomes(&self.batch, self.order).await?.filter(wanted).boxed())
    }
}
