//! Latency between pipeline stages, to see how much load a worker can bear.

use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

use domain::mutex::lock;

/// Histogram of the time that jobs took for one stage.
#[derive(Debug)]
pub struct StageLatency(Mutex<Histogram<u64>>);

impl Default for StageLatency {
    fn default() -> Self {
        Self(Mutex::new(Histogram::new(3).expect("three digits are allowed")))
    }
}

impl StageLatency {
    pub fn add(&self, spans: impl IntoIterator<Item = Duration>) {
        let mut histogram = lock(&self.0);
        for span in spans {
            // It grows with the longest time, so no value is refused.
            let _ = histogram.record(u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// Returns all times so far, in microseconds.
    pub fn histogram(&self) -> Histogram<u64> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_kept_from_microseconds_to_days() {
        let laps = StageLatency::default();
        laps.add([Duration::from_micros(7), Duration::from_secs(172_800)]);
        let histogram = laps.histogram();
        assert_eq!((histogram.len(), histogram.min()), (2, 7));
        assert!(histogram.max() >= 172_800_000_000, "{}", histogram.max());
    }
}
