//! Summary of a night, for the morning after.

use jiff::Timestamp;
use serde::Serialize;

use super::document::{DocumentChange, NightDocument};
use super::requests::RequestState;
use super::run::NightRunner;
use super::table::{AnswerRow, RowState};
use domain::job::BatchId;
use domain::outcome::TokenUsage;
use domain::prices::{Money, Prices};
use report::usage::{self, Cost};
use store::StoreError;

/// Missing answers shown in the summary; all of them are counted, and are in the table.
const SHOWN_FAULTS: usize = 20;

/// Summary of a night.
#[derive(Debug, Serialize)]
pub struct NightSummary {
    pub recipe: String,
    pub batch: BatchId,
    pub documents: DocumentCounts,
    pub rows: RowCounts,
    pub requests: RequestCounts,
    /// Usage of the calls that were made.
    pub usage: TokenUsage,
    pub cost: Cost,
    pub saved: ReuseSavings,
    pub began_at: Timestamp,
    pub ended_at: Timestamp,
    pub finish_by: Option<Timestamp>,
    /// True if all was answered or refused by then; absent if no time was set.
    pub is_met: Option<bool>,
    /// The first documents and parts without an answer.
    pub faults: Vec<MissingAnswer>,
}

/// Counts of documents, compared with the last night.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DocumentCounts {
    pub all: u64,
    pub new: u64,
    pub changed: u64,
    pub same: u64,
    /// Part of the last night, gone tonight.
    pub removed: u64,
    /// No request could be made about them.
    pub unread: u64,
}

/// Counts of the table's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RowCounts {
    pub answered: u64,
    pub failed: u64,
    pub unfinished: u64,
}

/// Counts of requests, each distinct one once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// Requested this night.
    pub asked: u64,
    /// Answered on an earlier night.
    pub reused: u64,
    /// Parts whose request another part makes as well.
    pub duplicates: u64,
    /// Made because an answer did not fit its schema.
    pub repairs: u64,
}

/// Usage of the reused answers when they were requested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ReuseSavings {
    pub usage: TokenUsage,
    /// Their price in today's price table; absent where the model has no price.
    pub cost: Option<Money>,
}

/// A document or part without an answer, and why.
#[derive(Debug, Clone, Serialize)]
pub struct MissingAnswer {
    pub document: String,
    pub part: Option<u64>,
    pub state: RowState,
    pub why: String,
}

/// Counter of the table's rows as they are written.
#[derive(Debug, Default)]
pub struct RowTally {
    rows: RowCounts,
    faults: Vec<MissingAnswer>,
}

impl RowTally {
    pub fn add(&mut self, row: &AnswerRow) {
        match row.state {
            RowState::Answered => self.rows.answered += 1,
            RowState::Failed => self.rows.failed += 1,
            RowState::Unfinished => self.rows.unfinished += 1,
            // Counted among the documents.
            RowState::Unread => {}
        }
        if let Some(why) = &row.error
            && self.faults.len() < SHOWN_FAULTS
        {
            let (document, why) = (row.document.clone(), why.clone());
            self.faults.push(MissingAnswer { document, part: row.part, state: row.state, why });
        }
    }
}

impl NightRunner<'_> {
    /// Returns the summary of this night, whose table has been written.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn summary(
        &self,
        tally: RowTally,
        prices: &Prices,
        (began_at, finish_by): (Timestamp, Option<Timestamp>),
    ) -> Result<NightSummary, StoreError> {
        let lines = usage::sum(self.store, Some(&self.batch), &[], prices).await?;
        let spent = usage::total(&lines);
        let ended_at = Timestamp::now();
        let RowTally { rows, faults } = tally;
        let is_met = finish_by.map(|by| ended_at <= by && rows.unfinished == 0);
        Ok(NightSummary {
            recipe: self.recipe.name.clone(),
            batch: self.batch.clone(),
            documents: self.count_documents(),
            rows,
            requests: self.count_requests(),
            usage: spent.usage,
            cost: spent.cost,
            saved: self.saved(prices),
            began_at,
            ended_at,
            finish_by,
            is_met,
            faults,
        })
    }

    fn count_documents(&self) -> DocumentCounts {
        let of = |standing| {
            let of = |d: &&NightDocument| d.unread.is_none() && d.change == standing;
            self.documents.iter().filter(of).count() as u64
        };
        let known = &self.history.ledger.documents;
        let still = self.documents.iter().filter(|d| known.contains_key(&d.name)).count();
        DocumentCounts {
            all: self.documents.len() as u64,
            new: of(DocumentChange::New),
            changed: of(DocumentChange::Changed),
            same: of(DocumentChange::Same),
            removed: (known.len() - still) as u64,
            unread: self.documents.iter().filter(|d| d.unread.is_some()).count() as u64,
        }
    }

    fn count_requests(&self) -> RequestCounts {
        let asked = self.requests.added();
        let repairs =
            asked.iter().filter(|k| self.requests.get(k).is_some_and(|a| a.repairs.is_some()));
        let parts: u64 = self.documents.iter().map(|d| d.parts.len() as u64).sum();
        let different: std::collections::HashSet<_> =
            self.documents.iter().flat_map(|d| &d.parts).collect();
        RequestCounts {
            asked: asked.len() as u64,
            reused: self.requests.reused().count() as u64,
            duplicates: parts - different.len() as u64,
            repairs: repairs.count() as u64,
        }
    }

    fn saved(&self, prices: &Prices) -> ReuseSavings {
        let mut usage = TokenUsage::default();
        for state in self.requests.reused() {
            match state {
                RequestState::Answered { usage: Some(of), .. }
                | RequestState::Repaired { usage: Some(of), .. }
                | RequestState::Failed { usage: Some(of), .. } => usage += *of,
                _ => {}
            }
        }
        ReuseSavings { usage, cost: prices.cost(&self.recipe.model, usage, false) }
    }
}
