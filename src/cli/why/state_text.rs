//! How a batch's state and its workers keep jobs from going on.

use control::batches::BatchStatus;
use report::why::WorkerProcess;
use store::BatchState;

pub(super) const NO_WORKER: &str = "no worker is alive on this store: start one with `promptmill work` (a \
                         `promptmill run` works alone and is not seen from outside)";

pub(super) fn state(s: &BatchStatus) -> String {
    let reason = s.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    format!("{}{reason}", s.state.as_str())
}

/// Explains how the batch's state keeps its jobs from going on.
pub(super) fn state_reason(s: &BatchStatus) -> Option<String> {
    match s.state {
        BatchState::Paused => {
            let why = s.reason.as_deref().unwrap_or("by hand");
            Some(format!(
                "the batch is paused: {why}; `promptmill resume {}` lets it go on",
                s.batch
            ))
        }
        BatchState::Cancelled => {
            Some("the batch is cancelled: the workers end its jobs as they come to them".to_owned())
        }
        BatchState::Enqueuing => {
            Some("its jobs are still being added; run an interrupted enqueue again".to_owned())
        }
        BatchState::Running | BatchState::Done => None,
    }
}

pub(super) fn worker_name(worker: &WorkerProcess) -> String {
    match worker.pid {
        Some(pid) => format!("{pid} on {}", worker.host),
        None => worker.host.clone(),
    }
}
