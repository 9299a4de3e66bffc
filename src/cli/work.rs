//! `promptmill work`: one worker of any number, on the configured queue and store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::progress::Shown;
use super::telling::Telling;
use super::{Exit, Failure, interrupt, say, summary};
use crate::backends::{self, Backends};
use crate::config::Config;
use control::batches;
use domain::outcome::Ending;
use domain::prices::Prices;
use telemetry::{self, Progress};
use worker::{Halt, Settings, Worker, WorkerError, all_queued};

/// Work on the configured queue, beside as many other workers as you like, until SIGTERM
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End when the queue is empty and everything is settled
    #[arg(long)]
    drain: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    // First of all: who starts workers may end one that has only just begun.
    let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
    let targets = config.targets().map_err(Failure::usage)?;
    if targets.is_empty() {
        let message = "no endpoint to send the prompts to: set one in [[deployments]]";
        return Err(Failure::usage(anyhow::anyhow!(message)));
    }
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    let backends = backends::open(&config).await?;
    let progress = Arc::<Progress>::default();
    let tpm = targets.iter().map(|target| target.member.limits.tpm).sum();
    let shown = Shown::start(progress.clone(), None, tpm);
    telemetry::watch(&progress);
    let worker = Worker {
        queue: backends.queue.clone(),
        store: backends.store.clone(),
        targets,
        settings: Settings {
            shared: true,
            prices: Some(Arc::new(prices)),
            drain: args.drain.then(all_queued),
            ..config.worker()
        },
        progress: progress.clone(),
    };
    let telling = Telling::start(&config.webhook, &backends.store, &progress)?;
    let halt = tokio::spawn(worker.run(stop)).await.unwrap_or(Err(WorkerError::Panicked));
    if let Some(telling) = telling {
        telling.finish(matches!(halt, Ok(Halt::Drained))).await;
    }
    drop(shown);
    let exit = finish(&backends, halt, &progress).await;
    // What was settled must be through before the process ends.
    backends.queue.close().await;
    exit
}

async fn finish(
    backends: &Backends,
    halt: Result<Halt, WorkerError>,
    progress: &Progress,
) -> Result<Exit, Failure> {
    let halt = halt.map_err(Failure::unreachable)?;
    let count = |ending| progress.of(ending);
    let endings = Ending::ALL.into_iter().filter(|ending| count(*ending) > 0);
    let endings: Vec<_> = endings.map(|ending| format!("{} {ending}", count(ending))).collect();
    say(&format!(
        "this worker: {}; {} tokens, {} passing faults, {} refused for quota (429)",
        if endings.is_empty() { "no job".to_owned() } else { endings.join(", ") },
        progress.tokens(),
        progress.faults.load(Ordering::Relaxed),
        progress.throttled.load(Ordering::Relaxed)
    ));
    if let Some(expense) = backends.store.expense() {
        summary::say_expense(&expense, progress.ended());
    }
    match halt {
        Halt::Drained => {
            batches::close_finished(backends.store.as_ref()).await.map_err(Failure::unreachable)?;
            let all_succeeded = progress.of(Ending::Succeeded) == progress.ended();
            Ok(if all_succeeded { Exit::AllDone } else { Exit::SomeFailed })
        }
        Halt::Paused { batches } => {
            let store = backends.store.as_ref();
            batches::close_finished(store).await.map_err(Failure::unreachable)?;
            for id in &batches {
                summary::say_paused(store, id).await?;
            }
            Ok(Exit::SomeFailed)
        }
        Halt::Stopped => {
            let cut_off = progress.cut_off.load(Ordering::Relaxed);
            if cut_off > 0 {
                say(&format!("{cut_off} calls outlived the grace time and may be paid again"));
            }
            Ok(Exit::AllDone)
        }
        Halt::NoDeployment { why } => {
            say(&format!("error: no deployment answers: {why}"));
            Ok(Exit::Usage)
        }
        Halt::Unreachable { why } => {
            say(&format!("error: no endpoint can be reached: {why}"));
            Ok(Exit::Unreachable)
        }
    }
}
