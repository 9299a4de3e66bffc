//! `promptmill documents`: a night's work over a folder or container of documents.

mod night;
mod place;
mod preview;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use clap::ValueHint;

use self::night::Night;
use super::local::LocalFlags;
use super::{Exit, Failure, say};
use crate::config::Config;
use documents::Recipe;
use documents::gather::{GatherError, Reading};
use documents::source::{Source, SourceError};
use documents::table::Form;
use domain::job::BatchId;
use domain::prices::Prices;
use plan::Due;
use reader::Limits;

/// Put documents through a recipe's prompts; what earlier nights answered is not asked again
///
/// Without --run the prompts go to the configured queue, for workers to take, and this waits for their
/// answers. It may be started any number of times: a night that is open goes on, and one that somebody
/// conducts already is left to them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A folder, or the URL of a blob container or of a prefix in it [default: documents.source of the
    /// configuration]
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
    if let Some(table) = &args.table {
        Form::of(table).map_err(Failure::usage)?;
    }
    let (_simulator, config) = args.answering(config).await?;
    let work = Work::open(&args.recipe, args.source.as_deref(), &config).await?;
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    if let Some(count) = args.preview {
        return preview::show(&work.reading(), count, &prices).await;
    }
    if let Some(path) = &args.batch_file {
        return preview::write(&work.reading(), path).await;
    }
    let (recipe, reading) = (&work.recipe, &work.reading());
    Night { args: &args, config: &config, recipe, reading, prices }.conduct().await
}

/// Writes the prompts of a recipe about all of its documents as a batch file, for `plan`. What combines
/// answers is not among them: it is made of the answers.
pub(super) async fn write_prompts(
    config: &Config,
    recipe: &Path,
    source: Option<&str>,
    path: &Path,
) -> Result<(), Failure> {
    let work = Work::open(recipe, source, config).await?;
    preview::write(&work.reading(), path).await?;
    if work.recipe.reduce.is_some() {
        say("note: what combines the answers of parts is not planned: it depends on the answers");
    }
    Ok(())
}

/// A recipe, its documents, and what they are read with.
struct Work {
    recipe: Arc<Recipe>,
    source: Source,
    reader: PathBuf,
    limits: Limits,
    scratch: tempfile::TempDir,
}

impl Work {
    async fn open(recipe: &Path, source: Option<&str>, config: &Config) -> Result<Self, Failure> {
        let recipe = Recipe::load(recipe).map(Arc::new).map_err(Failure::usage)?;
        let limits = Limits { file_bytes: recipe.max_file_mib << 20, ..Limits::default() };
        Ok(Self {
            recipe,
            source: open(source, config).await?,
            // What may break its reader is read by this program once more.
            reader: std::env::current_exe().map_err(Failure::unreachable)?,
            limits,
            scratch: tempfile::tempdir().map_err(Failure::unreachable)?,
        })
    }

    fn reading(&self) -> Reading<'_> {
        Reading {
            source: &self.source,
            recipe: &self.recipe,
            reader: &self.reader,
            limits: &self.limits,
            scratch: self.scratch.path().to_owned(),
        }
    }
}

async fn open(given: Option<&str>, config: &Config) -> Result<Source, Failure> {
    let given = given.or(config.documents.source.as_deref());
    let given =
        given.ok_or_else(|| Failure::usage(anyhow!("say where the documents are: --source")))?;
    Source::open(given, &config.documents).await.map_err(of_source)
}

impl Args {
    /// The configuration with the flags of `--run` laid over, and the simulator if it is to answer.
    async fn answering(
        &self,
        config: Config,
    ) -> Result<(Option<simulator::Simulator>, Config), Failure> {
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
