//! Gauges of a worker's state, read whenever measurements are sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry::KeyValue;

use super::active::active;
use super::names;
use crate::WorkerProgress;
use domain::deployment::DeploymentSnapshot;

/// Registers a worker's gauges, if telemetry is on.
pub fn register_gauges(progress: &Arc<WorkerProgress>) {
    let Some(telemetry) = active() else { return };
    let meter = &telemetry.instruments.meter;
    let held = progress.clone();
    meter
        .u64_observable_gauge("promptmill.held")
        .with_unit("{job}")
        .with_description("Jobs that this worker holds: waiting, in flight, being recorded")
        .with_callback(move |gauge| gauge.observe(held.held.load(Ordering::Relaxed), &[]))
        .build();
    let gauge = |name: &'static str, unit: &'static str, what: &'static str, read: ReadGauge| {
        let progress = progress.clone();
        meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_description(what)
            .with_callback(move |gauge| {
                for deployment in progress.deployments.borrow().iter() {
                    if let Some(value) = read(deployment) {
                        let label = KeyValue::new(names::DEPLOYMENT, deployment.name.clone());
                        gauge.observe(value, &[label]);
                    }
                }
            })
            .build();
    };
    gauge(
        "promptmill.quota.limit",
        "{token}",
        "Tokens a minute of the whole deployment, as learnt or as configured",
        |d| d.tpm_learnt.or(d.tpm_configured).map(|tpm| tpm as f64),
    );
    gauge("promptmill.quota.used", "{token}", "Tokens booked in the last minute", |d| {
        Some(d.used_last_minute as f64)
    });
    gauge("promptmill.quota.share", "1", "The part of the quota that this worker may use", |d| {
        Some(d.share)
    });
    gauge("promptmill.in_flight", "{call}", "Calls in flight", |d| Some(d.in_flight as f64));
}

/// Reads a gauge's value off a deployment; `None` where it is unknown.
type ReadGauge = fn(&DeploymentSnapshot) -> Option<f64>;
