//! Progress display while jobs run: a bar on a terminal, periodic lines elsewhere.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar};

use super::bar::new_bar;
use super::output::say;
use super::rate::{ProgressRate, duration_text};
use super::waits_text::waits_for;
use domain::outcome::OutcomeStatus;
use telemetry::WorkerProgress;

/// Time between redraws of the bar.
const REDRAW_EVERY: Duration = Duration::from_millis(200);

/// Time between lines without a terminal; longer for a worker, which runs for days.
const LINE_EVERY: Duration = Duration::from_secs(10);
const WORKER_LINE_EVERY: Duration = Duration::from_secs(60);

/// Known size of a batch, unlike that of a queue that others fill.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchSize {
    pub(super) jobs: u64,
    /// Number of these that ended in earlier runs.
    pub(super) ended_before: u64,
}

/// Shows the progress of a batch, or of a worker, until dropped.
pub(super) struct ProgressDisplay {
    task: tokio::task::JoinHandle<()>,
    bar: Option<ProgressBar>,
}

impl ProgressDisplay {
    pub(super) fn start(
        progress: Arc<WorkerProgress>,
        whole: Option<BatchSize>,
        tpm: Option<u64>,
    ) -> Self {
        let bar = whole.and_then(|whole| new_bar(whole.jobs));
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let mut rate = ProgressRate::default();
            let every = match (&shown, whole) {
                (Some(_), _) => REDRAW_EVERY,
                (None, Some(_)) => LINE_EVERY,
                (None, None) => WORKER_LINE_EVERY,
            };
            let mut tick = tokio::time::interval(every);
            tick.tick().await;
            loop {
                let now = tick.tick().await;
                rate.add(now, progress.ended(), progress.tokens());
                let ended = whole.map_or(0, |whole| whole.ended_before) + progress.ended();
                let left = whole.map(|whole| whole.jobs.saturating_sub(ended));
                let line = progress_line(&progress, &rate, left, tpm);
                match (&shown, whole) {
                    (Some(bar), _) => {
                        bar.set_position(ended);
                        bar.set_message(line);
                    }
                    (None, Some(whole)) => say(&format!("{ended}/{} {line}", whole.jobs)),
                    (None, None) => say(&format!("{ended} ended, {line}")),
                }
            }
        });
        Self { task, bar }
    }
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn progress_line(
    p: &WorkerProgress,
    rate: &ProgressRate,
    left: Option<u64>,
    tpm: Option<u64>,
) -> String {
    let (jobs_s, tokens_min) = rate.rates();
    let quota = tpm.map_or_else(String::new, |tpm| format!("/{}", HumanCount(tpm)));
    let eta = left.map_or_else(String::new, |left| {
        let eta = if jobs_s > 0.0 { duration_text(left as f64 / jobs_s) } else { "?".into() };
        format!(" | ETA {eta}")
    });
    let waits = waits_for(&p.deployments.borrow()).unwrap_or_default();
    format!(
        "failed {} dead {} | {jobs_s:.1} jobs/s {}{quota} tokens/min | 429s {} transient errors {}{eta}{waits}",
        p.of(OutcomeStatus::Failed),
        p.of(OutcomeStatus::Dead),
        HumanCount(tokens_min as u64),
        p.throttled.load(std::sync::atomic::Ordering::Relaxed),
        p.transient_errors.load(std::sync::atomic::Ordering::Relaxed),
    )
}
