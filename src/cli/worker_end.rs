//! Ends of a worker: their exit status and their text, told once for all commands that work.

use std::sync::atomic::Ordering;

use super::exit::{CommandError, ExitStatus};
use super::output::say;
use domain::job::BatchId;
use store::Store;
use telemetry::WorkerProgress;
use worker::WorkerExit;

/// Returns the status of a worker's end; of one that drained its queue, unless a job failed.
pub(super) fn exit_status(exit: &WorkerExit) -> ExitStatus {
    match exit {
        WorkerExit::Drained => ExitStatus::AllDone,
        WorkerExit::Paused { .. } => ExitStatus::SomeFailed,
        WorkerExit::Stopped => ExitStatus::Interrupted,
        WorkerExit::NoDeployment { .. } => ExitStatus::Usage,
        WorkerExit::Unreachable { .. } => ExitStatus::Unreachable,
    }
}

/// Prints why a worker ended before its queue was drained, and how its jobs go on; returns the
/// status, or `None` if it was drained. `again` says what is left, and what to do then.
pub(super) async fn say_end(
    exit: &WorkerExit,
    progress: &WorkerProgress,
    store: &dyn Store,
    again: &str,
) -> Result<Option<ExitStatus>, CommandError> {
    match exit {
        WorkerExit::Drained => return Ok(None),
        WorkerExit::Paused { batches } => {
            for id in batches {
                say_paused(store, id).await?;
            }
            say(&format!("{again} then"));
        }
        WorkerExit::Stopped => {
            let aborted = progress.aborted_calls.load(Ordering::Relaxed);
            if aborted > 0 {
                say(&format!(
                    "{aborted} calls did not end within the grace time and may be paid again"
                ));
            }
            say(&format!("{exit}: {again}"));
        }
        WorkerExit::NoDeployment { .. } => {
            say(&format!("error: {exit}"));
            say(&format!("{again} when that is fixed"));
        }
        WorkerExit::Unreachable { .. } => {
            say(&format!("error: {exit}"));
            say(again);
        }
    }
    Ok(Some(exit_status(exit)))
}

/// Prints why the batch is paused, and how to resume it.
async fn say_paused(store: &dyn Store, id: &BatchId) -> Result<(), CommandError> {
    let batch = store.batch(id).await?;
    let budget = store.budget(id).await?;
    let why = batch.and_then(|batch| batch.reason).unwrap_or_default();
    let flag = budget.and_then(|budget| budget.raise_flag(&why)).map(|flag| format!(" {flag}"));
    let flag = flag.unwrap_or_default();
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    say(&format!("batch {id} is paused{why}: go on with `promptmill resume {id}{flag}`"));
    Ok(())
}
