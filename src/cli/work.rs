//! `promptmill work`: one worker of any number, on the configured queue and store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::progress::ProgressDisplay;
use super::webhook_task::WebhookTask;
use super::{CommandError, ExitStatus, interrupt, say, summary};
use crate::backends::{self, Backends};
use crate::config::Config;
use control::batches;
use domain::outcome::OutcomeStatus;
use domain::prices::Prices;
use telemetry::{self, WorkerProgress};
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings, all_queued};

/// Work on the configured queue, beside any number of other workers, until SIGTERM
#[derive(Debug, clap::Args)]
pub(super) struct WorkArgs {
    /// End when the queue is empty and everything is settled
    #[arg(long)]
    drain: bool,
}

pub(super) async fn run(args: WorkArgs, config: Config) -> Result<ExitStatus, CommandError> {
    // First of all: a supervisor may stop a worker that has only just started.
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let targets = config.targets()?;
    if targets.is_empty() {
        let message = "no endpoint to send the prompts to: set one in [[deployments]]";
        return Err(CommandError::usage_text(message));
    }
    let prices = Prices::load(config.prices.file.as_deref())?;
    let backends = backends::open(&config).await?;
    let progress = Arc::<WorkerProgress>::default();
    let tpm = targets.iter().map(|target| target.member.limits.tpm).sum();
    let shown = ProgressDisplay::start(progress.clone(), None, tpm);
    telemetry::register_gauges(&progress);
    let worker = Worker {
        queue: backends.queue.clone(),
        store: backends.store.clone(),
        targets,
        settings: WorkerSettings {
            shared: true,
            prices: Some(Arc::new(prices)),
            drain: args.drain.then(all_queued),
            ..config.worker_settings()
        },
        progress: progress.clone(),
    };
    let telling = WebhookTask::start(&config.webhook, &backends.store, &progress)?;
    let halt = tokio::spawn(worker.run(stop)).await.unwrap_or(Err(WorkerError::Panicked));
    if let Some(telling) = telling {
        telling.finish(matches!(halt, Ok(WorkerExit::Drained))).await;
    }
    drop(shown);
    let exit = finish(&backends, halt, &progress).await;
    // Settlements must reach the queue before the process ends.
    backends.queue.close().await;
    exit
}

async fn finish(
    backends: &Backends,
    halt: Result<WorkerExit, WorkerError>,
    progress: &WorkerProgress,
) -> Result<ExitStatus, CommandError> {
    let halt = halt?;
    let count = |ending| progress.of(ending);
    let endings = OutcomeStatus::ALL.into_iter().filter(|ending| count(*ending) > 0);
    let endings: Vec<_> = endings.map(|ending| format!("{} {ending}", count(ending))).collect();
    say(&format!(
        "this worker: {}; {} tokens, {} transient errors, {} throttled (429)",
        if endings.is_empty() { "no job".to_owned() } else { endings.join(", ") },
        progress.tokens(),
        progress.transient_errors.load(Ordering::Relaxed),
        progress.throttled.load(Ordering::Relaxed)
    ));
    if let Some(expense) = backends.store.charges() {
        summary::say_request_units(&expense, progress.ended());
    }
    match halt {
        WorkerExit::Drained => {
            batches::close_finished(backends.store.as_ref()).await?;
            let all_succeeded = progress.of(OutcomeStatus::Succeeded) == progress.ended();
            Ok(if all_succeeded { ExitStatus::AllDone } else { ExitStatus::SomeFailed })
        }
        WorkerExit::Paused { batches } => {
            let store = backends.store.as_ref();
            batches::close_finished(store).await?;
            for id in &batches {
                summary::say_paused(store, id).await?;
            }
            Ok(ExitStatus::SomeFailed)
        }
        WorkerExit::Stopped => {
            let cut_off = progress.aborted_calls.load(Ordering::Relaxed);
            if cut_off > 0 {
                say(&format!(
                    "{cut_off} calls did not end within the grace time and may be paid again"
                ));
            }
            Ok(ExitStatus::AllDone)
        }
        WorkerExit::NoDeployment { why } => {
            say(&format!("error: no deployment answers: {why}"));
            Ok(ExitStatus::Usage)
        }
        WorkerExit::Unreachable { why } => {
            say(&format!("error: no endpoint can be reached: {why}"));
            Ok(ExitStatus::Unreachable)
        }
    }
}
