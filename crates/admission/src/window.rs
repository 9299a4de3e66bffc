//! Counting window of the service, read from its headers: when it ends, and what is left in it.
//!
//! Azure's counter of booked tokens restarts at zero each minute, at a phase that it never states.
//! Every response brings what remained when its request was booked, and in how many whole seconds
//! the counter restarts. A response thus bounds the window's end from both sides, and all responses
//! of a window bound it together. Answers come out of order and late, so each is placed by what we
//! had booked in total when its request left. Until three answers agree on an end, nothing is
//! believed: other services count differently.

use std::time::Duration;

use tokio::time::Instant;

use super::booking::Booking;
use super::charge_factor::ChargeSample;
use domain::headers::RateHeaders;

/// Answers that must agree on a window's end.
const AGREEING: u32 = 3;

/// Longest time from sending a request to its booking: connections take a moment.
const LATEST_BOOKING: Duration = Duration::from_secs(2);

/// Resolution of `x-ratelimit-reset-tokens`: whole seconds, rounded up.
const GRAIN: Duration = Duration::from_secs(1);

/// Length of a window where none was learnt (Azure docs: "quota", tokens a minute).
pub const MINUTE: Duration = Duration::from_secs(60);

/// Samples kept of a window; enough for an estimate, whatever the rate.
const SAMPLES: usize = 512;

/// Knowledge of the service's windows.
#[derive(Default)]
pub struct CountingWindows {
    observed: Option<ObservedWindow>,
    /// Distance of two ends.
    period: Option<Duration>,
    /// Number of the window after the observed one, and our total when it began.
    expected_window: (u64, f64),
    samples: Vec<ChargeSample>,
}

/// Latest window that answers reported.
struct ObservedWindow {
    /// Bounds of its end.
    ends: (Instant, Instant),
    agreeing: u32,
    first: BookingMark,
    last: BookingMark,
}

/// Tokens left in the window when our bookings came to a total.
#[derive(Clone, Copy)]
struct BookingMark {
    left: f64,
    total: f64,
    at: Instant,
}

/// Window that is open now.
#[derive(Debug, Clone, Copy)]
pub struct WindowView {
    /// Tokens that can still be booked in it, by the service's measure.
    pub left: f64,
    /// Bounds of its end.
    pub ends: (Instant, Instant),
    /// Capacity of a whole one, in minutes of the quota.
    pub minutes: f64,
    /// Answers report it; otherwise it is what we expect of the next one.
    pub is_observed: bool,
}

/// News in an answer's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderNews {
    Nothing,
    /// They report the current window.
    CurrentWindow,
    /// They are the first of a new window; [`CountingWindows::samples`] still has the old one's.
    NewWindow,
}

impl CountingWindows {
    /// Learns from an answer's headers. The booking's `total` is what had been booked with it.
    pub fn observe_headers(
        &mut self,
        booking: &Booking,
        rate_limits: &RateHeaders,
        now: Instant,
    ) -> HeaderNews {
        let (Some(left), Some(reset)) = (rate_limits.remaining_tokens, rate_limits.reset_tokens)
        else {
            return HeaderNews::Nothing;
        };
        let latency = now.saturating_duration_since(booking.at).min(LATEST_BOOKING);
        let earliest = booking.at + reset.saturating_sub(GRAIN);
        let ends = (earliest, booking.at + reset + latency);
        let mark = BookingMark { left: left as f64, total: booking.total, at: booking.at };
        match &mut self.observed {
            Some(heard) if ends.0 <= heard.ends.1 && ends.1 >= heard.ends.0 => {
                heard.agree(ends, mark);
                HeaderNews::CurrentWindow
            }
            Some(heard) if ends.1 < heard.ends.0 => HeaderNews::Nothing,
            _ => {
                self.start_window(ends, mark);
                HeaderNews::NewWindow
            }
        }
    }

    /// Learns from a 429 that names the time at which there is room again, to the millisecond.
    pub fn observe_throttled(&mut self, booking: &Booking, until: Instant, now: Instant) {
        let mark =
            BookingMark { left: 0.0, total: booking.total - booking.charge as f64, at: booking.at };
        let ends = (until - now.saturating_duration_since(booking.at), until);
        match &mut self.observed {
            Some(heard) if ends.0 <= heard.ends.1 && ends.1 >= heard.ends.0 => {
                heard.agree(ends, mark);
            }
            _ => self.start_window(ends, mark),
        }
        if let Some(heard) = &mut self.observed {
            heard.agreeing = heard.agreeing.max(AGREEING);
        }
    }

    /// Refunds a throttled booking.
    pub fn refund(&mut self, booking: &Booking) {
        let charge = booking.charge as f64;
        if let Some(heard) = &mut self.observed {
            for mark in [&mut heard.first, &mut heard.last] {
                if mark.total >= booking.total {
                    mark.total -= charge;
                }
            }
        }
        self.expected_window.1 = (self.expected_window.1 - charge).max(0.0);
    }

    fn start_window(&mut self, ends: (Instant, Instant), mark: BookingMark) {
        let expected = self.learn_period(ends);
        let agreeing = if expected.is_some() { AGREEING } else { 1 };
        let ends = expected.unwrap_or(ends);
        self.observed = Some(ObservedWindow { ends, agreeing, first: mark, last: mark });
        self.expected_window = (0, 0.0);
    }

    /// Learns the windows' length from a new end. An end where one was expected needs no further
    /// confirmation: it is then as well known as the one before.
    fn learn_period(&mut self, ends: (Instant, Instant)) -> Option<(Instant, Instant)> {
        let before = self.observed.as_ref().filter(|before| before.agreeing >= AGREEING)?.ends;
        let middle = |ends: (Instant, Instant)| ends.0 + (ends.1 - ends.0) / 2;
        let distance = middle(ends).saturating_duration_since(middle(before));
        let seconds = Duration::from_secs((distance.as_secs_f64() + 0.5) as u64).max(GRAIN);
        let known = self.period;
        let period = known.map_or(seconds, |known| known.min(seconds));
        self.period = Some(period);
        let turns = (distance.as_secs_f64() / period.as_secs_f64()).round() as u32;
        let at = (before.0 + period * turns, before.1 + period * turns);
        let both = (at.0.max(ends.0), at.1.min(ends.1));
        known.filter(|_| both.0 <= both.1).map(|_| both)
    }

    /// Returns the open window, if the answers can be believed. `total` is what we have booked so
    /// far, `rates` how fast the window empties besides.
    pub fn view(
        &mut self,
        now: Instant,
        total: f64,
        limit: f64,
        rates: DrainRates,
    ) -> Option<WindowView> {
        let heard = self.observed.as_ref().filter(|heard| heard.agreeing >= AGREEING)?;
        let period = self.period.unwrap_or(MINUTE);
        let minutes = period.as_secs_f64() / MINUTE.as_secs_f64();
        let spent = |total_then: f64, since: Instant| {
            let external = now.saturating_duration_since(since).as_secs_f64() * rates.external_rate;
            rates.factor * (total - total_then) + external
        };
        if now < heard.ends.1 {
            let left = (heard.last.left - spent(heard.last.total, heard.last.at)).max(0.0);
            return Some(WindowView { left, ends: heard.ends, minutes, is_observed: true });
        }
        let over = now.saturating_duration_since(heard.ends.1);
        let turns = (over.as_nanos() / period.as_nanos().max(1)) as u64 + 1;
        let shift = |at: Instant| at + period * u32::try_from(turns).unwrap_or(u32::MAX);
        let ends = (shift(heard.ends.0), shift(heard.ends.1));
        if self.expected_window.0 != turns || self.expected_window.1 > total {
            self.expected_window = (turns, total);
        }
        let left = (limit * minutes - spent(self.expected_window.1, ends.1 - period)).max(0.0);
        Some(WindowView { left, ends, minutes, is_observed: false })
    }

    /// Keeps an answer of the observed window for the estimate of the factor.
    pub fn add_sample(&mut self, booking: &Booking, rate_limits: &RateHeaders) {
        if let Some(left) = rate_limits.remaining_tokens.filter(|_| self.samples.len() < SAMPLES) {
            self.samples.push(ChargeSample { left: left as f64, charge: booking.charge as f64 });
        }
    }

    /// Returns the answers of one window so far.
    pub fn samples(&mut self) -> &mut Vec<ChargeSample> {
        &mut self.samples
    }

    /// Returns what remained less from the window's first answer to its last, the part that we
    /// booked, and the seconds between.
    pub fn consumption(&self) -> Option<(f64, f64, f64)> {
        let heard = self.observed.as_ref()?;
        let seconds = heard.last.at.saturating_duration_since(heard.first.at).as_secs_f64();
        let booked = heard.last.total - heard.first.total;
        Some((heard.first.left - heard.last.left, booked, seconds))
    }

    /// Returns the length of a window.
    pub fn period(&self) -> Duration {
        self.period.unwrap_or(MINUTE)
    }

    /// Forgets the observed window: the next answers report it anew.
    pub fn forget(&mut self) {
        self.observed = None;
        self.expected_window = (0, 0.0);
        self.samples.clear();
    }
}

/// Rates at which a window empties beside our known bookings.
#[derive(Debug, Clone, Copy)]
pub struct DrainRates {
    /// The service's charge for one token of ours.
    pub factor: f64,
    /// Tokens a second that others book.
    pub external_rate: f64,
}

impl ObservedWindow {
    fn agree(&mut self, ends: (Instant, Instant), mark: BookingMark) {
        self.agreeing += 1;
        let narrowed = (self.ends.0.max(ends.0), self.ends.1.min(ends.1));
        if narrowed.0 <= narrowed.1 {
            self.ends = narrowed;
        }
        if mark.total >= self.last.total {
            self.last = mark;
        }
        if mark.total < self.first.total {
            self.first = mark;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DeploymentIndex;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const RATES: DrainRates = DrainRates { factor: 1.0, external_rate: 0.0 };

    fn booking(at: Instant, charge: u64, total: f64) -> Booking {
        Booking {
            deployment: DeploymentIndex(0),
            charge,
            at,
            total,
            is_probe: false,
            tag: Default::default(),
        }
    }

    fn told(remaining: u64, reset: Duration) -> RateHeaders {
        let reset = Duration::from_secs(reset.as_secs_f64().ceil() as u64);
        RateHeaders {
            remaining_tokens: Some(remaining),
            reset_tokens: Some(reset),
            ..RateHeaders::default()
        }
    }

    /// A minute whose end is 40.3 s after the start, told by answers that take a second.
    fn minute(windows: &mut CountingWindows, start: Instant, end: Duration, answers: u32) {
        for n in 0..answers {
            let at = start + end - Duration::from_millis(20_000 - 170 * u64::from(n));
            let left = 100_000 - 1_000 * u64::from(n);
            let booked = booking(at, 1_000, 1_000.0 * f64::from(n + 1));
            windows.observe_headers(&booked, &told(left, start + end - at), at + SECOND / 20);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_bound_the_end_of_the_window_from_both_sides() {
        let start = Instant::now();
        let end = Duration::from_millis(40_300);
        let mut windows = CountingWindows::default();
        minute(&mut windows, start, end, 60);
        let now = start + Duration::from_secs(32);
        let view = windows.view(now, 60_000.0, 600_000.0, RATES).unwrap();
        assert!(view.ends.0 <= start + end && start + end <= view.ends.1, "{view:?}");
        assert!(view.ends.1 - view.ends.0 < Duration::from_millis(250), "{view:?}");
        assert!((view.left - 41_000.0).abs() < 1.0, "{view:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_late_changes_nothing() {
        let start = Instant::now();
        let end = Duration::from_millis(40_300);
        let mut windows = CountingWindows::default();
        minute(&mut windows, start, end, 10);
        let now = start + Duration::from_secs(25);
        let left = |w: &mut CountingWindows| w.view(now, 12_000.0, 600_000.0, RATES).unwrap().left;
        let before = left(&mut windows);
        let at = start + Duration::from_secs(20);
        windows.observe_headers(&booking(at, 500, 500.0), &told(100_500, start + end - at), now);
        assert!((left(&mut windows) - before).abs() < 1.0);
        assert!((before - 89_000.0).abs() < 1.0, "what was booked after the last answer is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_end_a_whole_window_is_expected_and_its_length_is_learnt() {
        let start = Instant::now();
        let mut windows = CountingWindows::default();
        let end = |n: u64| Duration::from_millis(40_300 + 30_000 * n);
        minute(&mut windows, start, end(0), 10);
        let view = windows.view(start + end(0) + SECOND, 10_000.0, 60_000.0, RATES).unwrap();
        assert!(!view.is_observed && (view.left - 60_000.0).abs() < 1.0, "{view:?}");
        minute(&mut windows, start, end(1), 10);
        assert_eq!(windows.period(), Duration::from_secs(30));
        let view = windows.view(start + end(1) + SECOND, 10_000.0, 60_000.0, RATES).unwrap();
        assert!((view.left - 30_000.0).abs() < 1.0, "{view:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn resets_that_agree_on_no_end_are_not_believed() {
        let start = Instant::now();
        let mut windows = CountingWindows::default();
        for n in 0..50 {
            // A bucket that refills all the time: it is always full again in a moment.
            let at = start + 3 * SECOND * n;
            windows.observe_headers(
                &booking(at, 10, f64::from(n)),
                &told(90_000, SECOND),
                at + SECOND / 10,
            );
        }
        assert!(windows.view(start + 160 * SECOND, 50.0, 90_000.0, RATES).is_none());
    }
}
