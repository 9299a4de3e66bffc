//! `promptmill run`: a file of prompts in, one outcome a prompt out, all in this process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use clap::ValueHint;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::budget::BudgetFlags;
use super::endpoint::{EndpointFlags, LimitFlags};
use super::input::Input;
use super::progress::{Shown, Whole};
use super::summary::{self, Summary, ThisRun};
use super::{Exit, Failure, interrupt, print, say, telling};
use crate::config::{Config, Deployment};
use crate::intake::{self, EnqueueError, Reading};
use crate::job::BatchId;
use crate::outcome::Ending;
use crate::prices::Prices;
use crate::queue::Queue;
use crate::queue::local::LocalQueue;
use crate::report::batches;
use crate::report::results::{Paths, Selection, Written, jsonl};
use crate::simulator::{self, Simulator};
use crate::sqlite::Database;
use crate::state::StateDir;
use crate::store::local::LocalStore;
use crate::store::{Order, Store, Totals};
use crate::telemetry;
use crate::webhook;
use crate::worker::{Halt, Progress, Settings, Worker, WorkerError};

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
    /// Where the queue and the outcomes are kept [default: .promptmill]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Answer from the built-in Azure OpenAI simulator: no key, no network, no cost
    #[arg(long, conflicts_with = "endpoint")]
    simulate: bool,
    #[command(flatten)]
    at: EndpointFlags,
    /// The deployment's name, where it is not the jobs' model
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    deployment: Option<String>,
    /// The batch's name [default: from the input's name and content]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    #[command(flatten)]
    limits: LimitFlags,
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
    let _simulator;
    let config = if args.simulate {
        let (simulator, config) = simulated(config).await?;
        _simulator = simulator;
        config
    } else {
        config
    };
    args.budget.check_prices(&input.checked.models, &config, &prices)?;
    let batch = args.batch.clone().unwrap_or_else(|| input.checked.batch_name(&input.sources));
    let mut job = Run::open(&config, &args, input, batch).await?;
    args.budget.give(&job.store, &job.batch, &prices).await?;
    job.enqueue().await?;
    let (halt, seconds) = job.work(&config, prices, stop).await?;
    job.finish(halt, seconds).await
}

/// Flags are the last layer of the configuration.
fn with_flags(mut config: Config, args: &Args) -> Result<Config, Failure> {
    if let Some(dir) = &args.state {
        config.state.dir.clone_from(dir);
    }
    config.input.model = args.model.clone().or(config.input.model);
    config.input.max_line_mib = args.max_line_mib.unwrap_or(config.input.max_line_mib).max(1);
    if args.at.endpoint.is_some() || args.simulate {
        let given = args.at.deployment(args.deployment.as_deref());
        let name = args.simulate.then(|| "simulator".into());
        config.deployments = vec![Deployment { name, ..given }];
    }
    if config.deployments.is_empty() {
        return Err(Failure::usage(anyhow::anyhow!(
            "no endpoint to send the prompts to: give --endpoint URL, \
             or --simulate to try it without one"
        )));
    }
    args.limits.set(&mut config.deployments)?;
    Ok(config)
}

/// Starts the simulator with the quota that the deployment was given.
async fn simulated(mut config: Config) -> Result<(Simulator, Config), Failure> {
    let one = &mut config.deployments[0];
    let settings = simulator::Settings {
        tpm: one.tpm,
        rpm: one.rpm,
        ledger_samples: false,
        ..simulator::Settings::default()
    };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = simulator::start(address, settings).await.map_err(Failure::unreachable)?;
    one.endpoint = format!("http://{}/openai/v1", simulator.addr());
    Ok((simulator, config))
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

    async fn enqueue(&self) -> Result<(), Failure> {
        let Input { sources, reading, checked } = &self.input;
        let to = (self.queue.as_ref(), &self.store as _);
        let enqueued = intake::enqueue(sources, reading, checked, &self.batch, to, |_| {}).await;
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

    async fn work(
        &self,
        config: &Config,
        prices: Prices,
        stop: CancellationToken,
    ) -> Result<(Halt, f64), Failure> {
        let targets = config.targets().map_err(Failure::usage)?;
        let tpm = targets.iter().map(|target| target.member.limits.tpm).sum();
        let shown = (!self.quiet).then(|| {
            let whole = Whole { jobs: self.input.checked.jobs, ended_before: self.before.ended() };
            Shown::start(self.progress.clone(), Some(whole), tpm)
        });
        telemetry::watch(&self.progress);
        let worker = Worker {
            queue: self.queue.clone(),
            store: Arc::new(self.store.clone()),
            targets,
            settings: Settings {
                only: Some(self.batch.clone()),
                prices: Some(Arc::new(prices)),
                ..config.worker(true)
            },
            progress: self.progress.clone(),
        };
        let began = Instant::now();
        // On the runtime's own threads, so that its tasks wake each other without crossing threads.
        let halt = tokio::spawn(worker.run(stop)).await;
        drop(shown);
        let halt = halt.unwrap_or(Err(WorkerError::Panicked)).map_err(|error| match error {
            WorkerError::Panicked => Failure { error: error.into(), exit: Exit::Unreachable },
            error => Failure::unreachable(error),
        })?;
        Ok((halt, began.elapsed().as_secs_f64()))
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
