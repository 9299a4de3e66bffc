//! The end of a night: its table, its summary, and the ledger for the next one.

use std::collections::HashMap;
use std::path::Path;

use super::ledger::NightLedger;
use super::night::{NightError, NightLease, NightStart};
use super::run::NightRunner;
use super::summary::{NightSummary, RowTally};
use super::table::TableError;
use control::ControlError;
use domain::job::BatchId;
use domain::prices::Prices;
use store::{Store, StoreError};

/// Reason why a night stays open at its end. Its answers are in the store; the next start resumes.
#[derive(Debug, thiserror::Error)]
pub enum ClosingError {
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Night(#[from] NightError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Cancels nights that were never closed: this one sends the prompts still wanted of them. Returns
/// those that were still open to work.
///
/// # Errors
/// If the store fails.
pub async fn cancel_unclosed(
    store: &dyn Store,
    unclosed: &[BatchId],
) -> Result<Vec<BatchId>, ControlError> {
    let mut cancelled = Vec::new();
    for batch in unclosed {
        match control::cancel(store, batch).await {
            Ok(_) => cancelled.push(batch.clone()),
            Err(
                ControlError::Done(_) | ControlError::Cancelled(_) | ControlError::NoSuchBatch(_),
            ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cancelled)
}

impl NightRunner<'_> {
    /// Writes the table, and closes the night with the ledger for the next one.
    ///
    /// # Errors
    /// If the table can't be written, or the store fails.
    pub async fn close_night(
        &mut self,
        start: &NightStart,
        lease: &NightLease,
        table: Option<&Path>,
        prices: &Prices,
    ) -> Result<NightSummary, ClosingError> {
        let mut tally = RowTally::default();
        self.write_table(table, |row| tally.add(row)).await?;
        let times = (start.night.begun_at, start.night.finish_by);
        let summary = self.summary(tally, prices, times).await;
        lease.close(&self.next_ledger(&start.ledger)).await?;
        Ok(summary?)
    }

    /// Builds the ledger for the next night. Of a document that could not be read it keeps what was
    /// known before.
    fn next_ledger(&self, before: &NightLedger) -> NightLedger {
        let mut documents = HashMap::new();
        for document in &self.documents {
            let known = match (&document.unread, before.documents.get(&document.name)) {
                (None, _) => document.to_ledger(),
                (Some(_), Some(known)) => known.clone(),
                (Some(_), None) => continue,
            };
            documents.insert(document.name.clone(), known);
        }
        let fingerprint = self.recipe.fingerprint();
        before.after(fingerprint, self.batches.clone(), documents, &self.requests)
    }
}
