//! Export by OTLP: spans, instruments and their exporters.
//!
//! `disabled` has the same items, which do nothing, for builds without the feature `otlp`.

mod active;
mod call;
mod content;
mod export;
mod gauges;
mod metrics;
mod names;
mod queue;
mod record;
mod span;

use std::sync::mpsc;
use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;

pub use active::Telemetry;
pub use call::CallSpan;
pub use gauges::register_gauges;
pub use queue::instrument_queue;
pub use record::RecordSpan;

use crate::{TelemetryError, TelemetrySettings};
use active::activate;
use metrics::Instruments;

/// Time that the end of a process waits for its last telemetry to be sent.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Running exporters; `finish` sends the remaining telemetry when the process ends.
#[must_use = "what is left is sent by `finish`"]
pub struct TelemetryHandle {
    tracers: SdkTracerProvider,
    meters: SdkMeterProvider,
}

/// Starts telemetry for this process if the settings or the standard variables ask for it. Needs a
/// running tokio runtime, which sends it.
///
/// # Errors
/// Names the setting or variable that can't be used.
pub fn start(settings: &TelemetrySettings) -> Result<Option<TelemetryHandle>, TelemetryError> {
    let Some(plan) = settings.plan(|name| std::env::var(name).ok())? else { return Ok(None) };
    let (tracers, meters) = export::providers(&plan)?;
    let telemetry = Telemetry {
        tracer: tracers.tracer("promptmill"),
        instruments: Instruments::new(&meters.meter("promptmill")),
        content: settings.content,
    };
    activate(telemetry);
    Ok(Some(TelemetryHandle { tracers, meters }))
}

impl TelemetryHandle {
    /// Sends the remaining telemetry, and gives up after some seconds.
    pub fn finish(self) {
        let (done, wait) = mpsc::channel();
        // A thread of its own: the providers wait without a bound of ours.
        std::thread::spawn(move || {
            let _ = self.tracers.shutdown_with_timeout(FLUSH_TIMEOUT);
            let _ = self.meters.shutdown_with_timeout(FLUSH_TIMEOUT);
            let _ = done.send(());
        });
        if wait.recv_timeout(FLUSH_TIMEOUT).is_err() {
            tracing::warn!("the last telemetry could not be sent in time and is lost");
        }
    }
}
