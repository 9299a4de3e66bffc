//! Span and counter of outcomes becoming durable: a step of each job's trace.

use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanKind};

use super::active::{Telemetry, active};
use super::names;
use super::span::SpanStart;
use domain::job::TraceParent;
use domain::outcome::Outcome;
use store::Recorded;

/// Group of outcomes that is being recorded. Empty if telemetry is off.
pub struct RecordSpan(Option<(&'static Telemetry, SystemTime)>);

impl RecordSpan {
    pub fn begin() -> Self {
        Self(active().map(|telemetry| (telemetry, SystemTime::now())))
    }

    /// Must be called once all outcomes are durable; the three are aligned by index.
    pub fn end(
        self,
        outcomes: &[Outcome],
        proofs: &[Recorded],
        parents: impl Iterator<Item = Option<TraceParent>>,
    ) {
        let Some((telemetry, at)) = self.0 else { return };
        for ((outcome, proof), parent) in outcomes.iter().zip(proofs).zip(parents) {
            let ending = KeyValue::new(names::ENDING, proof.ending().as_str());
            if proof.is_first() {
                let labels = [
                    ending.clone(),
                    KeyValue::new(names::DEPLOYMENT, outcome.deployment.clone()),
                    KeyValue::new(names::REQUEST_MODEL, outcome.model.clone()),
                ];
                telemetry.instruments.outcomes.add(1, &labels);
            }
            let attributes = vec![
                ending,
                KeyValue::new(names::BATCH, outcome.batch_id.to_string()),
                KeyValue::new(names::FIRST, proof.is_first()),
            ];
            let (name, kind) = ("record".to_owned(), SpanKind::Internal);
            telemetry.begin_span(SpanStart { name, kind, parent, at, attributes }).end();
        }
    }
}
