//! Write pacing: the number of writes in flight, adapted to the service's 429s.
//!
//! The service has a budget of request units a second and refuses what is over it, at a price. So a
//! 429 stops all new writes until the time it names and halves the window; every window's worth of
//! successes opens it by one. [`WriteWindow`] decides, [`WritePacer`] waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use domain::mutex::lock;

/// Decision on one write: go now, or what to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WriteTurn {
    Go,
    WaitUntil(Instant),
    WaitForRoom,
}

/// Arithmetic of the window; knows no clock.
#[derive(Debug)]
struct WriteWindow {
    max: usize,
    limit: usize,
    in_flight: usize,
    successes: usize,
    paused_until: Option<Instant>,
}

impl WriteWindow {
    fn new(max: usize) -> Self {
        Self { max, limit: max, in_flight: 0, successes: 0, paused_until: None }
    }

    fn try_acquire(&mut self, now: Instant) -> WriteTurn {
        match self.paused_until {
            Some(until) if now < until => return WriteTurn::WaitUntil(until),
            _ => self.paused_until = None,
        }
        if self.in_flight >= self.limit {
            return WriteTurn::WaitForRoom;
        }
        self.in_flight += 1;
        WriteTurn::Go
    }

    fn succeeded(&mut self) {
        self.successes += 1;
        if self.successes >= self.limit {
            self.successes = 0;
            self.limit = (self.limit + 1).min(self.max);
        }
    }

    fn throttled(&mut self, now: Instant, pause: Duration) {
        // The 429s of one window arrive together: they count as one.
        if self.paused_until.is_none_or(|until| until <= now) {
            self.limit = (self.limit / 2).max(1);
            self.successes = 0;
        }
        self.paused_until = self.paused_until.max(Some(now + pause));
    }
}

/// Pacer of one store's writes.
#[derive(Debug)]
pub(super) struct WritePacer {
    window: Mutex<WriteWindow>,
    room: Notify,
    throttled_writes: AtomicU64,
}

impl WritePacer {
    pub(super) fn new(most: usize) -> Self {
        Self {
            window: Mutex::new(WriteWindow::new(most)),
            room: Notify::new(),
            throttled_writes: AtomicU64::new(0),
        }
    }

    /// Waits for a place in the window; dropping the permit frees it.
    pub(super) async fn acquire(&self) -> WritePermit<'_> {
        loop {
            // Created before the check: a place that is freed after it wakes this.
            let room = self.room.notified();
            let turn = self.window().try_acquire(Instant::now());
            match turn {
                WriteTurn::Go => return WritePermit(self),
                WriteTurn::WaitUntil(until) => sleep_until(until).await,
                WriteTurn::WaitForRoom => room.await,
            }
        }
    }

    pub(super) fn succeeded(&self) {
        self.window().succeeded();
    }

    pub(super) fn throttled(&self, pause: Duration) {
        self.throttled_writes.fetch_add(1, Ordering::Relaxed);
        self.window().throttled(Instant::now(), pause);
    }

    /// Writes that the service throttled for lack of request units.
    pub(super) fn throttled_writes(&self) -> u64 {
        self.throttled_writes.load(Ordering::Relaxed)
    }

    fn window(&self) -> MutexGuard<'_, WriteWindow> {
        lock(&self.window)
    }
}

/// A place in the window.
#[derive(Debug)]
pub(super) struct WritePermit<'a>(&'a WritePacer);

impl Drop for WritePermit<'_> {
    fn drop(&mut self) {
        self.0.window().in_flight -= 1;
        // Wakes all waiters, not one: the one might be dropped or asleep, and the place lost.
        self.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn refusals_of_one_moment_halve_the_window_once() {
        let (mut window, now) = (WriteWindow::new(32), Instant::now());
        for _ in 0..20 {
            window.throttled(now, PAUSE);
        }
        assert_eq!(window.limit, 16);
        window.throttled(now + PAUSE, PAUSE);
        assert_eq!(window.limit, 8, "a refusal after the pause is news");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_before_the_time_the_service_named() {
        let (mut window, now) = (WriteWindow::new(4), Instant::now());
        window.throttled(now, PAUSE);
        assert_eq!(window.try_acquire(now), WriteTurn::WaitUntil(now + PAUSE));
        assert_eq!(window.try_acquire(now + PAUSE), WriteTurn::Go);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_opens_again_but_never_beyond_its_setting() {
        let (mut window, now) = (WriteWindow::new(3), Instant::now());
        window.throttled(now, PAUSE);
        assert_eq!(window.limit, 1);
        for _ in 0..100 {
            window.succeeded();
        }
        assert_eq!(window.limit, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_back_goes_to_whoever_waits() {
        let pace = WritePacer::new(1);
        let first = pace.acquire().await;
        let second = async { pace.acquire().await };
        let free = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (_second, ()) = tokio::join!(second, free);
    }
}
