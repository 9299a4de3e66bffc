//! Waits for a moment more exactly than a timer can.
//!
//! Tokio's timers go by the millisecond, which is two requests at 2,000 a second. So the last bit
//! is spent polling: the task yields to all others, which send and read meanwhile, and looks again.

use std::time::Duration;

use tokio::time::Instant;

/// Time before the due moment at which a wait turns to polling: the timer's grain and rounding up.
const GRAIN: Duration = Duration::from_millis(2);

/// Longest yield in which no other task did anything, so that its time was the pacer's own.
const IDLE_TURN: Duration = Duration::from_micros(5);

/// Waits for due moments, and adds up the cost of the waiting itself.
#[derive(Debug, Default)]
pub(super) struct Pacer {
    /// Processor time spent polling the clock.
    pub(super) polling: Duration,
}

impl Pacer {
    /// Returns at `due` or as soon after it as other tasks let it.
    pub(super) async fn wait_until(&mut self, due: Instant) {
        let mut now = Instant::now();
        if due.saturating_duration_since(now) > GRAIN {
            tokio::time::sleep_until(due - GRAIN).await;
            now = Instant::now();
        }
        while now < due {
            tokio::task::yield_now().await;
            let turn = now.elapsed();
            if turn <= IDLE_TURN {
                self.polling += turn;
            }
            now += turn;
        }
    }
}
