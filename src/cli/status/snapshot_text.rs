//! A whole snapshot: as JSON, and as lines.

use serde_json::{Value, json};

use super::{batch_text, worker_text};
use crate::app::status::{StatusBacklog, StatusSnapshot};
use domain::prices::Prices;

pub(super) fn json(
    snapshot: &StatusSnapshot,
    backlog: Option<StatusBacklog>,
    prices: &Prices,
) -> Value {
    let mut status = json!({
        "batches": snapshot.batches,
        "deployments": snapshot.deployments,
        "workers": snapshot.workers,
        "currency": prices.currency,
        "prices_of": prices.date,
    });
    if let Some(StatusBacklog { depth, advice }) = backlog {
        status["queue"] = json!(depth);
        status["scaling"] = json!(advice);
    }
    status
}

pub(super) fn lines(
    snapshot: &StatusSnapshot,
    backlog: Option<StatusBacklog>,
    prices: &Prices,
) -> Vec<String> {
    let batches = snapshot.batches.iter();
    let mut lines: Vec<String> = batches.flat_map(|live| batch_text::batch(live, prices)).collect();
    lines.extend(backlog.map(|backlog| worker_text::queue(backlog.depth)));
    lines.extend(snapshot.deployments.iter().map(worker_text::deployment));
    lines.extend(snapshot.workers.iter().map(worker_text::worker));
    lines.extend(backlog.map(|backlog| worker_text::replicas(backlog.advice)));
    lines
}
