//! `status --watch`: a picture that is drawn over on a terminal, a line a look anywhere else.

use std::io::{IsTerminal, stdout};

use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::{Args, Seen, text};
use crate::cli::{Exit, Failure, print, say};
use domain::prices::Prices;
use report::live::{Live, Watch};
use store::{BatchState, Store, StoreError};

/// To the upper left corner; nothing more on the line; nothing more below (ECMA-48: CUP, EL, ED).
/// What is drawn over does not flicker, as what is cleared first would.
const HOME: &str = "\x1b[H";
const END_LINE: &str = "\x1b[K\n";
const END: &str = "\x1b[J";

pub(super) async fn watch(
    args: &Args,
    store: &dyn Store,
    prices: &Prices,
) -> Result<Exit, Failure> {
    let mut tick = interval(args.interval());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let on_terminal = !args.json && stdout().is_terminal();
    loop {
        tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(Exit::Interrupted),
            _ = tick.tick() => {}
        }
        let seen = tokio::select! {
            biased;
            _ = &mut interrupted => return Ok(Exit::Interrupted),
            seen = Seen::now(store, args.batch.as_ref(), prices, Some(&mut watch)) => seen,
        };
        let seen = match seen {
            Ok(seen) => seen,
            // Whoever watches through a night wants to be told, and to go on.
            Err(error @ StoreError::Unavailable(_)) => {
                say(&format!("{}: {error}", time()));
                continue;
            }
            Err(error) => return Err(Failure::unreachable(error)),
        };
        if args.json {
            let mut seen = seen.json(None, prices);
            seen["at"] = Timestamp::now().to_string().into();
            print(&seen.to_string());
        } else if on_terminal {
            let lines = seen.lines(prices, None).join(END_LINE);
            let head = format!("{} · every {} s", time(), args.interval);
            print(&format!("{HOME}{head}{END_LINE}{lines}{END_LINE}{END}"));
        } else {
            let open = seen.batches.iter().filter(|live| !is_over(live) || args.batch.is_some());
            let batches: Vec<_> = open.map(|live| text::batch_in_short(live, prices)).collect();
            if !batches.is_empty() {
                print(&format!("{} {}", time(), batches.join(" | ")));
            }
        }
        if seen.batches.iter().all(is_over) {
            say(&the_end(&seen.batches));
            return Ok(Exit::AllDone);
        }
    }
}

fn is_over(live: &Live) -> bool {
    let state = live.standing.state;
    match state {
        BatchState::Done => true,
        // Calls in flight are recorded yet, and jobs that were dropped are.
        BatchState::Cancelled => live.standing.pending == 0,
        BatchState::Enqueuing | BatchState::Running | BatchState::Paused => false,
    }
}

fn the_end(batches: &[Live]) -> String {
    match batches {
        [] => "there are no batches".to_owned(),
        [one] => format!("batch {} is done", one.standing.batch),
        all => format!("all {} batches are done", all.len()),
    }
}

/// Now, in UTC.
fn time() -> String {
    Timestamp::now().strftime("%H:%M:%S").to_string()
}
