//! `promptmill work`: one worker of any number, on the configured queue and store.

use super::exit::{CommandError, ExitStatus};
use super::failure_rate::FailureRateFlag;
use super::progress::ProgressDisplay;
use super::{charges, interrupt, worker_end};
use crate::app::queue_worker::QueueWorker;
use crate::config::Config;
use domain::outcome::OutcomeStatus;
use worker::WorkerExit;

/// Work on the configured queue, beside any number of other workers, until SIGTERM
#[derive(Debug, clap::Args)]
pub(super) struct WorkArgs {
    /// End when the queue is empty and everything is settled
    #[arg(long)]
    drain: bool,
    #[command(flatten)]
    failure_rate: FailureRateFlag,
}

pub(super) async fn run(args: WorkArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    // First of all: a supervisor may stop a worker that has only just started.
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    args.failure_rate.apply(&mut config);
    let worker = QueueWorker::open(&config, args.drain).await?;
    let progress = &worker.progress;
    let shown = ProgressDisplay::start(progress.clone(), None, worker.tpm());
    let ended = worker.work(stop).await;
    drop(shown);
    charges::say_worker(progress, worker.store().charges().as_ref());
    let exit = ended?;
    let again = "its jobs stay in the queue: start a worker again";
    match worker_end::say_end(&exit, progress, worker.store(), again).await? {
        // A worker works until it is stopped.
        Some(_) if exit == WorkerExit::Stopped => Ok(ExitStatus::AllDone),
        Some(status) => Ok(status),
        None => {
            let succeeded = progress.of(OutcomeStatus::Succeeded);
            Ok(ExitStatus::of_jobs(succeeded == progress.ended()))
        }
    }
}
