//! What came of a scene: what was used of each service, and what was refused.

use std::time::Duration;

/// What came of a scene.
#[derive(Debug, Default)]
pub struct Report {
    pub services: Vec<Used>,
    pub succeeded: u64,
    /// Calls throttled (429).
    pub refused: u64,
    /// Calls refused for want of room on a flex tier.
    pub no_room: u64,
    /// Jobs that were offered and are neither done nor anywhere.
    pub lost: i64,
    /// When the last job was done.
    pub ended: Duration,
    /// Most calls in flight.
    pub most_in_flight: usize,
}

/// What was used of one service.
#[derive(Debug, Clone)]
pub struct Used {
    /// The part of the quota that our calls booked, by whole window.
    pub windows: Vec<f64>,
    /// Tokens booked in them, by the service's measure.
    pub tokens: Vec<u64>,
    /// When each of them was seen first.
    pub seen: Vec<Duration>,
}

impl Used {
    /// The mean over whole windows, from one of them on.
    pub fn from(&self, first: usize) -> f64 {
        let windows = &self.windows[first..];
        windows.iter().sum::<f64>() / windows.len() as f64
    }

    /// The part of the quota used by time, from the first call of a whole window to that of the
    /// last: windows that begin late count as what they are.
    pub fn by_time(&self, first: usize, tpm: u64) -> f64 {
        let last = self.seen.len() - 1;
        let minutes = (self.seen[last] - self.seen[first]).as_secs_f64() / 60.0;
        self.tokens[first..last].iter().sum::<u64>() as f64 / (tpm as f64 * minutes)
    }
}

impl Report {
    /// Refusals by success.
    pub fn refusals(&self) -> f64 {
        self.refused as f64 / self.succeeded as f64
    }
}
