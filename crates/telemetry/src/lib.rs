//! What is told to observers: traces and metrics by OTLP, off unless somebody asks for them.
//!
//! ```text
//! queue.rs    stands around a queue:  send ─▶ (message) ─▶ process ─▶ settle
//! call.rs     one call of a model:                            ├─ chat, embeddings
//! record.rs   outcomes becoming durable:                      └─ record
//! ```
//!
//! The names are OpenTelemetry's for messaging and for generative AI (`names`); what those lack begins
//! with `promptmill.`. A job is one trace over all processes: its `traceparent` travels in
//! [`domain::job::History`]. Prompts and answers are told only if [`Settings::content`] is set.
//!
//! Where it is off, `active()` is `None`, and that branch is all it costs. Where it is on, spans go
//! through a bounded queue and are dropped when that is full: an observer that is away never holds up
//! the work (`export`).

mod call;
mod content;
mod export;
mod gauges;
mod laps;
mod metrics;
mod names;
mod progress;
mod queue;
mod record;
mod settings;
mod span;

use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use call::Call;
pub use gauges::watch;
pub use laps::Laps;
pub use progress::Progress;
pub use queue::{Labels, observed};
pub use record::Recording;
pub use settings::{Settings, TelemetryError};

use metrics::Instruments;

/// How long the end of a process waits for its last telemetry to be sent.
const LAST_WORDS: Duration = Duration::from_secs(5);

static ACTIVE: OnceLock<Telemetry> = OnceLock::new();

/// What spans and measurements are made with.
pub struct Telemetry {
    tracer: SdkTracer,
    instruments: Instruments,
    content: bool,
}

/// The process's telemetry; `None` if nobody asked for any.
pub fn active() -> Option<&'static Telemetry> {
    ACTIVE.get()
}

/// Sends what is left when the process ends.
#[must_use = "what is left is sent by `finish`"]
pub struct Running {
    tracers: SdkTracerProvider,
    meters: SdkMeterProvider,
}

/// Starts telemetry for this process if the settings or the standard variables ask for it. Needs a
/// running tokio, which sends it.
///
/// # Errors
/// Names the setting or variable that can't be used.
pub fn start(settings: &Settings) -> Result<Option<Running>, TelemetryError> {
    let Some(plan) = settings.plan(|name| std::env::var(name).ok())? else { return Ok(None) };
    let (tracers, meters) = export::providers(&plan)?;
    let telemetry = Telemetry {
        tracer: tracers.tracer("promptmill"),
        instruments: Instruments::new(&meters.meter("promptmill")),
        content: settings.content,
    };
    // Only the first of a process counts, as with logs.
    let _ = ACTIVE.set(telemetry);
    Ok(Some(Running { tracers, meters }))
}

impl Running {
    /// Sends what is left, and gives up after some seconds.
    pub fn finish(self) {
        let (done, wait) = mpsc::channel();
        // A thread of its own: the providers wait without a bound of ours.
        std::thread::spawn(move || {
            let _ = self.tracers.shutdown_with_timeout(LAST_WORDS);
            let _ = self.meters.shutdown_with_timeout(LAST_WORDS);
            let _ = done.send(());
        });
        if wait.recv_timeout(LAST_WORDS).is_err() {
            tracing::warn!("the last telemetry could not be sent in time and is lost");
        }
    }
}
