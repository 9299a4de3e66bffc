//! `promptmill run`: a file of prompts in, one outcome a prompt out, all in this process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::ValueHint;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::BudgetFlags;
use super::input::Input;
use super::local::LocalFlags;
use super::progress::{Shown, Whole};
use super::summary::{self, Summary, ThisRun};
use super::{Exit, Failure, interrupt, print, say, telling};
use crate::config::Config;
use crate::webhook;
use control::batches;
use domain::job::BatchId;
use domain::outcome::Ending;
use domain::prices::Prices;
use intake::{self, EnqueueError, Reading};
use queue::Queue;
use queue::local::LocalQueue;
use report::results::{Paths, Selection, Written, jsonl};
use state::StateDir;
use state::sqlite::Database;
use store::local::LocalStore;
use store::{Order, Store, Totals};
use telemetry::{self, Progress};
use worker::{Halt, Settings, Worker, WorkerError};

/// Put files of prompts through a deployment, here and now; run again to resume
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Batch files (JSONL, also .gz and .zst); - is standard input
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    inputs: Vec<PathBuf>,
    /// Answers go here [default: NAME.results.jsonl]; - is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// All that has no answer goes here [default: NAME.errors.jsonl]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    #[command(flatten)]
    local: LocalFlags,
    /// The batch's name [default: from the input's name and content]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// The model of lines that name none
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Go on without the lines that are no jobs; they go to the error file
    #[arg(long)]
    skip_invalid: bool,
    /// The longest line that is read [default: 16]
    #[arg(long, value_name = "MIB")]
    max_line_mib: Option<usize>,
    #[command(flatten)]
    budget: BudgetFlags,
    /// Write the results in the order of the input
    #[arg(long)]
    ordered: bool,
    /// Print the summary as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Show no progress and no summary
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let config = with_flags(config, &args)?;
    let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
    let state = StateDir::hold(&config.state.dir).map_err(Failure::usage)?;
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    args.budget.limit(&prices)?;
    let reading = Reading { is_bounded: args.budget.is_given(), ..config.reading() };
    let input = Input::read(&args.inputs, reading, state.path()).await?;
    if input.checked.faults > 0 && !args.skip_invalid {
        input.report_faults();
        return Ok(Exit::Usage);
    }
    input.checked.notes.iter().for_each(|note| say(&format!("note: {note}")));
    if input.checked.jobs == 0 {
        let message = "no line of the input is a job: nothing to do";
        return Err(Failure::usage(anyhow::anyhow!(message)));
    }
    let (_simulator, config) = args.local.answering(config).await?;
    args.budget.check_prices(&input.checked.models, &config, &prices)?;
    let batch = args.batch.clone().unwrap_or_else(|| input.checked.batch_name(&input.sources));
    let mut job = Run::open(&config, &args, input, batch).await?;
    args.budget.give(&job.store, &job.batch, &prices).await?;
    let (halt, seconds) = job.work(&config, prices, &stop).await?;
    job.finish(halt, seconds).await
}

/// Flags are the last layer of the configuration.
fn with_flags(config: Config, args: &Args) -> Result<Config, Failure> {
    let mut config = args.local.apply(config)?;
    config.input.model = args.model.clone().or(config.input.model);
    config.input.max_line_mib = args.max_line_mib.unwrap_or(config.input.max_line_mib).max(1);
    Ok(config)
}

/// One batch on its way through this process.
struct Run {
    batch: BatchId,
    input: Input,
    queue: Arc<dyn Queue>,
    store: LocalStore,
    paths: Paths,
    order: Order,
    json: bool,
    quiet: bool,
    progress: Arc<Progress>,
    before: Totals,
    webhook: webhook::Settings,
}

impl Run {
    async fn open(
        config: &Config,
        args: &Args,
        input: Input,
        batch: BatchId,
    ) -> Result<Self, Failure> {
        let database = Database::open(&config.state.dir).map_err(Failure::usage)?;
        let queue = LocalQueue::new(database.clone(), config.lock_duration()).only(batch.clone());
        // The directory is ours alone: whoever held these jobs is dead.
        queue.release_orphans().await.map_err(Failure::unreachable)?;
        let stem = args.batch.as_ref().map_or_else(|| input.sources[0].stem(), ToString::to_string);
        let file = |ending: &str| PathBuf::from(format!("{stem}.{ending}.jsonl"));
        let paths = Paths {
            out: args.out.clone().unwrap_or_else(|| file("results")),
            errors: args.errors.clone().unwrap_or_else(|| file("errors")),
        };
        let store = LocalStore::new(database);
        let before = store.totals(&batch).await.map_err(Failure::unreachable)?;
        Ok(Self {
            batch,
            input,
            queue: telemetry::observed(Arc::new(queue), telemetry::Labels::local()),
            store,
            paths,
            order: if args.ordered { Order::ByPosition } else { Order::AsStored },
            json: args.json,
            quiet: args.quiet,
            progress: Arc::default(),
            before,
            webhook: config.webhook.clone(),
        })
    }

    /// Brings the jobs to the queue; tells when the first of them are there.
    async fn enqueue(&self, begun: &CancellationToken) -> Result<(), Failure> {
        let Input { sources, reading, checked } = &self.input;
        let to = (self.queue.as_ref(), &self.store as _);
        let sent = |_| begun.cancel();
        let enqueued = intake::enqueue(sources, reading, checked, &self.batch, to, sent).await;
        let enqueued = enqueued.map_err(|error| match error {
            EnqueueError::Changed { .. }
            | EnqueueError::InputChanged { .. }
            | EnqueueError::Cancelled(_)
            | EnqueueError::Budgeted { .. } => Failure::usage(error),
            error => Failure::unreachable(error),
        })?;
        if !self.quiet {
            let tokens = enqueued.prompt_tokens;
            let known = match enqueued.known {
                0 => String::new(),
                known => format!(", {known} of them done before"),
            };
            say(&format!(
                "batch {}: {} jobs{known}, {tokens} prompt tokens",
                self.batch, enqueued.jobs
            ));
        }
        Ok(())
    }

    /// Works on the first jobs while the last are still being read.
    async fn work(
        &self,
        config: &Config,
        prices: Prices,
        stop: &CancellationToken,
    ) -> Result<(Halt, f64), Failure> {
        let (begun, fed) = (CancellationToken::new(), CancellationToken::new());
        let stop = stop.child_token();
        let worker = self.worker(config, prices, fed.clone())?;
        let working = async {
            begun.cancelled().await;
            let began = Instant::now();
            // On the runtime's own threads, so that its tasks wake each other without crossing threads.
            let halt = tokio::spawn(worker.run(stop.clone())).await;
            (halt, began.elapsed().as_secs_f64())
        };
        let shown = self.show(config);
        tokio::pin!(working);
        let (halt, seconds) = tokio::select! {
            // It needs no more jobs then: the next run brings the others.
            worked = &mut working => worked,
            enqueued = self.enqueue(&begun) => {
                if let Err(failure) = enqueued {
                    stop.cancel();
                    if begun.is_cancelled() {
                        let _ = working.await;
                    }
                    return Err(failure);
                }
                begun.cancel();
                fed.cancel();
                working.await
            }
        };
        drop(shown);
        let halt = halt.unwrap_or(Err(WorkerError::Panicked)).map_err(|error| match error {
            WorkerError::Panicked => Failure { error: error.into(), exit: Exit::Unreachable },
            error => Failure::unreachable(error),
        })?;
        Ok((halt, seconds))
    }

    /// A worker that ends once it is told that all jobs are there, and all have ended.
    fn worker(
        &self,
        config: &Config,
        prices: Prices,
        fed: CancellationToken,
    ) -> Result<Worker, Failure> {
        telemetry::watch(&self.progress);
        Ok(Worker {
            queue: self.queue.clone(),
            store: Arc::new(self.store.clone()),
            targets: config.targets().map_err(Failure::usage)?,
            settings: Settings {
                drain: Some(fed),
                only: Some(self.batch.clone()),
                prices: Some(Arc::new(prices)),
                ..config.worker()
            },
            progress: self.progress.clone(),
        })
    }

    fn show(&self, config: &Config) -> Option<Shown> {
        let tpm = config.deployments.iter().map(|deployment| deployment.tpm).sum();
        let whole = Whole { jobs: self.input.checked.jobs, ended_before: self.before.ended() };
        (!self.quiet).then(|| Shown::start(self.progress.clone(), Some(whole), tpm))
    }

    async fn finish(&mut self, halt: Halt, seconds: f64) -> Result<Exit, Failure> {
        let totals = self.store.totals(&self.batch).await.map_err(Failure::unreachable)?;
        let left = self.input.checked.jobs.saturating_sub(totals.ended());
        let again = format!("{left} jobs are left; nothing is lost: run the same command again");
        match halt {
            Halt::Drained => {}
            Halt::Paused { .. } => {
                summary::say_paused(&self.store, &self.batch).await?;
                say(&format!("{again} then"));
                return Ok(Exit::SomeFailed);
            }
            Halt::Stopped => {
                let cut_off = self.progress.cut_off.load(Ordering::Relaxed);
                if cut_off > 0 {
                    say(&format!(
                        "{cut_off} calls did not end within the grace time and may be paid again"
                    ));
                }
                say(&format!("interrupted: {again}"));
                return Ok(Exit::Interrupted);
            }
            Halt::NoDeployment { why } => {
                say(&format!("error: no deployment answers: {why}"));
                say(&format!("{again} when that is mended"));
                return Ok(Exit::Usage);
            }
            Halt::Unreachable { why } => {
                say(&format!("error: no endpoint can be reached: {why}"));
                say(&again);
                return Ok(Exit::Unreachable);
            }
        }
        if left > 0 {
            // Cannot happen; if it does, nobody shall take the results for whole.
            let message = format!("{left} jobs have neither an outcome nor a place in the queue");
            return Err(Failure { error: anyhow::anyhow!(message), exit: Exit::SomeFailed });
        }
        let written = self.write_results().await?;
        telling::tell(&self.webhook, Arc::new(self.store.clone())).await?;
        self.close_batch(&totals).await?;
        let summary = Summary {
            batch: &self.batch,
            jobs: self.input.checked.jobs,
            totals: &totals,
            skipped_lines: self.input.checked.faults,
            run: ThisRun::new(&self.progress, seconds),
            results: &self.paths.out,
            errors: &self.paths.errors,
            written,
        };
        if self.json {
            let text = serde_json::to_string(&summary).map_err(Failure::unreachable)?;
            print(&text);
        }
        if !self.quiet {
            summary.say();
        }
        let all_succeeded = totals.of(Ending::Succeeded) == totals.ended();
        Ok(if all_succeeded && summary.skipped_lines == 0 {
            Exit::AllDone
        } else {
            Exit::SomeFailed
        })
    }

    async fn write_results(&mut self) -> Result<Written, Failure> {
        let checked = &mut self.input.checked;
        let faults = |file: &mut dyn io::Write| checked.write_faults(file);
        let selection =
            Selection { batch: self.batch.clone(), order: self.order, endings: Vec::new() };
        jsonl::write(&self.store, &selection, &self.paths, faults)
            .await
            .map_err(Failure::unreachable)
    }

    async fn close_batch(&self, totals: &Totals) -> Result<(), Failure> {
        let batch = self.store.batch(&self.batch).await.map_err(Failure::unreachable)?;
        match batch.filter(|batch| totals.ended() >= batch.jobs) {
            Some(batch) => {
                batches::close(&self.store, &batch.id).await.map_err(Failure::unreachable)
            }
            None => Ok(()),
        }
    }
}
