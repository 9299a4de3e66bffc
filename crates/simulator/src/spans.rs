//! Spans of time as counts: windows since the start, quota within a span.

use std::time::Duration;

const MINUTE_MS: u128 = 60_000;

/// Returns the share of a per-minute rate that falls into `span`.
pub(super) fn per_span(per_minute: u64, span: Duration) -> u64 {
    (u128::from(per_minute) * span.as_millis() / MINUTE_MS) as u64
}

pub(super) fn whole_spans(now: Duration, span: Duration) -> u64 {
    (now.as_nanos() / span.as_nanos()) as u64
}

pub(super) fn span_times(span: Duration, count: u64) -> Duration {
    Duration::from_nanos_u128(span.as_nanos() * u128::from(count))
}
