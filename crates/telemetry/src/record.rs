//! Outcomes becoming durable: a step of each job's trace, and the count of endings.

use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{Span as _, SpanKind};

use super::span::Begin;
use super::{Telemetry, active, names};
use domain::job::TraceParent;
use domain::outcome::Outcome;
use store::Recorded;

/// A group that is being recorded. Nothing if telemetry is off.
pub struct Recording(Option<(&'static Telemetry, SystemTime)>);

impl Recording {
    pub fn begin() -> Self {
        Self(active().map(|telemetry| (telemetry, SystemTime::now())))
    }

    /// To be called when all of it is durable; the three go side by side.
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
            telemetry.begin(Begin { name, kind, parent, at, attributes }).end();
        }
    }
}
