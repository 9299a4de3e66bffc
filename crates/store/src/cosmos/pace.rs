//! How many writes may be in flight, and when: the writer's answer to 429s.
//!
//! The service has a budget of request units a second and refuses what is over it, at a price. So a
//! refusal stops all new writes until the time it names and halves the window; every window's worth
//! of successes opens it by one. [`Window`] decides, [`Pace`] waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Who may go now, and who waits for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Go,
    WaitUntil(Instant),
    WaitForRoom,
}

/// The window's arithmetic; knows no clock.
#[derive(Debug)]
struct Window {
    most: usize,
    limit: usize,
    in_flight: usize,
    successes: usize,
    paused_until: Option<Instant>,
}

impl Window {
    fn new(most: usize) -> Self {
        Self { most, limit: most, in_flight: 0, successes: 0, paused_until: None }
    }

    fn take(&mut self, now: Instant) -> Turn {
        match self.paused_until {
            Some(until) if now < until => return Turn::WaitUntil(until),
            _ => self.paused_until = None,
        }
        if self.in_flight >= self.limit {
            return Turn::WaitForRoom;
        }
        self.in_flight += 1;
        Turn::Go
    }

    fn succeeded(&mut self) {
        self.successes += 1;
        if self.successes >= self.limit {
            self.successes = 0;
            self.limit = (self.limit + 1).min(self.most);
        }
    }

    fn throttled(&mut self, now: Instant, pause: Duration) {
        // The refusals of one window arrive together: they say one thing, not many.
        if self.paused_until.is_none_or(|until| until <= now) {
            self.limit = (self.limit / 2).max(1);
            self.successes = 0;
        }
        self.paused_until = self.paused_until.max(Some(now + pause));
    }
}

/// The writes of one store, paced.
#[derive(Debug)]
pub(super) struct Pace {
    window: Mutex<Window>,
    room: Notify,
    throttles: AtomicU64,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        Self {
            window: Mutex::new(Window::new(most)),
            room: Notify::new(),
            throttles: AtomicU64::new(0),
        }
    }

    /// Waits for a place in the window; it is given back when the guard is dropped.
    pub(super) async fn turn(&self) -> Turned<'_> {
        loop {
            // Made before the look: whoever frees a place after it wakes this.
            let room = self.room.notified();
            let turn = self.window().take(Instant::now());
            match turn {
                Turn::Go => return Turned(self),
                Turn::WaitUntil(until) => sleep_until(until).await,
                Turn::WaitForRoom => room.await,
            }
        }
    }

    pub(super) fn succeeded(&self) {
        self.window().succeeded();
    }

    pub(super) fn throttled(&self, pause: Duration) {
        self.throttles.fetch_add(1, Ordering::Relaxed);
        self.window().throttled(Instant::now(), pause);
    }

    /// Writes that the service refused for want of request units.
    pub(super) fn throttles(&self) -> u64 {
        self.throttles.load(Ordering::Relaxed)
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the window.
#[derive(Debug)]
pub(super) struct Turned<'a>(&'a Pace);

impl Drop for Turned<'_> {
    fn drop(&mut self) {
        self.0.window().in_flight -= 1;
        // All who wait, not one: the one might be dropped or asleep, and the place lost.
        self.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn refusals_of_one_moment_halve_the_window_once() {
        let (mut window, now) = (Window::new(32), Instant::now());
        for _ in 0..20 {
            window.throttled(now, PAUSE);
        }
        assert_eq!(window.limit, 16);
        window.throttled(now + PAUSE, PAUSE);
        assert_eq!(window.limit, 8, "a refusal after the pause is news");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_before_the_time_the_service_named() {
        let (mut window, now) = (Window::new(4), Instant::now());
        window.throttled(now, PAUSE);
        assert_eq!(window.take(now), Turn::WaitUntil(now + PAUSE));
        assert_eq!(window.take(now + PAUSE), Turn::Go);
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_opens_again_but_never_beyond_its_setting() {
        let (mut window, now) = (Window::new(3), Instant::now());
        window.throttled(now, PAUSE);
        assert_eq!(window.limit, 1);
        for _ in 0..100 {
            window.succeeded();
        }
        assert_eq!(window.limit, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_given_back_goes_to_whoever_waits() {
        let pace = Pace::new(1);
        let first = pace.turn().await;
        let second = async { pace.turn().await };
        let free = async {
            tokio::task::yield_now().await;
            drop(first);
        };
        let (_second, ()) = tokio::join!(second, free);
    }
}
