//! One rate, spent smoothly: so many cells a minute, never more than a blink's worth at once.
//!
//! The only file that knows `governor`. Its clock is a number that we set before every question, so
//! that decisions depend on the `now` they are given and on nothing else.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::time::Instant;

/// A rate limiter that starts empty, so that joining a running minute never adds a burst to it.
pub struct Pace {
    limiter: RateLimiter<NotKeyed, InMemoryState, SetClock, NoOpMiddleware<Nanos>>,
    clock: SetClock,
    origin: Instant,
    burst: u32,
    /// Cells taken from the limiter and not yet spent: a taker larger than the burst saves up.
    saved: u64,
}

impl Pace {
    /// `per_minute` cells, of which what accrues in `slack` may be caught up on at once after a
    /// late wake-up.
    pub fn new(per_minute: f64, slack: Duration, now: Instant) -> Self {
        let cell_ns = (60e9 / per_minute.max(1e-3)).ceil().max(1.0);
        // Cells that accrue within the slack; truncation is meant, a burst is whole cells.
        let burst = (slack.as_nanos() as f64 / cell_ns).clamp(1.0, f64::from(u32::MAX)) as u32;
        let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(Duration::from_nanos(cell_ns as u64))
            .expect("a cell takes at least a nanosecond")
            .allow_burst(burst);
        let clock = SetClock::default();
        let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
        let drained = limiter.check_n(burst);
        debug_assert!(matches!(drained, Ok(Ok(()))), "a new limiter holds its whole burst");
        Self { limiter, clock, origin: now, burst: burst.get(), saved: 0 }
    }

    /// Goes on at another rate. What was saved up is kept, and nothing accrues in retrospect.
    pub fn change(&mut self, per_minute: f64, slack: Duration, now: Instant) {
        *self = Self { saved: self.saved, ..Self::new(per_minute, slack, now) };
    }

    /// Spends `cells`, or says when to ask again. What is taken meanwhile is kept for the asker.
    ///
    /// # Errors
    /// The time from which the next piece can be had.
    pub fn spend(&mut self, cells: u64, now: Instant) -> Result<(), Instant> {
        self.clock.set(now.saturating_duration_since(self.origin));
        while self.saved < cells {
            let missing = u32::try_from(cells - self.saved).unwrap_or(u32::MAX);
            let piece = NonZeroU32::new(missing.min(self.burst)).unwrap_or(NonZeroU32::MIN);
            match self.limiter.check_n(piece) {
                Ok(Ok(())) => self.saved += u64::from(piece.get()),
                Ok(Err(not_until)) => {
                    let at = Duration::from(not_until.earliest_possible());
                    return Err(self.origin + at);
                }
                Err(_) => unreachable!("a piece is never larger than the burst"),
            }
        }
        self.saved -= cells;
        Ok(())
    }

    /// Takes cells back that were spent for something that then did not happen.
    pub fn put_back(&mut self, cells: u64) {
        self.saved += cells;
    }
}

/// Nanoseconds since the limiter began, as last set.
#[derive(Debug, Clone, Default)]
struct SetClock(Arc<AtomicU64>);

impl SetClock {
    fn set(&self, since_origin: Duration) {
        let ns = u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(ns, Ordering::Relaxed);
    }
}

impl Clock for SetClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.load(Ordering::Relaxed).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLACK: Duration = Duration::from_millis(250);

    /// Spends `cells` again and again for `run`, waking when told; returns what was spent.
    fn spend_for(
        pace: &mut Pace,
        cells: impl Fn(u64) -> u64,
        start: Instant,
        run: Duration,
    ) -> u64 {
        let (mut now, mut spent, mut turn) = (start, 0, 0);
        while now < start + run {
            match pace.spend(cells(turn), now) {
                Ok(()) => {
                    spent += cells(turn);
                    turn += 1;
                }
                Err(at) => now = at.max(now + Duration::from_nanos(1)),
            }
        }
        spent
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_met_and_never_passed() {
        let start = Instant::now();
        let mut pace = Pace::new(60_000.0, SLACK, start);
        let spent = spend_for(&mut pace, |_| 100, start, Duration::from_secs(60));
        assert!((59_800..=60_000).contains(&spent), "{spent}");
    }

    #[tokio::test(start_paused = true)]
    async fn takers_larger_than_the_burst_save_up_and_small_ones_use_the_rest() {
        let start = Instant::now();
        let mut pace = Pace::new(60_000.0, SLACK, start);
        let mixed = |turn| [8_000, 50, 1_200][turn as usize % 3];
        let spent = spend_for(&mut pace, mixed, start, Duration::from_secs(600));
        assert!((590_000..=600_000).contains(&spent), "{spent}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_that_changes_gives_neither_burst_nor_gap() {
        let start = Instant::now();
        let mut pace = Pace::new(60_000.0, SLACK, start);
        let (mut spent, second) = (0, Duration::from_secs(1));
        for n in 0..60 {
            spent += spend_for(&mut pace, |_| 100, start + n * second, second);
            let rate = if n % 2 == 0 { 30_000.0 } else { 60_000.0 };
            pace.change(rate, SLACK, start + (n + 1) * second);
        }
        assert!((44_000..=45_000).contains(&spent), "{spent}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_minute_gives_no_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(60_000.0, SLACK, start);
        let later = start + Duration::from_secs(60);
        let mut at_once = 0;
        while pace.spend(10, later).is_ok() {
            at_once += 10;
        }
        assert!(at_once <= 250, "{at_once}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_put_back_is_spent_first() {
        let start = Instant::now();
        let mut pace = Pace::new(60.0, SLACK, start);
        pace.put_back(5);
        assert!(pace.spend(5, start).is_ok());
        assert!(pace.spend(1, start).is_err());
    }
}
