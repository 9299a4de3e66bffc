//! `status --watch`: a screen redrawn in place on a terminal, one line per refresh elsewhere.

use std::io::{IsTerminal, stdout};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::{batch_text, snapshot_text};
use crate::app::status::StatusSnapshot;
use crate::cli::exit::{CommandError, ExitStatus};
use crate::cli::output::{print, say};
use domain::job::BatchId;
use domain::prices::Prices;
use report::live::{LiveStatus, LiveWatcher};
use store::{BatchState, Store};

/// Cursor to the upper left corner; clear rest of line; clear below (ECMA-48: CUP, EL, ED).
/// Overwriting does not flicker, as clearing first would.
const HOME: &str = "\x1b[H";
const END_LINE: &str = "\x1b[K\n";
const END: &str = "\x1b[J";

/// Batches that are watched, and how.
pub(super) struct StatusWatch<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) only: Option<&'a BatchId>,
    pub(super) prices: &'a Prices,
    pub(super) interval: Duration,
    pub(super) json: bool,
}

impl StatusWatch<'_> {
    /// Prints the status again and again, until all batches are done or somebody interrupts.
    pub(super) async fn run(&self) -> Result<ExitStatus, CommandError> {
        let mut tick = interval(self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watcher = LiveWatcher::default();
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            let read = async {
                tick.tick().await;
                StatusSnapshot::read(self.store, self.only, self.prices, Some(&mut watcher)).await
            };
            let snapshot = tokio::select! {
                biased;
                _ = &mut interrupted => return Ok(ExitStatus::Interrupted),
                snapshot = read => snapshot,
            };
            let snapshot = match snapshot {
                Ok(snapshot) => snapshot,
                // A watch that runs all night reports the outage and goes on.
                Err(error) if error.is_transient() => {
                    say(&format!("{}: {error}", time_of_day()));
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            self.show(&snapshot)?;
            if snapshot.batches.iter().all(is_over) {
                say(&closing_text(&snapshot.batches));
                return Ok(ExitStatus::AllDone);
            }
        }
    }

    fn show(&self, snapshot: &StatusSnapshot) -> Result<(), CommandError> {
        if self.json {
            let mut status = snapshot_text::json(snapshot, None, self.prices);
            status["at"] = Timestamp::now().to_string().into();
            return print(&status.to_string());
        }
        if stdout().is_terminal() {
            let lines = snapshot_text::lines(snapshot, None, self.prices).join(END_LINE);
            let head = format!("{} · every {} s", time_of_day(), self.interval.as_secs());
            return print(&format!("{HOME}{head}{END_LINE}{lines}{END_LINE}{END}"));
        }
        let shown = snapshot.batches.iter().filter(|live| !is_over(live) || self.only.is_some());
        let lines: Vec<_> =
            shown.map(|live| batch_text::batch_in_short(live, self.prices)).collect();
        if lines.is_empty() {
            return Ok(());
        }
        print(&format!("{} {}", time_of_day(), lines.join(" | ")))
    }
}

fn is_over(live: &LiveStatus) -> bool {
    let state = live.status.state;
    match state {
        BatchState::Done => true,
        // Calls in flight, and jobs that were dropped, are still being recorded.
        BatchState::Cancelled => live.status.pending == 0,
        BatchState::Enqueuing | BatchState::Running | BatchState::Paused => false,
    }
}

fn closing_text(batches: &[LiveStatus]) -> String {
    match batches {
        [] => "there are no batches".to_owned(),
        [one] => format!("batch {} is done", one.status.batch),
        all => format!("all {} batches are done", all.len()),
    }
}

/// Formats the time now, in UTC.
fn time_of_day() -> String {
    Timestamp::now().strftime("%H:%M:%S").to_string()
}
