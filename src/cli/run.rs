//! `promptmill run`: files of prompts in, one outcome per prompt out, all in this process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::ValueHint;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::BudgetFlags;
use super::input::InputFiles;
use super::local::LocalFlags;
use super::progress::{BatchSize, ProgressDisplay};
use super::summary::{self, RunSummary, ThisRun};
use super::{CommandError, ExitStatus, again, interrupt, print, say, webhook_task};
use crate::config::Config;
use crate::webhook;
use control::batches;
use domain::job::BatchId;
use domain::outcome::OutcomeStatus;
use domain::prices::Prices;
use intake::{self, LineOptions};
use queue::Queue;
use queue::local::LocalQueue;
use report::results::{OutcomeSelection, ResultCounts, ResultPaths, jsonl};
use state::StateDir;
use state::sqlite::Database;
use store::local::LocalStore;
use store::{BatchStore, BatchTotals, OutcomeReader, SortOrder};
use telemetry::{self, WorkerProgress};
use worker::{Worker, WorkerError, WorkerExit, WorkerSettings};

/// Work through files of prompts in this process; run again to resume
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Batch files (JSONL, also .gz and .zst); - is standard input
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    inputs: Vec<PathBuf>,
    /// File for the answers [default: NAME.results.jsonl]; - is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File for everything without an answer [default: NAME.errors.jsonl]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    #[command(flatten)]
    local: LocalFlags,
    /// Name of the batch [default: from the input's name and content]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Model for lines that name none
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Skip lines that are not valid jobs; they go to the error file
    #[arg(long)]
    skip_invalid: bool,
    /// Longest line accepted, in MiB [default: 16]
    #[arg(long, value_name = "MIB")]
    max_line_mib: Option<usize>,
    #[command(flatten)]
    budget: BudgetFlags,
    /// Write the results in input order
    #[arg(long)]
    ordered: bool,
    /// Print the summary as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Show no progress and no summary
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(args: RunArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let config = with_flags(config, &args)?;
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let state = StateDir::lock_exclusive(&config.state.dir)?;
    let prices = Prices::load(config.prices.file.as_deref())?;
    args.budget.limit(&prices)?;
    let reading = LineOptions { must_limit_output: args.budget.is_given(), ..config.reading() };
    let input = InputFiles::read(&args.inputs, reading, state.path()).await?;
    if input.checked.faults > 0 && !args.skip_invalid {
        input.report_faults();
        return Ok(ExitStatus::Usage);
    }
    input.checked.notes.iter().for_each(|note| say(&format!("note: {note}")));
    if input.checked.jobs == 0 {
        let message = "no line of the input is a valid job: nothing to do";
        return Err(CommandError::usage_text(message));
    }
    let (_simulator, config) = args.local.start_simulator(config).await?;
    args.budget.check_prices(&input.checked.models, &config, &prices)?;
    let batch = args.batch.clone().unwrap_or_else(|| input.checked.batch_name(&input.sources));
    let mut job = LocalRun::open(&config, &args, input, batch).await?;
    args.budget.apply(&job.store, &job.batch, &prices).await?;
    let (halt, seconds) = job.work(&config, prices, &stop).await?;
    job.finish(halt, seconds).await
}

/// Applies the flags, the last layer of the configuration.
fn with_flags(config: Config, args: &RunArgs) -> Result<Config, CommandError> {
    let mut config = args.local.apply(config)?;
    config.input.model = args.model.clone().or(config.input.model);
    config.input.max_line_mib = args.max_line_mib.unwrap_or(config.input.max_line_mib).max(1);
    Ok(config)
}

/// One batch, worked through in this process.
struct LocalRun {
    batch: BatchId,
    input: InputFiles,
    queue: Arc<dyn Queue>,
    store: LocalStore,
    paths: ResultPaths,
    order: SortOrder,
    json: bool,
    quiet: bool,
    progress: Arc<WorkerProgress>,
    totals_before: BatchTotals,
    webhook: webhook::WebhookSettings,
}

impl LocalRun {
    async fn open(
        config: &Config,
        args: &RunArgs,
        input: InputFiles,
        batch: BatchId,
    ) -> Result<Self, CommandError> {
        let database = Database::open(&config.state.dir)?;
        let queue =
            LocalQueue::new(database.clone(), config.lease_duration()).only_batch(batch.clone());
        // We alone hold the directory: any process that leased these jobs is dead.
        queue.release_orphans().await?;
        let stem = args.batch.as_ref().map_or_else(|| input.sources[0].stem(), ToString::to_string);
        let file = |ending: &str| PathBuf::from(format!("{stem}.{ending}.jsonl"));
        let paths = ResultPaths {
            out: args.out.clone().unwrap_or_else(|| file("results")),
            errors: args.errors.clone().unwrap_or_else(|| file("errors")),
        };
        paths.check()?;
        let store = LocalStore::new(database);
        let before = store.totals(&batch).await?;
        Ok(Self {
            batch,
            input,
            queue: telemetry::instrument_queue(Arc::new(queue), telemetry::QueueLabels::local()),
            store,
            paths,
            order: if args.ordered { SortOrder::ByPosition } else { SortOrder::AsStored },
            json: args.json,
            quiet: args.quiet,
            progress: Arc::default(),
            totals_before: before,
            webhook: config.webhook.clone(),
        })
    }

    /// Sends the jobs to the queue; cancels `begun` once the first of them are there.
    async fn enqueue(&self, begun: &CancellationToken) -> Result<(), CommandError> {
        let InputFiles { sources, reading, checked } = &self.input;
        let to = (self.queue.as_ref(), &self.store as _);
        let sent = |_| begun.cancel();
        let enqueued = intake::enqueue(sources, reading, checked, &self.batch, to, sent).await;
        let enqueued = enqueued?;
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
    ) -> Result<(WorkerExit, f64), CommandError> {
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
        let shown = self.start_display(config);
        tokio::pin!(working);
        let (halt, seconds) = tokio::select! {
            // The worker ended early, so it needs no more jobs: the next run enqueues the others.
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
        let halt = halt.unwrap_or(Err(WorkerError::Panicked))?;
        Ok((halt, seconds))
    }

    /// Builds a worker that ends once `fed` is cancelled and all jobs have ended.
    fn worker(
        &self,
        config: &Config,
        prices: Prices,
        fed: CancellationToken,
    ) -> Result<Worker, CommandError> {
        telemetry::register_gauges(&self.progress);
        Ok(Worker {
            queue: self.queue.clone(),
            store: Arc::new(self.store.clone()),
            targets: config.targets()?,
            settings: WorkerSettings {
                drain: Some(fed),
                only_batch: Some(self.batch.clone()),
                prices: Some(Arc::new(prices)),
                ..config.worker_settings()
            },
            progress: self.progress.clone(),
        })
    }

    fn start_display(&self, config: &Config) -> Option<ProgressDisplay> {
        let tpm = config.deployments.iter().map(|deployment| deployment.tpm).sum();
        let whole =
            BatchSize { jobs: self.input.checked.jobs, ended_before: self.totals_before.ended() };
        (!self.quiet).then(|| ProgressDisplay::start(self.progress.clone(), Some(whole), tpm))
    }

    async fn finish(&mut self, halt: WorkerExit, seconds: f64) -> Result<ExitStatus, CommandError> {
        let totals = self.store.totals(&self.batch).await?;
        let left = self.input.checked.jobs.saturating_sub(totals.ended());
        let again = format!("{left} jobs are left; nothing is lost: run the same command again");
        match halt {
            WorkerExit::Drained => {}
            WorkerExit::Paused { .. } => {
                summary::say_paused(&self.store, &self.batch).await?;
                say(&format!("{again} then"));
                return Ok(ExitStatus::SomeFailed);
            }
            WorkerExit::Stopped => {
                let cut_off = self.progress.aborted_calls.load(Ordering::Relaxed);
                if cut_off > 0 {
                    say(&format!(
                        "{cut_off} calls did not end within the grace time and may be paid again"
                    ));
                }
                say(&format!("interrupted: {again}"));
                return Ok(ExitStatus::Interrupted);
            }
            WorkerExit::NoDeployment { why } => {
                say(&format!("error: no deployment answers: {why}"));
                say(&format!("{again} when that is fixed"));
                return Ok(ExitStatus::Usage);
            }
            WorkerExit::Unreachable { why } => {
                say(&format!("error: no endpoint can be reached: {why}"));
                say(&again);
                return Ok(ExitStatus::Unreachable);
            }
        }
        if left > 0 {
            // Cannot happen; if it does, the results must not pass for complete.
            let message = format!("{left} jobs have neither an outcome nor a place in the queue");
            return Err(CommandError::new(ExitStatus::Internal, anyhow::anyhow!(message)));
        }
        let written = self.write_results().await?;
        webhook_task::notify_once(&self.webhook, Arc::new(self.store.clone())).await?;
        self.close_batch(&totals).await?;
        let summary = RunSummary {
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
            let text = serde_json::to_string(&summary)?;
            print(&text)?;
        }
        if !self.quiet {
            summary.say();
        }
        let all_succeeded = totals.of(OutcomeStatus::Succeeded) == totals.ended();
        Ok(if all_succeeded && summary.skipped_lines == 0 {
            ExitStatus::AllDone
        } else {
            ExitStatus::SomeFailed
        })
    }

    async fn write_results(&mut self) -> Result<ResultCounts, CommandError> {
        let checked = &mut self.input.checked;
        let faults = |file: &mut dyn io::Write| checked.write_faults(file);
        let selection =
            OutcomeSelection { batch: self.batch.clone(), order: self.order, endings: Vec::new() };
        let written = jsonl::write(&self.store, &selection, &self.paths, faults).await;
        written.map_err(|error| {
            let kept = format!(
                "every outcome is in the state directory, as batch {}; no prompt is sent again",
                self.batch
            );
            again::results_error(error, &kept)
        })
    }

    async fn close_batch(&self, totals: &BatchTotals) -> Result<(), CommandError> {
        let batch = self.store.batch(&self.batch).await?;
        match batch.filter(|batch| totals.ended() >= batch.jobs) {
            Some(batch) => Ok(batches::close(&self.store, &batch.id).await?),
            None => Ok(()),
        }
    }
}
