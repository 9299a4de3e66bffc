//! What a night came to, for the morning after.

use jiff::Timestamp;
use serde::Serialize;

use super::asks::State;
use super::conduct::Conductor;
use super::gather::Standing;
use super::table::{Ended, Row};
use domain::job::BatchId;
use domain::outcome::Usage;
use domain::prices::{Money, Prices};
use report::usage::{self, Cost};
use store::StoreError;

/// Faults that are kept to be shown; all of them are counted, and stand in the table.
const SHOWN_FAULTS: usize = 20;

/// The report.
#[derive(Debug, Serialize)]
pub struct Morning {
    pub recipe: String,
    pub batch: BatchId,
    pub documents: Documents,
    pub rows: Rows,
    pub requests: Requests,
    /// Of the calls that were made.
    pub usage: Usage,
    pub cost: Cost,
    pub saved: Saved,
    pub began_at: Timestamp,
    pub ended_at: Timestamp,
    pub finish_by: Option<Timestamp>,
    /// Whether all was answered or refused by then; absent where no time was set.
    pub is_met: Option<bool>,
    /// The first documents and parts without an answer.
    pub faults: Vec<Fault>,
}

/// Documents beside those of the last night.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Documents {
    pub all: u64,
    pub new: u64,
    pub changed: u64,
    pub same: u64,
    /// Were there the last night.
    pub removed: u64,
    /// Nothing could be asked about them.
    pub unread: u64,
}

/// The table's rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Rows {
    pub answered: u64,
    pub failed: u64,
    pub unfinished: u64,
}

/// Requests, each different one once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Asked this night.
    pub asked: u64,
    /// Answered on an earlier one.
    pub reused: u64,
    /// Parts whose request another part asked as well.
    pub duplicates: u64,
    /// Asked because an answer did not fit its schema.
    pub repairs: u64,
}

/// What the reused answers had cost when they were asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Saved {
    pub usage: Usage,
    /// By today's price table; absent where the model has no price.
    pub cost: Option<Money>,
}

/// A document or part without an answer, and why.
#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    pub document: String,
    pub part: Option<u64>,
    pub state: Ended,
    pub why: String,
}

/// Counts the table's rows as they are written.
#[derive(Debug, Default)]
pub struct Tally {
    rows: Rows,
    faults: Vec<Fault>,
}

impl Tally {
    pub fn add(&mut self, row: &Row) {
        match row.state {
            Ended::Answered => self.rows.answered += 1,
            Ended::Failed => self.rows.failed += 1,
            Ended::Unfinished => self.rows.unfinished += 1,
            // Counted among the documents.
            Ended::Unread => {}
        }
        if let Some(why) = &row.error
            && self.faults.len() < SHOWN_FAULTS
        {
            let (document, why) = (row.document.clone(), why.clone());
            self.faults.push(Fault { document, part: row.part, state: row.state, why });
        }
    }
}

impl Conductor<'_> {
    /// The report on this night, whose table has been written.
    ///
    /// # Errors
    /// What the store said.
    pub async fn morning(
        &self,
        tally: Tally,
        prices: &Prices,
        (began_at, finish_by): (Timestamp, Option<Timestamp>),
    ) -> Result<Morning, StoreError> {
        let lines = usage::sum(self.store, Some(&self.batch), &[], prices).await?;
        let spent = usage::total(&lines);
        let ended_at = Timestamp::now();
        let Tally { rows, faults } = tally;
        let is_met = finish_by.map(|by| ended_at <= by && rows.unfinished == 0);
        Ok(Morning {
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

    fn count_documents(&self) -> Documents {
        let of = |standing| {
            let of = |d: &&super::gather::Tracked| d.unread.is_none() && d.standing == standing;
            self.documents.iter().filter(of).count() as u64
        };
        let known = &self.earlier.ledger.documents;
        let still = self.documents.iter().filter(|d| known.contains_key(&d.name)).count();
        Documents {
            all: self.documents.len() as u64,
            new: of(Standing::New),
            changed: of(Standing::Changed),
            same: of(Standing::Same),
            removed: (known.len() - still) as u64,
            unread: self.documents.iter().filter(|d| d.unread.is_some()).count() as u64,
        }
    }

    fn count_requests(&self) -> Requests {
        let asked = self.asks.asked();
        let repairs =
            asked.iter().filter(|k| self.asks.get(k).is_some_and(|a| a.repairs.is_some()));
        let parts: u64 = self.documents.iter().map(|d| d.parts.len() as u64).sum();
        let different: std::collections::HashSet<_> =
            self.documents.iter().flat_map(|d| &d.parts).collect();
        Requests {
            asked: asked.len() as u64,
            reused: self.asks.known().count() as u64,
            duplicates: parts - different.len() as u64,
            repairs: repairs.count() as u64,
        }
    }

    fn saved(&self, prices: &Prices) -> Saved {
        let mut usage = Usage::default();
        for state in self.asks.known() {
            match state {
                State::Answered { usage: Some(of), .. }
                | State::Repaired { usage: Some(of), .. }
                | State::Failed { usage: Some(of), .. } => usage += *of,
                _ => {}
            }
        }
        Saved { usage, cost: prices.cost(&self.recipe.model, usage, false) }
    }
}
