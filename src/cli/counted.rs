//! How far an input is, while it is enqueued: a bar on a terminal, a line now and then elsewhere.

use std::cell::Cell;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::Instant;

use super::progress::{bar, clock};
use super::say;

const LINE_EVERY: Duration = Duration::from_secs(10);

/// Shows a count on its way to its whole until dropped.
pub(super) struct Counted {
    what: &'static str,
    whole: Cell<u64>,
    began: Instant,
    told: Cell<Instant>,
    bar: Option<ProgressBar>,
}

impl Counted {
    pub(super) fn start(what: &'static str, whole: u64) -> Self {
        let now = Instant::now();
        Self { what, whole: Cell::new(whole), began: now, told: Cell::new(now), bar: bar(whole) }
    }

    /// The same where the whole is not known from the start.
    pub(super) fn set_of(&self, count: u64, whole: u64) {
        self.whole.set(whole);
        self.bar.iter().for_each(|bar| bar.set_length(whole));
        self.set(count);
    }

    pub(super) fn set(&self, count: u64) {
        let whole = self.whole.get();
        let now = Instant::now();
        let seconds = (now - self.began).as_secs_f64();
        let per_second = count as f64 / seconds.max(1e-3);
        let left = clock(whole.saturating_sub(count) as f64 / per_second.max(1e-3));
        if let Some(bar) = &self.bar {
            bar.set_position(count);
            bar.set_message(format!("{} | {per_second:.0}/s | ETA {left}", self.what));
        } else if now - self.told.get() >= LINE_EVERY {
            self.told.set(now);
            let what = self.what;
            say(&format!("{what} {count}/{whole} | {per_second:.0}/s | ETA {left}"));
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
