//! `promptmill documents`: a night's work over a folder or container of documents.

mod preview;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use clap::ValueHint;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::counted::Counted;
use super::local::LocalFlags;
use super::{Exit, Failure, interrupt, print, say, telling};
use crate::backends::{self, Backends};
use crate::config::Config;
use crate::control::{self, ControlError};
use crate::documents::asks::{Asks, Terms};
use crate::documents::conduct::{ConductError, Conductor, Finish};
use crate::documents::gather::{Earlier, GatherError, Reading, gather};
use crate::documents::morning::{Morning, Tally};
use crate::documents::night::{Begun, Hold, NightError, Wanted};
use crate::documents::read::Limits;
use crate::documents::source::{Source, SourceError};
use crate::documents::table::{Form, TableError};
use crate::documents::{Recipe, ledger::Ledger};
use crate::intake;
use crate::job::BatchId;
use crate::plan::{self, Circumstances, Due, Experience};
use crate::prices::Prices;
use crate::queue::Queue;
use crate::queue::local::LocalQueue;
use crate::sqlite::Database;
use crate::state::StateDir;
use crate::store::Store;
use crate::store::local::LocalStore;
use crate::telemetry;
use crate::worker::{Halt, Progress, Settings, Worker, WorkerError};

/// Put documents through a recipe's prompts; what earlier nights answered is not asked again
///
/// Without --run the prompts go to the configured queue, for workers to take, and this waits for their
/// answers. It may be started any number of times: a night that is open goes on, and one that somebody
/// conducts already is left to them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder, or https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX] [default: documents.source
    /// of the configuration]
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::DirPath)]
    source: Option<String>,
    /// What is asked about them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    recipe: PathBuf,
    /// The answers as a table: .csv, .parquet or .jsonl
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    table: Option<PathBuf>,
    /// The night's name [default: the recipe's and the date]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Ask again what was refused or did not fit its schema on earlier nights
    #[arg(long)]
    retry_failed: bool,
    /// End when the first prompts are in the queue; start it again for what follows, and for the table
    #[arg(long, conflicts_with_all = ["run", "table"])]
    no_wait: bool,
    /// Print the first N documents' prompts, tokens and cost, and call nothing
    #[arg(long, value_name = "N", conflicts_with_all = ["run", "table", "no_wait", "batch_file"])]
    preview: Option<usize>,
    /// Write the prompts about the documents as a batch file, and call nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["run", "table", "no_wait"])]
    batch_file: Option<PathBuf>,
    /// Print the night's report as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    when: When,
    /// Work here, on the embedded queue and store, until all is answered
    #[arg(long)]
    run: bool,
    #[command(flatten)]
    local: LocalFlags,
}

#[derive(Debug, clap::Args)]
struct When {
    /// By when it is wanted: a time of day, or a moment with its zone. What has not been sent then is
    /// left to the next night
    #[arg(long, value_name = "TIME")]
    finish_by: Option<Due>,
    /// The time zone of times of day, such as Asia/Tokyo [default: the machine's]
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
    /// Ask nothing if it can't be done by --finish-by
    #[arg(long, requires = "finish_by")]
    strict: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let recipe = Arc::new(Recipe::load(&args.recipe).map_err(Failure::usage)?);
    if let Some(table) = &args.table {
        Form::of(table).map_err(Failure::usage)?;
    }
    let (_simulator, config) = args.answering(config).await?;
    let given = args.source.as_ref().or(config.documents.source.as_ref());
    let given =
        given.ok_or_else(|| Failure::usage(anyhow!("say where the documents are: --source")))?;
    let source = Source::open(given, &config.documents).await.map_err(of_source)?;
    let reader = std::env::current_exe().map_err(Failure::unreachable)?;
    let limits = Limits { file_bytes: recipe.max_file_mib << 20, ..Limits::default() };
    let scratch = tempfile::tempdir().map_err(Failure::unreachable)?;
    let reading = Reading {
        source: &source,
        recipe: &recipe,
        reader: &reader,
        limits: &limits,
        scratch: scratch.path().to_owned(),
    };
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    if let Some(count) = args.preview {
        return preview::show(&reading, count, &prices).await;
    }
    if let Some(path) = &args.batch_file {
        return preview::write(&reading, path).await;
    }
    let night = Night { args: &args, config: &config, recipe: &recipe, reading: &reading, prices };
    night.conduct().await
}

impl Args {
    /// The configuration with the flags of `--run` laid over, and the simulator if it is to answer.
    async fn answering(
        &self,
        config: Config,
    ) -> Result<(Option<crate::simulator::Simulator>, Config), Failure> {
        match (self.run, self.local.any()) {
            (true, _) => self.local.answering(self.local.apply(config)?).await,
            (false, false) => Ok((None, config)),
            (false, true) => Err(Failure::usage(anyhow!(
                "--simulate, --endpoint, --state and the limits go with --run; without it, workers \
                 call what their configuration says"
            ))),
        }
    }
}

/// One start of a night.
struct Night<'a> {
    args: &'a Args,
    config: &'a Config,
    recipe: &'a Arc<Recipe>,
    reading: &'a Reading<'a>,
    prices: Prices,
}

/// Where the night's jobs and answers are.
enum Place {
    /// Here: this process is the one worker, and nobody else uses the directory.
    Here {
        database: Database,
        store: Arc<LocalStore>,
        _state: StateDir,
    },
    There(Backends),
}

impl Night<'_> {
    async fn conduct(self) -> Result<Exit, Failure> {
        let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
        let place = self.place().await?;
        let store = place.store();
        let wanted = self.wanted()?;
        let hold = match Hold::take(store.clone(), &self.recipe.name, self.args.run).await {
            Err(error @ NightError::AtWork { .. }) => {
                say(&format!("nothing to do here: {error}"));
                return Ok(Exit::AllDone);
            }
            taken => Arc::new(taken.map_err(of_night)?),
        };
        let done = CancellationToken::new();
        let _ended = done.clone().drop_guard();
        let keeping = tokio::spawn({
            let hold = hold.clone();
            async move { hold.keep_until(done).await }
        });
        let begun = hold.begin(&wanted).await.map_err(of_night)?;
        let ended = self.go(&place, &begun, &hold, &stop).await;
        if !matches!(ended, Ok((_, true))) {
            hold.release().await.map_err(of_night)?;
        }
        drop(_ended);
        keeping.await.map_err(Failure::unreachable)?;
        place.close().await;
        ended.map(|(exit, _)| exit)
    }

    async fn place(&self) -> Result<Place, Failure> {
        if !self.args.run {
            return Ok(Place::There(backends::open(self.config).await?));
        }
        let state = StateDir::hold(&self.config.state.dir).map_err(Failure::usage)?;
        let database = Database::open(&self.config.state.dir).map_err(Failure::usage)?;
        let store = Arc::new(LocalStore::new(database.clone()));
        Ok(Place::Here { database, store, _state: state })
    }

    fn wanted(&self) -> Result<Wanted, Failure> {
        let when = &self.args.when;
        let zone = plan::zone(when.time_zone.as_deref()).map_err(Failure::usage)?;
        let now = Timestamp::now();
        let finish_by = when.finish_by.map(|due| due.after(now, &zone));
        if finish_by.is_some_and(|by| by <= now) {
            return Err(Failure::usage(anyhow!("--finish-by is over already")));
        }
        // A night has the name of its morning.
        let date = finish_by.unwrap_or(now).to_zoned_datetime(zone).date();
        Ok(Wanted { batch: self.args.batch.clone(), finish_by, date })
    }

    /// The night up to its end, or as far as it goes; whether it is closed.
    async fn go(
        &self,
        place: &Place,
        begun: &Begun,
        hold: &Hold,
        stop: &CancellationToken,
    ) -> Result<(Exit, bool), Failure> {
        let Begun { night, goes_on, others, ledger } = begun;
        let store = place.store();
        say(&format!(
            "night {}{}",
            night.batch,
            if *goes_on { ", which is open: it goes on" } else { "" }
        ));
        give_up(store.as_ref(), others).await?;
        let earlier = Earlier {
            store: store.as_ref(),
            ledger,
            open: others,
            retry_failed: self.args.retry_failed,
            schema: self.recipe.schema.as_ref(),
        };
        let terms = Terms { document: String::new(), recipe: self.recipe.name.clone() };
        let mut asks = Asks::new(&self.reading.scratch).map_err(Failure::unreachable)?;
        let shown = Counted::start("documents read", 0);
        let seen = |count: usize, all: usize| shown.set_of(count as u64, all as u64);
        let documents =
            gather(self.reading, &earlier, &mut asks, &terms, seen).await.map_err(of_gathering)?;
        drop(shown);
        if !self.fits(&asks, night.finish_by).await? {
            return Ok((Exit::SomeFailed, false));
        }
        let queue = place.queue(self.config, &night.batch).await?;
        let batches = ledger.batches.iter().chain(others).chain([&night.batch]).cloned();
        let batches: Vec<_> = batches.collect();
        let mut conductor = Conductor {
            recipe: self.recipe,
            queue: queue.as_ref(),
            store: store.as_ref(),
            earlier: &earlier,
            batch: night.batch.clone(),
            tonight: u16::try_from(batches.len() - 1).map_err(Failure::unreachable)?,
            batches,
            reading: self.jobs_by(night.finish_by),
            terms,
            asks,
            documents,
            unfit: 0,
        };
        let finish = self.work(&mut conductor, place, &queue, hold, stop).await?;
        match finish {
            Finish::Over | Finish::Cancelled => {}
            Finish::Stopped => {
                say("stopped: nothing is lost; start it again to go on");
                return Ok((Exit::Interrupted, false));
            }
            Finish::Sent => {
                let asked = conductor.asks.asked().len();
                say(&format!("{asked} prompts are in the queue; start it again for what follows"));
                return Ok((Exit::AllDone, false));
            }
        }
        let morning = self.finish(&mut conductor, begun, hold).await?;
        telling::tell(&self.config.webhook, store).await?;
        Ok((self.tell(&morning)?, true))
    }

    /// How requests are read as jobs.
    fn jobs_by(&self, deadline: Option<Timestamp>) -> intake::Reading {
        let terms = intake::Terms { deadline, ..intake::Terms::default() };
        intake::Reading { terms, ..self.config.reading() }
    }

    /// Writes the table and closes the night.
    async fn finish(
        &self,
        conductor: &mut Conductor<'_>,
        Begun { night, ledger, .. }: &Begun,
        hold: &Hold,
    ) -> Result<Morning, Failure> {
        let mut tally = Tally::default();
        let table = self.args.table.as_deref();
        let written = conductor.write_table(table, |row| tally.add(row)).await;
        written.map_err(|error| match error {
            TableError::Form(_) => Failure::usage(error),
            error => Failure::unreachable(error),
        })?;
        let times = (night.begun_at, night.finish_by);
        let morning = conductor.morning(tally, &self.prices, times).await;
        hold.close(&known_after(conductor, ledger, self.recipe)).await.map_err(of_night)?;
        morning.map_err(Failure::unreachable)
    }

    fn tell(&self, morning: &Morning) -> Result<Exit, Failure> {
        if self.args.json {
            print(&serde_json::to_string(morning).map_err(Failure::unreachable)?);
        }
        text::say_morning(morning, &self.prices);
        let is_whole =
            morning.rows.failed + morning.rows.unfinished + morning.documents.unread == 0;
        Ok(if is_whole { Exit::AllDone } else { Exit::SomeFailed })
    }

    /// Whether the night may begin: what is asked now is planned against the quota.
    async fn fits(&self, asks: &Asks, finish_by: Option<Timestamp>) -> Result<bool, Failure> {
        let Some(by) = finish_by.filter(|_| !asks.asked().is_empty()) else { return Ok(true) };
        if self.config.deployments.is_empty() {
            say(
                "no deployment is configured here, so it can't be told whether it will be done in time",
            );
            return Ok(true);
        }
        let path = asks.path().to_owned();
        let (config, prices) = (self.config.clone(), self.prices.clone());
        let planning = tokio::task::spawn_blocking(move || {
            let circumstances = Circumstances {
                config: &config,
                prices: &prices,
                experience: &Experience::default(),
                workers: 1,
                begin: Timestamp::now(),
            };
            plan::forecast(&[intake::Source::File(path)], &config.reading(), &circumstances)
        });
        let forecast = planning.await.map_err(Failure::unreachable)?.map_err(Failure::usage)?;
        let left = by.duration_since(Timestamp::now()).as_secs_f64();
        let fits = forecast.seconds.p95 <= left;
        text::say_fit(&forecast, left, fits, self.args.when.strict);
        Ok(fits || !self.args.when.strict)
    }

    /// Lets the night run, with a worker beside it where it is all done here.
    async fn work(
        &self,
        conductor: &mut Conductor<'_>,
        place: &Place,
        queue: &Arc<dyn Queue>,
        hold: &Hold,
        stop: &CancellationToken,
    ) -> Result<Finish, Failure> {
        let shown = Counted::start("answered", 0);
        let seen = |ended, asked| shown.set_of(ended, asked);
        let through = CancellationToken::new();
        let mut worker = match place {
            Place::Here { store, .. } => {
                Some(self.worker(queue, store, conductor.batch.clone(), stop, &through)?)
            }
            Place::There(_) => None,
        };
        let conducted = {
            let conducting = conductor.run(!self.args.no_wait, stop, seen);
            tokio::select! {
                finish = conducting => finish.map_err(of_conducting),
                () = hold.lost.cancelled() => Err(of_night(NightError::TakenOver)),
                halt = ended(&mut worker) => halted(halt),
            }
        };
        through.cancel();
        if let Some(worker) = worker {
            worker.await.map_err(Failure::unreachable)?.map_err(Failure::unreachable)?;
        }
        conducted
    }

    fn worker(
        &self,
        queue: &Arc<dyn Queue>,
        store: &Arc<LocalStore>,
        batch: BatchId,
        stop: &CancellationToken,
        through: &CancellationToken,
    ) -> Result<JoinHandle<Result<Halt, WorkerError>>, Failure> {
        let progress = Arc::<Progress>::default();
        telemetry::watch(&progress);
        let worker = Worker {
            queue: queue.clone(),
            store: store.clone(),
            targets: self.config.targets().map_err(Failure::usage)?,
            settings: Settings {
                only: Some(batch),
                prices: Some(Arc::new(self.prices.clone())),
                ..self.config.worker(false)
            },
            progress,
        };
        let (ended, stop, through) = (CancellationToken::new(), stop.clone(), through.clone());
        Ok(tokio::spawn(async move {
            let running = worker.run(ended.clone());
            tokio::pin!(running);
            tokio::select! {
                halt = &mut running => return halt,
                () = stop.cancelled() => {}
                () = through.cancelled() => {}
            }
            ended.cancel();
            running.await
        }))
    }
}

impl Place {
    fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Here { store, .. } => store.clone(),
            Self::There(backends) => backends.store.clone(),
        }
    }

    async fn queue(&self, config: &Config, batch: &BatchId) -> Result<Arc<dyn Queue>, Failure> {
        match self {
            Self::There(backends) => Ok(backends.queue.clone()),
            Self::Here { database, .. } => {
                let queue =
                    LocalQueue::new(database.clone(), config.lock_duration()).only(batch.clone());
                // The directory is ours alone: whoever held these jobs is dead.
                queue.release_orphans().await.map_err(Failure::unreachable)?;
                Ok(telemetry::observed(Arc::new(queue), telemetry::Labels::local()))
            }
        }
    }

    async fn close(&self) {
        if let Self::There(backends) = self {
            backends.queue.close().await;
        }
    }
}

/// The end of the worker, which is none if there is no worker.
async fn ended(
    worker: &mut Option<JoinHandle<Result<Halt, WorkerError>>>,
) -> Result<Halt, WorkerError> {
    match worker {
        Some(handle) => {
            let ended = handle.await.unwrap_or(Err(WorkerError::Panicked));
            *worker = None;
            ended
        }
        None => std::future::pending().await,
    }
}

/// A worker that ends before the night does.
fn halted(halt: Result<Halt, WorkerError>) -> Result<Finish, Failure> {
    let again = "; nothing is lost: start it again when that is mended";
    match halt.map_err(Failure::unreachable)? {
        Halt::NoDeployment { why } => {
            Err(Failure::usage(anyhow!("no deployment answers: {why}{again}")))
        }
        Halt::Unreachable { why } => {
            Err(Failure::unreachable(anyhow!("no endpoint can be reached: {why}{again}")))
        }
        Halt::Drained | Halt::Paused { .. } | Halt::Stopped => Ok(Finish::Stopped),
    }
}

/// What earlier nights left open is not called any more: what is still wanted of it is asked now.
async fn give_up(store: &dyn Store, others: &[BatchId]) -> Result<(), Failure> {
    for batch in others {
        match control::cancel(store, batch).await {
            Ok(_) => {
                say(&format!("the night {batch} was never finished; this one takes its place"))
            }
            Err(
                ControlError::Done(_) | ControlError::Cancelled(_) | ControlError::NoSuchBatch(_),
            ) => {}
            Err(error) => return Err(Failure::unreachable(error)),
        }
    }
    Ok(())
}

/// What the next night is to know.
fn known_after(conductor: &Conductor<'_>, before: &Ledger, recipe: &Recipe) -> Ledger {
    let mut documents = std::collections::HashMap::new();
    for document in &conductor.documents {
        let known = match (&document.unread, before.documents.get(&document.name)) {
            (None, _) => document.known(),
            (Some(_), Some(known)) => known.clone(),
            (Some(_), None) => continue,
        };
        documents.insert(document.name.clone(), known);
    }
    before.after(recipe.fingerprint(), conductor.batches.clone(), documents, &conductor.asks)
}

fn of_source(error: SourceError) -> Failure {
    if error.is_passing() { Failure::unreachable(error) } else { Failure::usage(error) }
}

fn of_gathering(error: GatherError) -> Failure {
    match error {
        GatherError::Source(error) => of_source(error),
        GatherError::Template(_) => Failure::usage(error),
        error => Failure::unreachable(error),
    }
}

fn of_conducting(error: ConductError) -> Failure {
    match error {
        ConductError::Gather(error) => of_gathering(error),
        ConductError::Template(_) => Failure::usage(error),
        error => Failure::unreachable(error),
    }
}

fn of_night(error: NightError) -> Failure {
    Failure::unreachable(error)
}

/// A file that appears whole, under its name, at the end.
fn replace(path: &Path, with: &Path) -> anyhow::Result<()> {
    use anyhow::Context;
    let failed = || format!("can't write {}", path.display());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).with_context(failed)?;
    let mut from = std::fs::File::open(with).with_context(failed)?;
    std::io::copy(&mut from, &mut file).with_context(failed)?;
    file.persist(path).with_context(failed)?;
    Ok(())
}
