//! Tracer and instruments of the process, once they are started.

use std::sync::OnceLock;

use opentelemetry_sdk::trace::SdkTracer;

use super::metrics::Instruments;

static ACTIVE: OnceLock<Telemetry> = OnceLock::new();

/// Tracer and instruments of the process.
pub struct Telemetry {
    pub(super) tracer: SdkTracer,
    pub(super) instruments: Instruments,
    pub(super) content: bool,
}

/// Returns the process's telemetry; `None` if disabled.
pub fn active() -> Option<&'static Telemetry> {
    ACTIVE.get()
}

/// Sets the process's telemetry. Only the first of a process counts, as with logs.
pub(super) fn activate(telemetry: Telemetry) {
    let _ = ACTIVE.set(telemetry);
}
