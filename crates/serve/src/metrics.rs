//! `/metrics`: gauges of the queue, the batches, the deployments and the workers, for Prometheus.
//!
//! Computed for each scrape from the data of `status`, so every server reports the same; names and
//! units are in `docs/serve.md`. Labels are names from the configuration and fixed words, never
//! data from jobs.

use std::sync::atomic::AtomicU64;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::AppState;
use super::access;
use super::error::ApiError;
use crate::settings::Role;
use queue::QueueDepth;
use report::autoscale::{self, ScalingAdvice};
use report::deployments::{self, DeploymentStatus};
use store::{Batch, BatchState, BatchTotals, Store, StoreError};

const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type GaugeLabels = [(&'static str, String); 1];
type GaugeFamily = Family<GaugeLabels, Gauge<f64, AtomicU64>>;

pub fn routes(app: &AppState) -> Router {
    let routes = Router::new().route("/metrics", get(metrics));
    access::require_role(routes, &app.access, Role::Read).with_state(app.clone())
}

async fn metrics(State(app): State<AppState>) -> Result<Response, ApiError> {
    let store = app.store.as_ref();
    let depth = app.queue.depth().await?;
    let heartbeats = store.heartbeats().await?;
    let batches = store.batches().await?;
    let totals = totals(store, &batches).await?;
    let mut registry = Registry::with_prefix("promptmill");
    add_queue(&mut registry, depth);
    add_batches(&mut registry, &batches, &totals);
    add_deployments(&mut registry, &deployments::aggregate(&heartbeats));
    let workers = heartbeats.iter().filter(|worker| worker.is_worker()).count();
    gauge(&mut registry, "workers", "Workers alive").set(workers as f64);
    let backlog = autoscale::backlog(store, &batches).await?;
    add_replicas(
        &mut registry,
        autoscale::advise(depth, backlog, &heartbeats, &app.config.scaling),
    );
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| {
        tracing::error!(%error, "metrics could not be written");
        let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "internal_error", "metrics could not be written")
    })?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS_TYPE)], text).into_response())
}

/// Sums all batches, by the running totals kept beside the outcomes.
async fn totals(store: &dyn Store, batches: &[Batch]) -> Result<BatchTotals, StoreError> {
    let now = Timestamp::now();
    let mut all = BatchTotals::default();
    for batch in batches {
        let totals = store.running_totals(&batch.id, now).await?.totals();
        for (ending, count) in totals.endings {
            *all.endings.entry(ending).or_default() += count;
        }
        all.usage += totals.usage;
        all.attempts += totals.attempts;
    }
    Ok(all)
}

fn add_queue(registry: &mut Registry, depth: QueueDepth) {
    let jobs = gauge_family(registry, "queue_jobs", "Messages of the queue by state");
    for (state, count) in [
        ("active", depth.active),
        ("locked", depth.locked),
        ("scheduled", depth.scheduled),
        ("dead_letter", depth.dead_letters),
    ] {
        set(&jobs, ("state", state), count as f64);
    }
}

fn add_batches(registry: &mut Registry, batches: &[Batch], totals: &BatchTotals) {
    let by_state = gauge_family(registry, "batches", "Batches by state");
    for state in BatchState::ALL {
        let count = batches.iter().filter(|batch| batch.state == state).count();
        set(&by_state, ("state", state.as_str()), count as f64);
    }
    let outcomes = gauge_family(registry, "outcomes", "Jobs that have ended, by ending");
    for ending in domain::outcome::OutcomeStatus::ALL {
        set(&outcomes, ("ending", ending.as_str()), totals.of(ending) as f64);
    }
    let tokens = gauge_family(registry, "tokens", "Tokens of the answers, by type");
    for (kind, count) in [
        ("prompt", totals.usage.prompt),
        ("cached", totals.usage.cached),
        ("completion", totals.usage.completion),
        ("reasoning", totals.usage.reasoning),
    ] {
        set(&tokens, ("type", kind), count as f64);
    }
    let help = "HTTP calls that counted as attempts";
    gauge(registry, "attempts", help).set(totals.attempts as f64);
}

fn add_deployments(registry: &mut Registry, deployments: &[DeploymentStatus]) {
    type Value = fn(&DeploymentStatus) -> Option<f64>;
    let figures: [(&str, &str, Value); 7] = [
        ("quota_tokens", "Tokens a minute that the deployment gives", |d| {
            d.tpm.map(|tpm| tpm as f64)
        }),
        ("quota_share", "Part of the quota that the workers use together", |d| Some(d.share)),
        ("used_tokens", "Tokens booked in the last minute", |d| Some(d.used_last_minute as f64)),
        ("waiting_tokens", "Tokens of the jobs held by workers for the deployment", |d| {
            Some(d.waiting as f64)
        }),
        ("in_flight", "Calls in flight", |d| Some(d.in_flight as f64)),
        ("paused_seconds", "Seconds until the pause after a 429 ends", |d| {
            Some(d.paused_ms.unwrap_or(0) as f64 / 1e3)
        }),
        ("troubles", "Reasons why the deployment gets no calls", |d| Some(d.troubles.len() as f64)),
    ];
    for (name, help, value) in figures {
        let family = gauge_family(registry, &format!("deployment_{name}"), help);
        for deployment in deployments {
            if let Some(value) = value(deployment) {
                set(&family, ("deployment", &deployment.name), value);
            }
        }
    }
}

fn add_replicas(registry: &mut Registry, replicas: ScalingAdvice) {
    let help = "Useful number of workers now, by backlog and quotas";
    gauge(registry, "useful_replicas", help).set(replicas.useful_replicas as f64);
    let help = "Calls a minute that one worker can make by itself";
    // An absent gauge is clearer than one that is 0.
    if let Some(calls) = replicas.worker_calls {
        gauge(registry, "worker_calls_per_minute", help).set(calls);
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn gauge_family(registry: &mut Registry, name: &str, help: &str) -> GaugeFamily {
    let family = GaugeFamily::default();
    registry.register(name, help, family.clone());
    family
}

fn set(family: &GaugeFamily, (label, value): (&'static str, &str), number: f64) {
    family.get_or_create(&[(label, value.to_owned())]).set(number);
}
