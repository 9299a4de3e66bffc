//! Metric instruments, with the units and the buckets of the conventions.

use opentelemetry::metrics::{Counter, Histogram, Meter};

/// Seconds of a model call (semantic conventions for generative AI).
const CALL_SECONDS: [f64; 14] =
    [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Tokens of a call (same conventions).
const TOKENS: [f64; 14] = [
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// Seconds of a queue's operation (semantic conventions for messaging).
const QUEUE_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Seconds from a job's hand-out to its settlement: a call and its wait for quota.
const PROCESS_SECONDS: [f64; 12] =
    [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

pub(super) struct Instruments {
    pub(super) call_duration: Histogram<f64>,
    pub(super) token_usage: Histogram<u64>,
    pub(super) queue_duration: Histogram<f64>,
    pub(super) process_duration: Histogram<f64>,
    pub(super) sent: Counter<u64>,
    pub(super) consumed: Counter<u64>,
    pub(super) outcomes: Counter<u64>,
    pub(super) throttled: Counter<u64>,
    pub(super) meter: Meter,
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let seconds = |name: &'static str, buckets: &[f64], what: &'static str| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
            histogram.with_boundaries(buckets.to_vec()).build()
        };
        let counter = |name: &'static str, unit: &'static str, what: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(what).build()
        };
        Self {
            call_duration: seconds(
                "gen_ai.client.operation.duration",
                &CALL_SECONDS,
                "How long calls of a model took",
            ),
            token_usage: meter
                .u64_histogram("gen_ai.client.token.usage")
                .with_unit("{token}")
                .with_description("Tokens that calls were billed for")
                .with_boundaries(TOKENS.to_vec())
                .build(),
            queue_duration: seconds(
                "messaging.client.operation.duration",
                &QUEUE_SECONDS,
                "How long operations of the queue took",
            ),
            process_duration: seconds(
                "messaging.process.duration",
                &PROCESS_SECONDS,
                "How long workers held jobs, from hand-out to settlement",
            ),
            sent: counter("messaging.client.sent.messages", "{message}", "Jobs sent to the queue"),
            consumed: counter(
                "messaging.client.consumed.messages",
                "{message}",
                "Jobs handed out by the queue, redeliveries included",
            ),
            outcomes: counter("promptmill.outcomes", "{job}", "Outcomes recorded"),
            throttled: counter("promptmill.throttled", "{call}", "Calls throttled (429)"),
            meter: meter.clone(),
        }
    }
}
