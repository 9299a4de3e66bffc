//! Summary of a run, for people and for programs.

use std::path::Path;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::answers_text;
use super::exit::{CommandError, ExitStatus};
use super::output::{print, say};
use super::rate::duration_text;
use crate::app::local_run::{LocalRun, LocalRunEnd};
use domain::job::BatchId;
use domain::outcome::OutcomeStatus;
use report::results::{ResultCounts, ResultPaths};
use store::BatchTotals;
use telemetry::WorkerProgress;

/// Result of a run; the totals are the batch's, over all its runs.
#[derive(Debug, Serialize)]
pub(super) struct RunSummary<'a> {
    batch: &'a BatchId,
    jobs: u64,
    #[serde(flatten)]
    totals: &'a BatchTotals,
    skipped_lines: u64,
    #[serde(flatten)]
    run: ThisRun,
    results: &'a Path,
    errors: &'a Path,
    written: ResultCounts,
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
    fn new(progress: &WorkerProgress, seconds: f64) -> Self {
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

impl<'a> RunSummary<'a> {
    pub(super) fn new(
        run: &'a LocalRun,
        end: &'a LocalRunEnd,
        paths: &'a ResultPaths,
        written: ResultCounts,
    ) -> Self {
        Self {
            batch: &run.batch,
            jobs: run.input.report.jobs,
            totals: &end.totals,
            skipped_lines: run.input.report.faults,
            run: ThisRun::new(&run.progress, end.seconds),
            results: &paths.out,
            errors: &paths.errors,
            written,
        }
    }

    /// Prints the summary; returns the exit status.
    pub(super) fn tell(&self, json: bool, quiet: bool) -> Result<ExitStatus, CommandError> {
        if json {
            print(&serde_json::to_string(self)?)?;
        }
        if !quiet {
            self.say();
        }
        let all_succeeded = self.totals.of(OutcomeStatus::Succeeded) == self.totals.ended();
        Ok(ExitStatus::of_jobs(all_succeeded && self.skipped_lines == 0))
    }

    fn say(&self) {
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
        for line in answers_text::lines(self.batch, self.totals.finishes, usage) {
            say(&line);
        }
        if self.skipped_lines > 0 {
            say(&format!("skipped: {} lines that are not valid jobs", self.skipped_lines));
        }
        let simulated = if self.batch.is_simulated() { ", simulated" } else { "" };
        let answers = self.written.results;
        say(&format!("answers: {} ({answers} lines{simulated})", self.results.display()));
        let errors = self.written.errors + self.skipped_lines;
        say(&format!("errors:  {} ({errors} lines)", self.errors.display()));
    }
}
