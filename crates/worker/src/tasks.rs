//! The tasks of one worker: one owner that starts them, notices the first that fails, and joins all.
//!
//! A task that fails or panics cancels the token on which all others end, so that no job is called
//! for whose outcome nobody would record. No task outlives its owner: whatever still runs when the
//! worker ends is aborted and joined.

use std::collections::HashMap;

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::exit::{WorkerError, WorkerExit};
use super::leases::BoxedJob;
use super::stage::WorkerStage;
use super::stage_end::{DispatchEnd, PullEnd, StageEnd};

/// Owner of all tasks of one worker.
pub(super) struct WorkerTasks {
    set: JoinSet<Result<StageEnd, WorkerError>>,
    running: HashMap<Id, WorkerStage>,
    /// Cancelled to end all of them.
    ending: CancellationToken,
    /// The first failure; later ones follow from it.
    failure: Option<WorkerError>,
    exit: Option<WorkerExit>,
    pulled: Option<PullEnd>,
    unfinished: Vec<BoxedJob>,
}

impl WorkerTasks {
    pub(super) fn new(ending: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            running: HashMap::new(),
            ending,
            failure: None,
            exit: None,
            pulled: None,
            unfinished: Vec::new(),
        }
    }

    /// Returns the token on whose cancellation all tasks end.
    pub(super) fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// Starts a task that has nothing to report.
    pub(super) fn spawn_infallible(
        &mut self,
        stage: WorkerStage,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn_with_end(stage, async move {
            task.await;
            Ok(StageEnd::Done)
        });
    }

    /// Starts a task that has nothing to report but an error.
    pub(super) fn spawn(
        &mut self,
        stage: WorkerStage,
        task: impl Future<Output = Result<(), WorkerError>> + Send + 'static,
    ) {
        self.spawn_with_end(stage, async move { task.await.map(|()| StageEnd::Done) });
    }

    /// Starts a task. If it fails or panics, all others end.
    pub(super) fn spawn_with_end(
        &mut self,
        stage: WorkerStage,
        task: impl Future<Output = Result<StageEnd, WorkerError>> + Send + 'static,
    ) {
        let ending = self.ending.clone().drop_guard();
        let handle = self.set.spawn(async move {
            let result = task.await;
            if result.is_ok() {
                ending.disarm();
            }
            result
        });
        self.running.insert(handle.id(), stage);
    }

    /// Joins tasks until none of these stages runs.
    pub(super) async fn join(&mut self, awaited: impl Fn(WorkerStage) -> bool) {
        while self.running.values().any(|stage| awaited(*stage)) {
            let Some(joined) = self.set.join_next_with_id().await else { return };
            let (id, result) = match joined {
                Ok((id, result)) => (id, result),
                Err(error) => (error.id(), Err(WorkerError::Panicked)),
            };
            let stage = self.running.remove(&id);
            if matches!(result, Err(WorkerError::Panicked)) {
                error!(?stage, "a task of the worker panicked");
            }
            self.note(result);
        }
    }

    fn note(&mut self, result: Result<StageEnd, WorkerError>) {
        let failed = match result {
            Ok(StageEnd::Dispatched(DispatchEnd { exit, unfinished })) => {
                self.unfinished = unfinished;
                exit.map(|exit| self.exit = Some(exit))
            }
            Ok(StageEnd::Pulled(pulled)) => {
                self.pulled = Some(pulled);
                Ok(())
            }
            Ok(StageEnd::Done) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = failed {
            self.failure.get_or_insert(error);
        }
    }

    /// Returns whether all work is done and no task has failed.
    pub(super) fn is_drained(&self) -> bool {
        self.failure.is_none() && self.exit == Some(WorkerExit::Drained)
    }

    /// Returns the jobs without an outcome that the dispatcher held.
    pub(super) fn take_unfinished(&mut self) -> Vec<BoxedJob> {
        std::mem::take(&mut self.unfinished)
    }

    /// Ends what still runs, joins it, and returns how the worker ended.
    pub(super) async fn finish(mut self) -> Result<WorkerExit, WorkerError> {
        let late = self.running.values().filter(|stage| stage.is_draining()).min().copied();
        self.set.shutdown().await;
        match (self.failure.or(late.map(WorkerError::Late)), self.exit, self.pulled) {
            (Some(error), _, _) => Err(error),
            (None, Some(WorkerExit::Drained), Some(PullEnd::Paused(batches))) => {
                Ok(WorkerExit::Paused { batches })
            }
            (None, Some(exit), _) => Ok(exit),
            (None, None, _) => Err(WorkerError::Panicked),
        }
    }
}
