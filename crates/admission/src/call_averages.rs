//! Average call: how long it lasts, and what the service books for it.
//!
//! Pure. Only answered calls count: a 429 is quick and books nothing, and would make a deployment
//! look faster than it is. With the calls that one worker may have in flight it says what a worker
//! could do by itself, whatever quota it has to share (`report::replicas`).

use std::time::Duration;

/// Calls that the mean looks back on. Answers differ by half of their length and more: the mean of
/// so many is off by some 5 %, which is less than what another worker is worth.
const LOOK_BACK: f64 = 64.0;

/// Mean over the recent calls; over all of them while there are few.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallAverages {
    calls: f64,
    seconds: f64,
    tokens: f64,
}

impl CallAverages {
    /// Records an answered call: its duration and the tokens booked for it.
    pub fn add(&mut self, lasted: Duration, charge: u64) {
        self.calls = (self.calls + 1.0).min(LOOK_BACK);
        self.seconds += (lasted.as_secs_f64() - self.seconds) / self.calls;
        self.tokens += (charge as f64 - self.tokens) / self.calls;
    }

    /// Returns the mean seconds and booked tokens of a call; `None` before the first answer.
    pub fn per_call(&self) -> Option<(f64, f64)> {
        (self.calls > 0.0).then_some((self.seconds, self.tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_calls_count_alike_and_old_ones_are_forgotten() {
        let mut usual = CallAverages::default();
        assert_eq!(usual.per_call(), None, "nothing is told of nothing");
        usual.add(Duration::from_secs(1), 100);
        usual.add(Duration::from_secs(3), 300);
        assert_eq!(usual.per_call(), Some((2.0, 200.0)));
        (0..1_000).for_each(|_| usual.add(Duration::from_millis(500), 50));
        let (seconds, tokens) = usual.per_call().unwrap();
        assert!((seconds - 0.5).abs() < 1e-3 && (tokens - 50.0).abs() < 0.1, "{seconds} {tokens}");
    }
}
