//! Summary of a run, for people and for programs.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::progress::duration_text;
use super::{CommandError, say};
use domain::job::BatchId;
use report::results::ResultCounts;
use store::{BatchTotals, Store, StoreCharges};
use telemetry::WorkerProgress;

/// Result of a run; the totals are the batch's, over all its runs.
#[derive(Debug, Serialize)]
pub(super) struct RunSummary<'a> {
    pub(super) batch: &'a BatchId,
    pub(super) jobs: u64,
    #[serde(flatten)]
    pub(super) totals: &'a BatchTotals,
    pub(super) skipped_lines: u64,
    #[serde(flatten)]
    pub(super) run: ThisRun,
    pub(super) results: &'a Path,
    pub(super) errors: &'a Path,
    pub(super) written: ResultCounts,
}

/// Part of the totals that this run did.
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
    pub(super) fn new(progress: &WorkerProgress, seconds: f64) -> Self {
        let per_second = |n: u64| n as f64 / seconds.max(1e-3);
        Self {
            jobs: progress.ended(),
            throttled: progress.throttled.load(Ordering::Relaxed),
            faults: progress.transient_errors.load(Ordering::Relaxed),
            seconds,
            jobs_per_second: per_second(progress.ended()),
            tokens_per_minute: per_second(progress.tokens()) * 60.0,
        }
    }
}

impl RunSummary<'_> {
    pub(super) fn say(&self) {
        let usage = self.totals.usage;
        let endings: Vec<_> =
            self.totals.endings.iter().map(|(ending, n)| format!("{n} {ending}")).collect();
        let done = if self.run.jobs == 0 { "nothing left to do" } else { "done" };
        say(&format!(
            "{done}: {} in {} ({:.1} jobs/s, {:.0} tokens/min)",
            endings.join(", "),
            duration_text(self.run.seconds),
            self.run.jobs_per_second,
            self.run.tokens_per_minute
        ));
        say(&format!(
            "tokens: {} prompt ({} cached), {} completion ({} reasoning); \
             {} calls, {} transient errors, {} throttled (429)",
            usage.prompt,
            usage.cached,
            usage.completion,
            usage.reasoning,
            self.totals.attempts,
            self.run.faults,
            self.run.throttled
        ));
        if self.skipped_lines > 0 {
            say(&format!("skipped: {} lines that are not valid jobs", self.skipped_lines));
        }
        say(&format!("answers: {} ({} lines)", self.results.display(), self.written.results));
        let errors = self.written.errors + self.skipped_lines;
        say(&format!("errors:  {} ({errors} lines)", self.errors.display()));
    }
}

/// Prints why the batch is paused, and how to resume it.
pub(super) async fn say_paused(store: &dyn Store, id: &BatchId) -> Result<(), CommandError> {
    let batch = store.batch(id).await?;
    let budget = store.budget(id).await?;
    let why = batch.and_then(|batch| batch.reason).unwrap_or_default();
    let flag = budget.and_then(|budget| budget.raise_flag(&why)).map(|flag| format!(" {flag}"));
    let flag = flag.unwrap_or_default();
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    say(&format!("batch {id} is paused{why}: go on with `promptmill resume {id}{flag}`"));
    Ok(())
}

/// Prints the request units that a store billed by use charged for this many jobs.
pub(super) fn say_request_units(expense: &StoreCharges, jobs: u64) {
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
