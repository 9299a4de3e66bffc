//! What a run came to, for people and for programs.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::progress::clock;
use super::{Failure, say};
use domain::job::BatchId;
use report::results::Written;
use store::{Expense, Store, Totals};
use telemetry::Progress;

/// The totals are the batch's, over all its runs.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    pub(super) batch: &'a BatchId,
    pub(super) jobs: u64,
    #[serde(flatten)]
    pub(super) totals: &'a Totals,
    pub(super) skipped_lines: u64,
    #[serde(flatten)]
    pub(super) run: ThisRun,
    pub(super) results: &'a Path,
    pub(super) errors: &'a Path,
    pub(super) written: Written,
}

/// What this one run did of it.
#[derive(Debug, Serialize)]
pub(super) struct ThisRun {
    /// Jobs that ended in this run.
    #[serde(rename = "ended_now")]
    jobs: u64,
    throttled: u64,
    faults: u64,
    seconds: f64,
    jobs_per_second: f64,
    tokens_per_minute: f64,
}

impl ThisRun {
    pub(super) fn new(progress: &Progress, seconds: f64) -> Self {
        let per_second = |n: u64| n as f64 / seconds.max(1e-3);
        Self {
            jobs: progress.ended(),
            throttled: progress.throttled.load(Ordering::Relaxed),
            faults: progress.faults.load(Ordering::Relaxed),
            seconds,
            jobs_per_second: per_second(progress.ended()),
            tokens_per_minute: per_second(progress.tokens()) * 60.0,
        }
    }
}

impl Summary<'_> {
    pub(super) fn say(&self) {
        let usage = self.totals.usage;
        let endings: Vec<_> =
            self.totals.endings.iter().map(|(ending, n)| format!("{n} {ending}")).collect();
        let done = if self.run.jobs == 0 { "nothing left to do" } else { "done" };
        say(&format!(
            "{done}: {} in {} ({:.1} jobs/s, {:.0} tokens/min)",
            endings.join(", "),
            clock(self.run.seconds),
            self.run.jobs_per_second,
            self.run.tokens_per_minute
        ));
        say(&format!(
            "tokens: {} prompt ({} cached), {} completion ({} reasoning); \
             {} calls, {} passing faults, {} refused for quota (429)",
            usage.prompt,
            usage.cached,
            usage.completion,
            usage.reasoning,
            self.totals.attempts,
            self.run.faults,
            self.run.throttled
        ));
        if self.skipped_lines > 0 {
            say(&format!("skipped: {} lines that are no jobs", self.skipped_lines));
        }
        say(&format!("answers: {} ({} lines)", self.results.display(), self.written.results));
        let errors = self.written.errors + self.skipped_lines;
        say(&format!("errors:  {} ({errors} lines)", self.errors.display()));
    }
}

/// Why nothing more is done, and how to go on.
pub(super) async fn say_paused(store: &dyn Store, id: &BatchId) -> Result<(), Failure> {
    let batch = store.batch(id).await.map_err(Failure::unreachable)?;
    let budget = store.budget(id).await.map_err(Failure::unreachable)?;
    let why = batch.and_then(|batch| batch.reason).unwrap_or_default();
    let flag = budget.and_then(|budget| budget.raise(&why)).map(|flag| format!(" {flag}"));
    let flag = flag.unwrap_or_default();
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    say(&format!("batch {id} is paused{why}: go on with `promptmill resume {id}{flag}`"));
    Ok(())
}

/// What a store that is billed by use charged, over this many jobs.
pub(super) fn say_expense(expense: &Expense, jobs: u64) {
    let by: Vec<_> =
        expense.by_operation.iter().map(|(what, n)| format!("{what} {n:.0}")).collect();
    let each = match jobs {
        0 => String::new(),
        jobs => format!("{:.1} RU per job; ", expense.request_units / jobs as f64),
    };
    say(&format!(
        "store: {each}{:.0} RU in all ({}), {} writes throttled",
        expense.request_units,
        by.join(", "),
        expense.throttled
    ));
}
