//! Requests a minute, judged in slices of 1 or 10 s.
//!
//! Pure. A call takes its slot in the slice before its tokens are checked and does not get it back.
//! Neighbour: `quota` asks it first.

use std::time::Duration;

use super::quota_status::NEVER_RETRY_AFTER;
use super::spans::{span_times, whole_spans};

const MINUTE_MS: u128 = 60_000;

/// Slots of the current slice.
#[derive(Debug)]
pub struct RequestSlices {
    slice: Duration,
    index: u64,
    used: u64,
}

impl RequestSlices {
    pub fn new(slice: Duration) -> Self {
        Self { slice, index: 0, used: 0 }
    }

    pub fn advance(&mut self, now: Duration) {
        let index = whole_spans(now, self.slice);
        if index > self.index {
            (self.index, self.used) = (index, 0);
        }
    }

    pub fn is_full(&self, rpm: u64) -> bool {
        self.used >= self.allowance(rpm, self.index)
    }

    pub fn take_slot(&mut self) {
        self.used += 1;
    }

    /// Returns the time until the slice ends.
    pub fn until_end(&self, now: Duration) -> Duration {
        span_times(self.slice, self.index + 1).saturating_sub(now)
    }

    /// Returns the time until a slice begins that takes any request at all.
    pub fn until_next_free(&self, now: Duration, rpm: u64) -> Duration {
        if rpm == 0 {
            return NEVER_RETRY_AFTER;
        }
        // At less than one request per slice, some slices take none at all.
        let mut index = self.index + 1;
        while self.allowance(rpm, index) == 0 {
            index += 1;
        }
        span_times(self.slice, index).saturating_sub(now)
    }

    /// Returns the requests that slice number `index` may take: integers whose sum follows the
    /// rate, so that 90 RPM are 2, 1, 2, 1 … in slices of a second and not 2 each.
    fn allowance(&self, rpm: u64, index: u64) -> u64 {
        let until = |slices: u64| {
            let span_ms = self.slice.as_millis() * u128::from(slices);
            (u128::from(rpm) * span_ms).div_ceil(MINUTE_MS) as u64
        };
        until(index + 1) - until(index)
    }
}
