//! `status --watch`: a screen redrawn in place on a terminal, one line per refresh elsewhere.

use std::io::{IsTerminal, stdout};

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::{StatusArgs, StatusSnapshot, text};
use crate::cli::{CommandError, ExitStatus, print, say};
use domain::prices::Prices;
use report::live::{LiveStatus, LiveWatcher};
use store::{BatchState, Store, StoreError};

/// Cursor to the upper left corner; clear rest of line; clear below (ECMA-48: CUP, EL, ED).
/// Overwriting does not flicker, as clearing first would.
const HOME: &str = "\x1b[H";
const END_LINE: &str = "\x1b[K\n";
const END: &str = "\x1b[J";

pub(super) async fn watch(
    args: &StatusArgs,
    store: &dyn Store,
    prices: &Prices,
) -> Result<ExitStatus, CommandError> {
    let mut tick = interval(args.interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = LiveWatcher::default();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let on_terminal = !args.json && stdout().is_terminal();
    loop {
        tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(ExitStatus::Interrupted),
            _ = tick.tick() => {}
        }
        let seen = tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(ExitStatus::Interrupted),
            seen = StatusSnapshot::read(store, args.batch.as_ref(), prices, Some(&mut watch)) => seen,
        };
        let seen = match seen {
            Ok(seen) => seen,
            // A watch that runs all night reports the outage and goes on.
            Err(error @ StoreError::Unavailable(_)) => {
                say(&format!("{}: {error}", time_of_day()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if args.json {
            let mut seen = seen.json(None, prices);
            seen["at"] = Timestamp::now().to_string().into();
            print(&seen.to_string())?;
        } else if on_terminal {
            let lines = seen.lines(prices, None).join(END_LINE);
            let head = format!("{} · every {} s", time_of_day(), args.interval);
            print(&format!("{HOME}{head}{END_LINE}{lines}{END_LINE}{END}"))?;
        } else {
            let open = seen.batches.iter().filter(|live| !is_over(live) || args.batch.is_some());
            let batches: Vec<_> = open.map(|live| text::batch_in_short(live, prices)).collect();
            if !batches.is_empty() {
                print(&format!("{} {}", time_of_day(), batches.join(" | ")))?;
            }
        }
        if seen.batches.iter().all(is_over) {
            say(&closing_text(&seen.batches));
            return Ok(ExitStatus::AllDone);
        }
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
