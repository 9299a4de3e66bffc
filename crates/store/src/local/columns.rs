//! Columns of an outcome by name, and the reading of a row in their order.
//!
//! SQL names every column that it reads or writes, so that a migration may add one anywhere.

use rusqlite::Row;
use rusqlite::types::{FromSql, ValueRef};

use domain::outcome::{JobFailure, TokenUsage};
use state::sqlite::parsed;

/// Columns of `outcomes` in the order in which [`super::record`] writes and [`super::outcomes`]
/// reads them.
macro_rules! outcome_columns {
    () => {
        "batch_id, custom_id, position, digest, ending, status_code, request_id, error_code, \
         error_message, prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, \
         unreported, attempts, deployment, model, latency_ms, finished_at, metadata, body, \
         service_tier, throttled, deadline, finish, flaw"
    };
}
pub(super) use outcome_columns;

/// Columns that `outcomes` and `withdrawn` share: what was paid, and for what.
macro_rules! cost_columns {
    () => {
        "prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, unreported, attempts, \
         deployment, model, latency_ms, finished_at, metadata, service_tier, throttled"
    };
}
pub(super) use cost_columns;

/// Reads a row's columns one after the other, in the order of the SELECT.
pub(super) struct ColumnReader<'r> {
    row: &'r Row<'r>,
    next: usize,
}

impl<'r> ColumnReader<'r> {
    pub(super) fn new(row: &'r Row<'r>) -> Self {
        Self { row, next: 0 }
    }

    pub(super) fn get<T: FromSql>(&mut self) -> rusqlite::Result<T> {
        self.next += 1;
        self.row.get(self.next - 1)
    }

    /// Reads a text that is a value of one of our types.
    pub(super) fn parse<T>(
        &mut self,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> rusqlite::Result<T> {
        self.next += 1;
        parsed(self.row, self.next - 1, parse)
    }

    /// Does the same where the column may be NULL.
    pub(super) fn parse_optional<T>(
        &mut self,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> rusqlite::Result<Option<T>> {
        if self.row.get_ref(self.next)? == ValueRef::Null {
            self.next += 1;
            return Ok(None);
        }
        self.parse(parse).map(Some)
    }

    /// Reads the four token columns and `unreported`.
    pub(super) fn usage(&mut self) -> rusqlite::Result<TokenUsage> {
        Ok(TokenUsage {
            prompt: self.get()?,
            cached: self.get()?,
            completion: self.get()?,
            reasoning: self.get()?,
            unreported: self.get()?,
        })
    }

    /// Reads `error_code` and `error_message`.
    pub(super) fn failure(&mut self) -> rusqlite::Result<Option<JobFailure>> {
        let (code, message): (Option<_>, Option<_>) = (self.get()?, self.get()?);
        Ok(code.zip(message).map(|(code, message)| JobFailure { code, message }))
    }
}
