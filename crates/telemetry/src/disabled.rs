//! Stands for `otlp` in a build without that feature: nothing is observed or sent.

use std::sync::Arc;

use crate::{QueueLabels, TelemetryError, TelemetrySettings, WorkerProgress};
use domain::build_feature::MissingFeatureError;
use domain::job::{Job, TraceParent};
use domain::outcome::Outcome;
use model::ModelClient;
use model::verdict::Verdict;
use queue::Queue;
use store::Recorded;

/// Handle that no build without the feature `otlp` can have.
pub enum TelemetryHandle {}

impl TelemetryHandle {
    pub fn finish(self) {
        match self {}
    }
}

/// Reports settings or standard variables that ask for telemetry, which this build leaves out.
///
/// # Errors
/// If they do, or if they can't be used.
pub fn start(settings: &TelemetrySettings) -> Result<Option<TelemetryHandle>, TelemetryError> {
    match settings.plan(|name| std::env::var(name).ok())? {
        Some(_) => Err(MissingFeatureError { feature: "telemetry" }.into()),
        None => Ok(None),
    }
}

/// Returns the queue unchanged.
pub fn instrument_queue(queue: Arc<dyn Queue>, _: QueueLabels) -> Arc<dyn Queue> {
    queue
}

/// Does nothing.
pub fn register_gauges(_: &Arc<WorkerProgress>) {}

/// Empty span of a call.
pub struct CallSpan;

impl CallSpan {
    pub fn begin(_: &Job, _: (&str, &ModelClient), _charge: u64, _attempts: u32) -> Self {
        Self
    }

    pub fn end(self, _: &Verdict) {}
}

/// Empty span of outcomes being recorded.
pub struct RecordSpan;

impl RecordSpan {
    pub fn begin() -> Self {
        Self
    }

    pub fn end(self, _: &[Outcome], _: &[Recorded], _: impl Iterator<Item = Option<TraceParent>>) {}
}
