//! Rate limiter without bursts: so many cells a minute, never more than a moment's worth at once.
//!
//! The only file that knows `governor`. Its clock is a number that we set before every question, so
//! that decisions depend only on the `now` they are given. A `governor` limiter can't change its
//! rate: [`RatePacer::set_rate`] builds another one, empty, after taking out what has accrued.

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

type GovernorLimiter = RateLimiter<NotKeyed, InMemoryState, ManualClock, NoOpMiddleware<Nanos>>;

/// Rate limiter that starts empty, so that joining a running minute adds no burst to it.
pub struct RatePacer {
    limiter: GovernorLimiter,
    clock: ManualClock,
    origin: Instant,
    slack: Duration,
    per_minute: f64,
    cell: Duration,
    burst: u32,
    /// Cells taken from the limiter and not yet spent: a request larger than the burst saves up.
    accrued: u64,
}

/// Wait for cells that have not accrued yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccrualWait {
    /// Time to ask again: what accrues is kept for a short time only.
    pub retry_at: Instant,
    /// Time at which all of it will be there, if nobody else takes of it.
    pub expected: Instant,
}

impl RatePacer {
    /// Creates a pacer of `per_minute` cells; what accrues in `slack` may be caught up on at once
    /// after a late wake-up.
    pub fn new(per_minute: f64, slack: Duration, now: Instant) -> Self {
        let clock = ManualClock::default();
        let (limiter, cell, burst) = limiter(per_minute, slack, &clock);
        Self { limiter, clock, origin: now, slack, per_minute, cell, burst, accrued: 0 }
    }

    pub fn per_minute(&self) -> f64 {
        self.per_minute
    }

    /// Returns the cells accrued and not spent.
    pub fn accrued(&self) -> u64 {
        self.accrued
    }

    /// Changes the rate; what has accrued at the old one stays, and no burst comes with it.
    pub fn set_rate(&mut self, per_minute: f64, now: Instant) {
        self.clock.set(now.saturating_duration_since(self.origin));
        let mut piece = self.burst;
        while let Some(cells) = NonZeroU32::new(piece) {
            match self.limiter.check_n(cells) {
                Ok(Ok(())) => self.accrued += u64::from(piece),
                _ => piece /= 2,
            }
        }
        self.per_minute = per_minute;
        (self.limiter, self.cell, self.burst) = limiter(per_minute, self.slack, &self.clock);
    }

    /// Accrues `cells` for the caller, or says when they are there. What has accrued is kept.
    ///
    /// # Errors
    /// Returns the time to ask again, and the time to expect them by.
    pub fn accrue(&mut self, cells: u64, now: Instant) -> Result<(), AccrualWait> {
        if self.accrued >= cells {
            return Ok(());
        }
        self.clock.set(now.saturating_duration_since(self.origin));
        // Half of the burst at a time: what accrues while the caller is late is not lost.
        let most = self.burst.div_ceil(2);
        while self.accrued < cells {
            let missing = u32::try_from(cells - self.accrued).unwrap_or(u32::MAX);
            let piece = NonZeroU32::new(missing.min(most)).unwrap_or(NonZeroU32::MIN);
            match self.limiter.check_n(piece) {
                Ok(Ok(())) => self.accrued += u64::from(piece.get()),
                Ok(Err(not_until)) => {
                    let ask_at = self.origin + Duration::from(not_until.earliest_possible());
                    let after =
                        u32::try_from(cells - self.accrued).unwrap_or(u32::MAX) - piece.get();
                    return Err(AccrualWait {
                        retry_at: ask_at,
                        expected: ask_at + self.cell * after,
                    });
                }
                Err(_) => unreachable!("a piece is never larger than the burst"),
            }
        }
        Ok(())
    }

    /// Estimates the time until so many cells have accrued, if nobody else takes of them.
    pub fn time_until(&self, cells: u64) -> Duration {
        let missing = cells.saturating_sub(self.accrued);
        self.cell * u32::try_from(missing).unwrap_or(u32::MAX)
    }

    /// Gives back cells that were spent for nothing; they had accrued.
    pub fn give_back(&mut self, cells: u64) {
        self.accrued += cells;
    }

    /// Spends accrued cells.
    pub fn spend(&mut self, cells: u64) {
        self.accrued = self.accrued.saturating_sub(cells);
    }
}

fn limiter(
    per_minute: f64,
    slack: Duration,
    clock: &ManualClock,
) -> (GovernorLimiter, Duration, u32) {
    let cell_ns = (60e9 / per_minute.max(1e-3)).ceil().max(1.0);
    // Cells that accrue within the slack, rounded down: a burst is whole cells.
    let burst = (slack.as_nanos() as f64 / cell_ns).clamp(1.0, f64::from(u32::MAX)) as u32;
    let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
    let cell = Duration::from_nanos(cell_ns as u64);
    let quota =
        Quota::with_period(cell).expect("a cell takes at least a nanosecond").allow_burst(burst);
    let limiter = RateLimiter::direct_with_clock(quota, clock.clone());
    let drained = limiter.check_n(burst);
    debug_assert!(matches!(drained, Ok(Ok(()))), "a new limiter holds its whole burst");
    (limiter, cell, burst.get())
}

/// Clock in nanoseconds since the limiter began, as last set.
#[derive(Debug, Clone, Default)]
struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    fn set(&self, since_origin: Duration) {
        let ns = u64::try_from(since_origin.as_nanos()).unwrap_or(u64::MAX);
        self.0.store(ns, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
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
        pace: &mut RatePacer,
        cells: impl Fn(u64) -> u64,
        start: Instant,
        run: Duration,
    ) -> u64 {
        let (mut now, mut spent, mut turn) = (start, 0, 0);
        while now < start + run {
            match pace.accrue(cells(turn), now) {
                Ok(()) => {
                    pace.spend(cells(turn));
                    spent += cells(turn);
                    turn += 1;
                }
                Err(later) => now = later.retry_at.max(now + Duration::from_nanos(1)),
            }
        }
        spent
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_met_and_never_passed() {
        let start = Instant::now();
        let mut pace = RatePacer::new(60_000.0, SLACK, start);
        let spent = spend_for(&mut pace, |_| 100, start, Duration::from_secs(60));
        assert!((59_800..=60_000).contains(&spent), "{spent}");
    }

    #[tokio::test(start_paused = true)]
    async fn takers_larger_than_the_burst_save_up_and_small_ones_use_the_rest() {
        let start = Instant::now();
        let mut pace = RatePacer::new(60_000.0, SLACK, start);
        let mixed = |turn| [8_000, 50, 1_200][turn as usize % 3];
        let spent = spend_for(&mut pace, mixed, start, Duration::from_secs(600));
        assert!((590_000..=600_000).contains(&spent), "{spent}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_minute_gives_no_burst() {
        let start = Instant::now();
        let mut pace = RatePacer::new(60_000.0, SLACK, start);
        let later = start + Duration::from_secs(60);
        let mut at_once = 0;
        while pace.accrue(10, later).is_ok() {
            pace.spend(10);
            at_once += 10;
        }
        assert!(at_once <= 250, "{at_once}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_rate_keeps_what_accrued_and_brings_no_burst() {
        let start = Instant::now();
        let mut pace = RatePacer::new(60_000.0, SLACK, start);
        let (mut spent, mut now) = (0, start);
        for tenth in 1..=600_u32 {
            now = start + Duration::from_millis(100) * tenth;
            pace.set_rate(if tenth % 2 == 0 { 60_000.0 } else { 120_000.0 }, now);
            while pace.accrue(10, now).is_ok() {
                pace.spend(10);
                spent += 10;
            }
        }
        assert!((88_000..=90_000).contains(&spent), "the mean of both rates: {spent}");
        pace.set_rate(6e9, now);
        assert!(pace.accrue(1_000, now).is_err(), "a higher rate starts empty");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_taker_is_told_when_to_expect_its_cells() {
        let start = Instant::now();
        let mut pace = RatePacer::new(60_000.0, SLACK, start);
        let later = pace.accrue(8_000, start).unwrap_err();
        assert!(later.retry_at <= start + SLACK);
        assert_eq!(later.expected, start + Duration::from_secs(8));
    }
}
