//! `/metrics`: how the queue, the batches, the deployments and the workers stand, for Prometheus.
//!
//! Made anew for each scrape from what `status` shows, so that any server tells the same; names and
//! units are in `docs/serve.md`. Labels are names from the configuration and fixed words: what jobs
//! carry is in none of them.

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

use super::App;
use super::access;
use super::error::ApiError;
use crate::settings::Role;
use domain::share::Word;
use queue::Depth;
use report::deployments::{self, Deployment};
use report::replicas::{self, Replicas};
use store::{Batch, BatchState, Store, StoreError, Totals};

const KIND: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = [(&'static str, String); 1];
type Numbers = Family<Labels, Gauge<f64, AtomicU64>>;

pub fn routes(app: &App) -> Router {
    let routes = Router::new().route("/metrics", get(metrics));
    access::require(routes, app, Role::Read).with_state(app.clone())
}

async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let store = app.store.as_ref();
    let depth = app.queue.depth().await?;
    let words = store.words().await?;
    let batches = store.batches().await?;
    let totals = totals(store, &batches).await?;
    let mut registry = Registry::with_prefix("promptmill");
    tell_queue(&mut registry, depth);
    tell_batches(&mut registry, &batches, &totals);
    tell_deployments(&mut registry, &deployments::sum(&words));
    let workers = words.iter().filter(|word| Word::is_worker(word)).count();
    gauge(&mut registry, "workers", "Workers alive").set(workers as f64);
    let backlog = replicas::backlog(store, &batches).await?;
    tell_replicas(&mut registry, replicas::now(depth, backlog, &words, &app.config.scaling));
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|error| {
        tracing::error!(%error, "metrics could not be written");
        let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(status, "internal_error", "metrics could not be written")
    })?;
    Ok(([(header::CONTENT_TYPE, KIND)], text).into_response())
}

/// Over all batches, by the sums that are kept beside the outcomes.
async fn totals(store: &dyn Store, batches: &[Batch]) -> Result<Totals, StoreError> {
    let now = Timestamp::now();
    let mut all = Totals::default();
    for batch in batches {
        let totals = store.running(&batch.id, now).await?.totals();
        for (ending, count) in totals.endings {
            *all.endings.entry(ending).or_default() += count;
        }
        all.usage += totals.usage;
        all.attempts += totals.attempts;
    }
    Ok(all)
}

fn tell_queue(registry: &mut Registry, depth: Depth) {
    let jobs = numbers(registry, "queue_jobs", "Messages of the queue by state");
    for (state, count) in [
        ("active", depth.active),
        ("locked", depth.locked),
        ("scheduled", depth.scheduled),
        ("dead_letter", depth.dead_letters),
    ] {
        set(&jobs, ("state", state), count as f64);
    }
}

fn tell_batches(registry: &mut Registry, batches: &[Batch], totals: &Totals) {
    let by_state = numbers(registry, "batches", "Batches by state");
    for state in BatchState::ALL {
        let count = batches.iter().filter(|batch| batch.state == state).count();
        set(&by_state, ("state", state.as_str()), count as f64);
    }
    let outcomes = numbers(registry, "outcomes", "Jobs that have ended, by ending");
    for ending in domain::outcome::Ending::ALL {
        set(&outcomes, ("ending", ending.as_str()), totals.of(ending) as f64);
    }
    let tokens = numbers(registry, "tokens", "Tokens of the answers, by type");
    for (kind, count) in [
        ("prompt", totals.usage.prompt),
        ("cached", totals.usage.cached),
        ("completion", totals.usage.completion),
        ("reasoning", totals.usage.reasoning),
    ] {
        set(&tokens, ("type", kind), count as f64);
    }
    let help = "HTTP calls that counted as tries";
    gauge(registry, "attempts", help).set(totals.attempts as f64);
}

fn tell_deployments(registry: &mut Registry, deployments: &[Deployment]) {
    type Value = fn(&Deployment) -> Option<f64>;
    let figures: [(&str, &str, Value); 7] = [
        ("quota_tokens", "Tokens a minute that the deployment gives", |d| {
            d.tpm.map(|tpm| tpm as f64)
        }),
        ("quota_share", "Part of the quota that the workers use together", |d| Some(d.share)),
        ("used_tokens", "Tokens booked in the last minute", |d| Some(d.used_last_minute as f64)),
        ("waiting_tokens", "Tokens of the jobs that workers hold for it", |d| {
            Some(d.waiting as f64)
        }),
        ("in_flight", "Calls in flight", |d| Some(d.in_flight as f64)),
        ("paused_seconds", "For how long a 429 still pauses it", |d| {
            Some(d.paused_ms.unwrap_or(0) as f64 / 1e3)
        }),
        ("troubles", "Reasons why calls are kept off it", |d| Some(d.troubles.len() as f64)),
    ];
    for (name, help, value) in figures {
        let family = numbers(registry, &format!("deployment_{name}"), help);
        for deployment in deployments {
            if let Some(value) = value(deployment) {
                set(&family, ("deployment", &deployment.name), value);
            }
        }
    }
}

fn tell_replicas(registry: &mut Registry, replicas: Replicas) {
    let help = "Workers that are of use now, by what waits and what the quotas feed";
    gauge(registry, "useful_replicas", help).set(replicas.useful_replicas as f64);
    let help = "Calls a minute that one worker can make by itself";
    // A gauge that is not there says more than one that is 0.
    if let Some(calls) = replicas.worker_calls {
        gauge(registry, "worker_calls_per_minute", help).set(calls);
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn numbers(registry: &mut Registry, name: &str, help: &str) -> Numbers {
    let family = Numbers::default();
    registry.register(name, help, family.clone());
    family
}

fn set(family: &Numbers, (label, value): (&'static str, &str), number: f64) {
    family.get_or_create(&[(label, value.to_owned())]).set(number);
}
