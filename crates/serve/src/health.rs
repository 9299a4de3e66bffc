//! `/livez`: the process answers. `/readyz`: so did the queue and the store, lately.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};

use super::App;
use super::error::json_response;
use domain::job::BatchId;

/// Whoever asks more often gets the last answer again: probes must not load a service that is billed.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// A service that takes longer is not of use now.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found when it was last looked.
#[derive(Default)]
pub struct Health {
    last: Mutex<Option<(Instant, Found)>>,
    /// One look at a time.
    looking: AsyncMutex<()>,
}

#[derive(Debug, Clone, Copy)]
struct Found {
    queue: bool,
    store: bool,
}

impl Health {
    fn fresh(&self) -> Option<Found> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.filter(|(at, _)| at.elapsed() < FRESH_FOR).map(|(_, found)| found)
    }

    async fn find(&self, app: &App) -> Found {
        if let Some(found) = self.fresh() {
            return found;
        }
        let _alone = self.looking.lock().await;
        if let Some(found) = self.fresh() {
            return found;
        }
        let queue = async { matches!(timeout(PATIENCE, app.queue.depth()).await, Ok(Ok(_))) };
        let store = async {
            let Ok(name) = "readyz".parse::<BatchId>() else { return false };
            matches!(timeout(PATIENCE, app.store.batch(&name)).await, Ok(Ok(_)))
        };
        let (queue, store) = tokio::join!(queue, store);
        let found = Found { queue, store };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((Instant::now(), found));
        found
    }
}

/// Open to all: they tell nothing but that.
pub fn routes(app: &App) -> Router {
    let ready = Router::new().route("/readyz", get(ready)).with_state(app.clone());
    ready.route("/livez", get(async || "ok\n"))
}

async fn ready(State(app): State<App>) -> Response {
    let health: Arc<Health> = app.health.clone();
    let Found { queue, store } = health.find(&app).await;
    let word = |is_well| if is_well { "ok" } else { "unreachable" };
    let status = if queue && store { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_response(status, &json!({ "queue": word(queue), "store": word(store) }))
}
