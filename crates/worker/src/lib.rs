//! The pipeline, written once for every queue and store: pull, admit, call, record, settle.
//!
//! ```text
//! puller ──jobs──▶ dispatcher ──spawns──▶ attempt ──outcome──▶ recorder ──▶ settler
//!    ▲                  ▲  owns Admission    │
//!    └── slots ─────────┼────────────────────┴── end of call, job to try again
//!                       ├─ defer_all returns jobs whose next attempt is far off
//!                       ├─ budget_sync keeps the allowance that calls draw on
//!                       ├─ batch_registry watches for paused and cancelled batches
//!                       ├─ renew_leases renews what all of them hold
//!                       └─ shares negotiates our share of the quotas
//! ```
//!
//! Every task has one owner (`tasks`) and an end: [`Worker::run`] starts them and joins them, in the
//! order in which work drains. The number of jobs held is bounded by `max_held`, whatever the queue
//! holds.

mod allowance;
mod attempt;
mod batch_handle;
mod batch_registry;
mod budget_sync;
mod channels;
mod claims;
mod command;
mod defer;
mod dispatcher;
mod exit;
mod failure_watch;
mod inquiry;
mod leases;
mod prefetch;
mod pull;
mod record;
mod release;
pub mod retry;
mod settings;
mod shares;
mod stage;
mod stage_end;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use attempt::AttemptRunner;
use batch_registry::BatchRegistry;
use channels::channels;
use claims::CallClaims;
use dispatcher::{Dispatcher, DispatcherInbox};
use leases::{BoxedJob, LeaseTable};
use pull::Puller;
use record::Recorder;
use shares::ShareExchange;
use stage::WorkerStage as Stage;
use tasks::WorkerTasks;

pub use exit::{WorkerError, WorkerExit};
pub use settings::{DEFER_FROM, Worker, WorkerSettings, WorkerTarget, all_queued};
pub use stage::WorkerStage;

impl Worker {
    /// Works until the queue is drained (if so set), a stop, or an error that is no job's fault.
    ///
    /// # Errors
    /// If the queue or the store fails permanently; no job that it held is lost.
    pub async fn run(self, stop: CancellationToken) -> Result<WorkerExit, WorkerError> {
        let mut tasks = WorkerTasks::new(stop.child_token());
        let batches = self.start(&mut tasks);
        tasks.join(|stage| stage == Stage::Dispatcher).await;
        tasks.ending().cancel();
        // A queue or a store that is away for longer than the grace time must not keep us from
        // ending.
        let grace = self.settings.shutdown_grace;
        self.release(tasks.take_unfinished(), grace).await;
        batches.close();
        let patience = if tasks.is_drained() { Duration::MAX } else { grace };
        // `finish` ends those that are late, and says so.
        let _ = timeout(patience, tasks.join(Stage::is_draining)).await;
        tasks.join(Stage::is_bounded).await;
        tasks.finish().await
    }

    /// Starts all stages; returns the batches whose jobs they hold.
    fn start(&self, tasks: &mut WorkerTasks) -> Arc<BatchRegistry> {
        let (queue, store, progress) = (&self.queue, &self.store, &self.progress);
        let (to, from) = channels(self.max_calls());
        let ending = tasks.ending();
        let leases = Arc::new(LeaseTable::new(progress.clone()));
        let batches = Arc::new(BatchRegistry::new(self, &to));

        let puller = Puller::new(self, leases.clone(), batches.clone(), &to);
        tasks.spawn_with_end(Stage::Puller, puller.run(ending.clone()));
        let inbox = DispatcherInbox { jobs: from.jobs, commands: from.commands };
        let claims = Arc::new(CallClaims::new(self));
        let caller = AttemptRunner::new(self, claims.clone(), &to);
        let dispatcher = Dispatcher::new(self, batches.clone(), inbox, caller);
        tasks.spawn_with_end(Stage::Dispatcher, dispatcher.run(ending.clone()));
        let recorder = Recorder {
            store: store.clone(),
            to_settle: to.recorded,
            commands: to.commands.clone(),
            progress: progress.clone(),
        };
        let recording = recorder.record_all(from.finished);
        tasks.spawn(Stage::Recorder, recording);
        let settling = record::settle_all(queue.clone(), from.recorded, progress.clone());
        tasks.spawn(Stage::Settler, settling);
        tasks.spawn(Stage::Deferrer, defer::defer_all(queue.clone(), from.deferred));

        let syncing = budget_sync::run_all(from.budget_syncs, batches.closed());
        tasks.spawn(Stage::BudgetSync, syncing);
        tasks.spawn_infallible(Stage::BatchWatch, batches.clone().watch(ending.clone()));
        tasks.spawn_infallible(Stage::LeaseRenewal, leases::renew_leases(queue.clone(), leases));
        tasks.spawn_infallible(Stage::LeaseRenewal, claims.keep());
        if self.settings.shared {
            let exchange = ShareExchange::new(store.clone(), &self.targets, to.commands);
            tasks.spawn_infallible(Stage::ShareExchange, exchange.run(ending));
        }
        batches
    }

    /// Releases jobs that have no outcome; within the time, or by the end of their locks.
    async fn release(&self, jobs: Vec<BoxedJob>, time: Duration) {
        let jobs: Vec<_> = jobs.into_iter().map(|job| job.into_delivery()).collect();
        let released =
            release::release_all(self.queue.as_ref(), jobs, self.settings.max_deliveries);
        if timeout(time, released).await.is_err() {
            warn!("the queue can't be reached: jobs are handed out again when their locks expire");
        }
    }
}
