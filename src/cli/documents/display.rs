//! What a night shows while it runs.

use std::cell::RefCell;

use super::text;
use crate::app::night::NightEvent;
use crate::cli::count_bar::CountBar;
use crate::cli::output::say;

/// Shows events as they come; counts as a bar, or as lines where there is no terminal.
pub(super) struct NightDisplay {
    is_strict: bool,
    bar: RefCell<Option<(NightCount, CountBar)>>,
}

/// Counts that have a bar, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NightCount {
    Documents,
    Answers,
}

impl NightDisplay {
    pub(super) fn new(is_strict: bool) -> Self {
        Self { is_strict, bar: RefCell::default() }
    }

    pub(super) fn show(&self, event: NightEvent<'_>) {
        match event {
            NightEvent::Collected { documents, of } => {
                self.count(NightCount::Documents, documents as u64, of as u64);
            }
            NightEvent::Answered { requests, of } => self.count(NightCount::Answers, requests, of),
            event => {
                self.bar.take();
                self.say(event);
            }
        }
    }

    fn count(&self, what: NightCount, count: u64, of: u64) {
        let mut bar = self.bar.borrow_mut();
        if bar.as_ref().is_none_or(|(shown, _)| *shown != what) {
            // The bar before is cleared first.
            drop(bar.take());
            let label = match what {
                NightCount::Documents => "documents read",
                NightCount::Answers => "answered",
            };
            *bar = Some((what, CountBar::start(label, 0)));
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_with_total(count, of);
        }
    }

    fn say(&self, event: NightEvent<'_>) {
        match event {
            NightEvent::Begun { batch, is_resumed } => {
                let resumed = if is_resumed { ", which is open: it is resumed" } else { "" };
                say(&format!("night {batch}{resumed}"));
            }
            NightEvent::Replaced { batch } => {
                say(&format!("the night {batch} was never finished; this one replaces it"));
            }
            NightEvent::NotForecast => {
                say("no deployment is configured here, so completion in time can't be forecast");
            }
            NightEvent::Forecast { forecast, seconds_left, fits } => {
                text::say_fit(forecast, seconds_left, fits, self.is_strict);
            }
            NightEvent::Collected { .. } | NightEvent::Answered { .. } => {}
        }
    }
}
