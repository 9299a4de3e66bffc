//! Progress display while jobs run: a bar on a terminal, periodic lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::say;
use domain::deployment::DeploymentSnapshot;
use domain::outcome::OutcomeStatus;
use telemetry::WorkerProgress;

/// Time between redraws of the bar.
const REDRAW_EVERY: Duration = Duration::from_millis(200);

/// Time between lines without a terminal; longer for a worker, which runs for days.
const LINE_EVERY: Duration = Duration::from_secs(10);
const WORKER_LINE_EVERY: Duration = Duration::from_secs(60);

/// Window of the rate from which the ETA is computed: the last minute or so.
const RATE_WINDOW: Duration = Duration::from_secs(60);

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Returns a writer for log lines that does not disturb the bar.
pub(super) fn stderr_beside_bar() -> impl Write {
    struct BarSafeStderr;
    impl Write for BarSafeStderr {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            BARS.suspend(|| io::stderr().write(bytes))
        }
        fn flush(&mut self) -> io::Result<()> {
            io::stderr().flush()
        }
    }
    BarSafeStderr
}

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

/// Returns a bar of this length, if there is a terminal to draw it on.
pub(super) fn new_bar(length: u64) -> Option<ProgressBar> {
    io::stderr().is_terminal().then(|| {
        let style = ProgressStyle::with_template("{bar:30.cyan/blue} {pos}/{len} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        BARS.add(ProgressBar::new(length).with_style(style))
    })
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

/// Characters of a refusal's words that a line has room for.
const SHOWN_WORDS: usize = 160;

/// Says what is waited for and how long, if no deployment answers.
fn waits_for(deployments: &[DeploymentSnapshot]) -> Option<String> {
    let mut left = deployments.iter().filter(|d| d.retired.is_none()).peekable();
    left.peek()?;
    let closed: Option<Vec<_>> = left
        .map(|d| {
            let why = d.last_refusal.as_deref().or(d.breaker_why.as_deref())?;
            Some((d.asked_ms.or(d.paused_ms).unwrap_or(0), d.name.as_str(), why))
        })
        .collect();
    let (ms, name, why) = closed?.into_iter().min_by_key(|(ms, ..)| *ms)?;
    let long = if ms == 0 {
        String::new()
    } else {
        format!(" for {}", duration_text(ms.div_ceil(1_000) as f64))
    };
    let words: String = why.chars().take(SHOWN_WORDS).collect();
    Some(format!(" | waits{long}, {name} says {words}"))
}

/// Formats seconds as a duration for people.
pub(super) fn duration_text(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// Jobs and tokens over the last [`RATE_WINDOW`].
#[derive(Default)]
struct ProgressRate {
    samples: std::collections::VecDeque<(Instant, u64, u64)>,
}

impl ProgressRate {
    fn add(&mut self, now: Instant, jobs: u64, tokens: u64) {
        self.samples.push_back((now, jobs, tokens));
        while self.samples.len() > 2 && now - self.samples[0].0 > RATE_WINDOW {
            self.samples.pop_front();
        }
    }

    /// Returns jobs a second and tokens a minute.
    fn rates(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return (0.0, 0.0);
        };
        let seconds = (last.0 - first.0).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        ((last.1 - first.1) as f64 / seconds, (last.2 - first.2) as f64 / seconds * 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        assert_eq!(
            [duration_text(9.4), duration_text(61.0), duration_text(7_260.0)],
            ["9s", "1m01s", "2h01m"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_forgets_what_is_older_than_its_window() {
        let start = Instant::now();
        let mut rate = ProgressRate::default();
        rate.add(start, 0, 0);
        rate.add(start + Duration::from_secs(100), 1_000, 0);
        rate.add(start + Duration::from_secs(110), 1_050, 600);
        let (jobs_s, tokens_min) = rate.rates();
        assert!((jobs_s - 5.0).abs() < 1e-9 && (tokens_min - 3_600.0).abs() < 1e-9);
    }
}
