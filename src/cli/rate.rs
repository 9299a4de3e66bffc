//! Rates over the last minute or so, and durations for people.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Window of the rate from which the ETA is computed: the last minute or so.
const RATE_WINDOW: Duration = Duration::from_secs(60);

/// Formats seconds as a duration for people.
pub(super) fn duration_text(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match (s / 3600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

/// Jobs and tokens over the last [`RATE_WINDOW`].
#[derive(Default)]
pub(super) struct ProgressRate {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl ProgressRate {
    pub(super) fn add(&mut self, now: Instant, jobs: u64, tokens: u64) {
        self.samples.push_back((now, jobs, tokens));
        while self.samples.len() > 2 && now - self.samples[0].0 > RATE_WINDOW {
            self.samples.pop_front();
        }
    }

    /// Returns jobs a second and tokens a minute.
    pub(super) fn rates(&self) -> (f64, f64) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return (0.0, 0.0);
        };
        let seconds = (last.0 - first.0).as_secs_f64();
        if seconds <= 0.0 {
            return (0.0, 0.0);
        }
        ((last.1 - first.1) as f64 / seconds, (last.2 - first.2) as f64 / seconds * 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        assert_eq!(
            [duration_text(9.4), duration_text(61.0), duration_text(7_260.0)],
            ["9s", "1m01s", "2h01m"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_forgets_what_is_older_than_its_window() {
        let start = Instant::now();
        let mut rate = ProgressRate::default();
        rate.add(start, 0, 0);
        rate.add(start + Duration::from_secs(100), 1_000, 0);
        rate.add(start + Duration::from_secs(110), 1_050, 600);
        let (jobs_s, tokens_min) = rate.rates();
        assert!((jobs_s - 5.0).abs() < 1e-9 && (tokens_min - 3_600.0).abs() < 1e-9);
    }
}
