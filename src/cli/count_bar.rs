//! Progress of a count, such as jobs enqueued: a bar on a terminal, periodic lines elsewhere.

use std::cell::Cell;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::Instant;

use super::bar::new_bar;
use super::output::say;
use super::rate::duration_text;

const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows a count and its total until dropped.
pub(super) struct CountBar {
    label: &'static str,
    total: Cell<u64>,
    began: Instant,
    last_line: Cell<Instant>,
    bar: Option<ProgressBar>,
}

impl CountBar {
    pub(super) fn start(label: &'static str, whole: u64) -> Self {
        let now = Instant::now();
        Self {
            label,
            total: Cell::new(whole),
            began: now,
            last_line: Cell::new(now),
            bar: new_bar(whole),
        }
    }

    /// Sets the count and its total, for a total not known from the start.
    #[cfg(feature = "documents")]
    pub(super) fn set_with_total(&self, count: u64, whole: u64) {
        self.total.set(whole);
        self.bar.iter().for_each(|bar| bar.set_length(whole));
        self.set(count);
    }

    pub(super) fn set(&self, count: u64) {
        let whole = self.total.get();
        let now = Instant::now();
        let seconds = (now - self.began).as_secs_f64();
        let per_second = count as f64 / seconds.max(1e-3);
        let left = duration_text(whole.saturating_sub(count) as f64 / per_second.max(1e-3));
        if let Some(bar) = &self.bar {
            bar.set_position(count);
            bar.set_message(format!("{} | {per_second:.0}/s | ETA {left}", self.label));
        } else if now - self.last_line.get() >= LINE_EVERY {
            self.last_line.set(now);
            let what = self.label;
            say(&format!("{what} {count}/{whole} | {per_second:.0}/s | ETA {left}"));
        }
    }
}

impl Drop for CountBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
