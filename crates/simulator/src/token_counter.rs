//! Counter of one deployment's tokens: fixed windows, a sliding window or a bucket.
//!
//! Pure: time is passed in as the span since the simulator started, and never goes back. It knows
//! no requests and no headers; `quota` decides with it.

use std::collections::VecDeque;
use std::time::Duration;

use super::meter::MeterKind;

/// Counter of tokens against a limit; without a limit it only counts.
#[derive(Debug)]
pub struct TokenCounter {
    kind: MeterKind,
    window: Duration,
    /// Tokens of one window, or that a bucket gains in one.
    limit: Option<u64>,
    state: CounterState,
}

#[derive(Debug)]
enum CounterState {
    /// The open window, if one is open, and the tokens counted in it.
    Window { start: Option<Duration>, used: u64 },
    /// Bookings of the last window's length, the oldest first, and their sum.
    Sliding { bookings: VecDeque<(Duration, u64)>, used: u64 },
    /// Tokens in the bucket at a time.
    Bucket { level: f64, at: Duration },
}

impl TokenCounter {
    pub fn new(kind: MeterKind, window: Duration, limit: Option<u64>) -> Self {
        let mut counter =
            Self { kind, window, limit, state: CounterState::Window { start: None, used: 0 } };
        counter.state = match kind {
            MeterKind::ClockWindow => CounterState::Window { start: Some(Duration::ZERO), used: 0 },
            MeterKind::FirstRequestWindow => counter.state,
            MeterKind::SlidingWindow => {
                CounterState::Sliding { bookings: VecDeque::new(), used: 0 }
            }
            MeterKind::TokenBucket { .. } => {
                CounterState::Bucket { level: f64::INFINITY, at: Duration::ZERO }
            }
        };
        counter
    }

    /// Changes the limit; what was counted stays.
    pub fn set_limit(&mut self, limit: Option<u64>) {
        self.limit = limit;
    }

    /// Returns the end of the open fixed window.
    pub fn window_end(&self) -> Option<Duration> {
        match self.state {
            CounterState::Window { start, .. } => start.map(|start| start + self.window),
            CounterState::Sliding { .. } | CounterState::Bucket { .. } => None,
        }
    }

    /// Lets time pass until `now`: windows end, bookings expire, the bucket fills.
    pub fn advance(&mut self, now: Duration) {
        let window = self.window;
        let (gain, holds) = (self.gain(), self.holds());
        match &mut self.state {
            CounterState::Window { start, used } => {
                if let Some(begin) = *start
                    && now >= begin + window
                {
                    *used = 0;
                    *start = (self.kind == MeterKind::ClockWindow).then(|| {
                        let whole = now.as_nanos() / window.as_nanos();
                        Duration::from_nanos_u128(window.as_nanos() * whole)
                    });
                }
            }
            CounterState::Sliding { bookings, used } => {
                while let Some((at, tokens)) = bookings.front().copied()
                    && at + window <= now
                {
                    bookings.pop_front();
                    *used -= tokens;
                }
            }
            CounterState::Bucket { level, at } => {
                let gained = now.saturating_sub(*at).as_secs_f64() * gain;
                (*level, *at) = ((*level + gained).min(holds), now.max(*at));
            }
        }
    }

    /// Opens a window with a request that arrives, where none is open.
    pub fn touch(&mut self, now: Duration) {
        if let CounterState::Window { start, .. } = &mut self.state {
            start.get_or_insert(now);
        }
    }

    /// Counts tokens.
    pub fn book(&mut self, now: Duration, tokens: u64) {
        self.touch(now);
        match &mut self.state {
            CounterState::Window { used, .. } => *used += tokens,
            CounterState::Sliding { bookings, used } => {
                bookings.push_back((now, tokens));
                *used += tokens;
            }
            CounterState::Bucket { level, .. } => *level -= tokens as f64,
        }
    }

    /// Takes back tokens that were counted at a time, where they still count; returns how many.
    pub fn give_back(&mut self, booked_at: Duration, tokens: u64) -> u64 {
        let holds = self.holds();
        match &mut self.state {
            CounterState::Window { start, used } => {
                let back = if start.is_some_and(|start| booked_at >= start) { tokens } else { 0 };
                let back = back.min(*used);
                *used -= back;
                back
            }
            CounterState::Sliding { bookings, used } => {
                let booking = bookings.iter_mut().find(|(at, _)| *at == booked_at);
                let back = booking.map_or(0, |(_, booked)| {
                    let back = tokens.min(*booked);
                    *booked -= back;
                    back
                });
                *used -= back;
                back
            }
            CounterState::Bucket { level, .. } => {
                *level = (*level + tokens as f64).min(holds);
                tokens
            }
        }
    }

    /// Returns the tokens that can be counted now; `None` without a limit.
    pub fn room(&self) -> Option<u64> {
        let limit = self.limit?;
        Some(match &self.state {
            CounterState::Window { used, .. } | CounterState::Sliding { used, .. } => {
                limit.saturating_sub(*used)
            }
            CounterState::Bucket { level, .. } => level.min(self.holds()).max(0.0) as u64,
        })
    }

    /// Returns the most that one request may ever count; `None` without a limit.
    pub fn largest(&self) -> Option<u64> {
        self.limit.map(|limit| match self.kind {
            MeterKind::TokenBucket { .. } => self.holds() as u64,
            _ => limit,
        })
    }

    /// Returns the time from `now` until there is room for so many tokens, if nobody books.
    pub fn until_room(&self, now: Duration, tokens: u64) -> Duration {
        let Some(limit) = self.limit else { return Duration::ZERO };
        match &self.state {
            CounterState::Window { .. } => {
                self.window_end().map_or(Duration::ZERO, |end| end.saturating_sub(now))
            }
            CounterState::Sliding { bookings, used } => {
                let mut used = *used;
                for (at, booked) in bookings {
                    if used + tokens <= limit {
                        break;
                    }
                    used -= booked;
                    if used + tokens <= limit {
                        return (*at + self.window).saturating_sub(now);
                    }
                }
                Duration::ZERO
            }
            CounterState::Bucket { level, .. } => {
                let missing = (tokens as f64 - level.min(self.holds())).max(0.0);
                Duration::from_secs_f64(missing / self.gain().max(1e-9))
            }
        }
    }

    /// Returns the time until all of the limit is free, if nobody books: the reset that headers
    /// report.
    pub fn until_reset(&self, now: Duration) -> Duration {
        match &self.state {
            CounterState::Window { .. } => {
                self.window_end().map_or(self.window, |end| end.saturating_sub(now))
            }
            CounterState::Sliding { bookings, .. } => bookings
                .back()
                .map_or(Duration::ZERO, |(at, _)| (*at + self.window).saturating_sub(now)),
            CounterState::Bucket { .. } => self.until_room(now, self.holds() as u64),
        }
    }

    /// Returns the tokens a second that a bucket gains.
    fn gain(&self) -> f64 {
        self.limit.map_or(f64::MAX, |limit| limit as f64 / self.window.as_secs_f64())
    }

    /// Returns the tokens that a bucket holds.
    fn holds(&self) -> f64 {
        let span = match self.kind {
            MeterKind::TokenBucket { holds: Some(holds) } => holds,
            _ => self.window,
        };
        self.limit
            .map_or(f64::MAX, |limit| limit as f64 * span.as_secs_f64() / self.window.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn counter(kind: MeterKind) -> TokenCounter {
        TokenCounter::new(kind, MINUTE, Some(600))
    }

    #[test]
    fn a_window_by_the_clock_ends_with_the_minute_whenever_it_was_used() {
        let mut counter = counter(MeterKind::ClockWindow);
        counter.advance(at(70));
        counter.book(at(70), 600);
        assert_eq!((counter.room(), counter.until_room(at(70), 1)), (Some(0), at(50)));
        counter.advance(at(120));
        assert_eq!(counter.room(), Some(600));
    }

    #[test]
    fn a_window_from_the_first_request_begins_with_it() {
        let mut counter = counter(MeterKind::FirstRequestWindow);
        counter.advance(at(70));
        assert_eq!(counter.window_end(), None);
        counter.book(at(70), 600);
        assert_eq!(counter.until_room(at(100), 1), at(30));
        counter.advance(at(130));
        assert_eq!((counter.room(), counter.window_end()), (Some(600), None));
        counter.book(at(150), 1);
        assert_eq!(counter.window_end(), Some(at(210)));
    }

    #[test]
    fn a_sliding_window_gives_back_each_booking_after_its_minute() {
        let mut counter = counter(MeterKind::SlidingWindow);
        counter.book(at(10), 400);
        counter.book(at(30), 200);
        assert_eq!(counter.until_room(at(31), 300), at(39));
        assert_eq!(counter.until_room(at(31), 500), at(59));
        counter.advance(at(70));
        assert_eq!(counter.room(), Some(400));
        assert_eq!(counter.give_back(at(30), 150), 150);
        assert_eq!((counter.room(), counter.give_back(at(10), 5)), (Some(550), 0));
    }

    #[test]
    fn a_bucket_fills_all_the_time_and_no_further_than_it_holds() {
        let mut counter = counter(MeterKind::TokenBucket { holds: Some(at(10)) });
        counter.advance(at(500));
        assert_eq!((counter.room(), counter.largest()), (Some(100), Some(100)));
        counter.book(at(500), 100);
        assert_eq!(counter.until_room(at(500), 50), at(5));
        counter.advance(at(503));
        assert_eq!(counter.room(), Some(30));
        counter.advance(at(600));
        assert_eq!(counter.room(), Some(100));
    }

    #[test]
    fn a_correction_counts_only_while_its_window_is_open() {
        let mut counter = counter(MeterKind::ClockWindow);
        counter.book(at(50), 500);
        assert_eq!(counter.give_back(at(50), 200), 200);
        assert_eq!(counter.room(), Some(300));
        counter.advance(at(61));
        counter.book(at(61), 100);
        assert_eq!(counter.give_back(at(50), 100), 0);
        assert_eq!(counter.room(), Some(500));
    }
}
