//! OpenTelemetry export: traces and metrics over OTLP. Disabled by default.
//!
//! ```text
//! otlp/queue.rs    wraps a queue:          send ─▶ (message) ─▶ process ─▶ settle
//! otlp/call.rs     one call of a model:                            ├─ chat, embeddings
//! otlp/record.rs   recording of outcomes:                          └─ record
//! ```
//!
//! Names are OpenTelemetry's for messaging and generative AI (`names`); others begin with
//! `promptmill.`. A job is one trace over all processes: its `traceparent` travels in
//! [`domain::job::JobHistory`]. Prompts and answers need [`TelemetrySettings::content`].
//!
//! If disabled, `active()` is `None`, and that branch is the whole cost. If enabled, spans go
//! through a bounded queue and are dropped when that is full: an unreachable receiver never holds
//! up the work (`otlp/export`). A build without the feature `otlp` has `disabled` in its place.

#[cfg_attr(not(feature = "otlp"), path = "disabled.rs")]
mod otlp;
mod progress;
mod queue_labels;
mod settings;
mod stage_latency;

pub use otlp::{CallSpan, RecordSpan, TelemetryHandle, instrument_queue, register_gauges, start};
pub use progress::WorkerProgress;
pub use queue_labels::QueueLabels;
pub use settings::{TelemetryError, TelemetrySettings};
pub use stage_latency::StageLatency;
