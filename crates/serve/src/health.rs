//! `/livez`: the process answers. `/readyz`: the queue and the store answered recently.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};

use super::AppState;
use super::error::json_response;
use domain::job::BatchId;
use domain::mutex::lock;

/// Time for which a result is reused: probes must not load a service that is billed.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// Timeout after which a service counts as unreachable.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Latest probe of the queue and the store.
#[derive(Default)]
struct HealthProbe {
    last: Mutex<Option<(Instant, ProbeResult)>>,
    /// One probe at a time.
    probing: AsyncMutex<()>,
}

#[derive(Debug, Clone, Copy)]
struct ProbeResult {
    queue: bool,
    store: bool,
}

impl HealthProbe {
    fn fresh(&self) -> Option<ProbeResult> {
        let last = lock(&self.last);
        last.filter(|(at, _)| at.elapsed() < FRESH_FOR).map(|(_, found)| found)
    }

    async fn probe(&self, app: &AppState) -> ProbeResult {
        if let Some(found) = self.fresh() {
            return found;
        }
        let _alone = self.probing.lock().await;
        if let Some(found) = self.fresh() {
            return found;
        }
        let queue = async { matches!(timeout(PROBE_TIMEOUT, app.queue.depth()).await, Ok(Ok(_))) };
        let store = async {
            let Ok(name) = "readyz".parse::<BatchId>() else { return false };
            matches!(timeout(PROBE_TIMEOUT, app.store.batch(&name)).await, Ok(Ok(_)))
        };
        let (queue, store) = tokio::join!(queue, store);
        let found = ProbeResult { queue, store };
        let mut last = lock(&self.last);
        *last = Some((Instant::now(), found));
        found
    }
}

/// Returns the health routes, open to all: they reveal nothing else.
pub fn routes(app: &AppState) -> Router {
    let state = (app.clone(), Arc::<HealthProbe>::default());
    let ready = Router::new().route("/readyz", get(ready)).with_state(state);
    ready.route("/livez", get(async || "ok\n"))
}

async fn ready(State((app, health)): State<(AppState, Arc<HealthProbe>)>) -> Response {
    let ProbeResult { queue, store } = health.probe(&app).await;
    let word = |is_well| if is_well { "ok" } else { "unreachable" };
    let status = if queue && store { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({ "queue": word(queue), "store": word(store) }))
}
