//! `promptmill documents`: a nightly batch over a folder or container of documents.

mod error_class;
mod night;
mod night_backend;
mod preview;
mod text;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueHint;

use self::night::NightCommand;
use super::error_class::write_error;
use super::local::LocalFlags;
use super::{CommandError, ExitStatus, say, scratch_dir};
use crate::config::Config;
use documents::Recipe;
use documents::collect::DocumentReader;
use documents::source::DocumentSource;
use documents::table::AnswerTableFormat;
use domain::job::BatchId;
use domain::prices::Prices;
use plan::DueTime;
use reader::ReadLimits;

/// Run a recipe's prompts on documents; answers of earlier nights are reused
///
/// Without --run the prompts go to the configured queue, for workers to take, and this command
/// waits for their answers. It may be started any number of times: an open night is resumed, and
/// one that another process conducts is left to it.
#[derive(Debug, clap::Args)]
pub(super) struct DocumentsArgs {
    /// Folder, or URL of a blob container or of a prefix in it [default: documents.source of the
    /// configuration]
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::DirPath)]
    source: Option<String>,
    /// Recipe with the prompts to run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    recipe: PathBuf,
    /// File for the answers as a table: .csv, .parquet or .jsonl
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    table: Option<PathBuf>,
    /// Name of the night's batch [default: the recipe's and the date]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Repeat prompts that were refused or did not fit their schema on earlier nights
    #[arg(long)]
    retry_failed: bool,
    /// End when the first prompts are in the queue; start again for those that follow and the table
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
    deadline: DeadlineFlags,
    /// Work in this process, on the embedded queue and store, until all is answered
    #[arg(long)]
    run: bool,
    #[command(flatten)]
    local: LocalFlags,
}

#[derive(Debug, clap::Args)]
struct DeadlineFlags {
    /// Deadline: a time of day, or a timestamp with its zone. Prompts not sent by then are left to
    /// the next night
    #[arg(long, value_name = "TIME")]
    finish_by: Option<DueTime>,
    /// Time zone of times of day, such as Asia/Tokyo [default: the machine's]
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
    /// Send nothing if it can't be done by --finish-by
    #[arg(long, requires = "finish_by")]
    strict: bool,
}

pub(super) async fn run(args: DocumentsArgs, config: Config) -> Result<ExitStatus, CommandError> {
    if let Some(table) = &args.table {
        AnswerTableFormat::of(table)?;
    }
    let (_simulator, config) = args.with_run_flags(config).await?;
    let work = DocumentsSetup::open(&args.recipe, args.source.as_deref(), &config).await?;
    let prices = Prices::load(config.prices.file.as_deref())?;
    if let Some(count) = args.preview {
        return preview::show(&work.document_reader(), count, &prices).await;
    }
    if let Some(path) = &args.batch_file {
        return preview::write(&work.document_reader(), path).await;
    }
    let (recipe, reading) = (&work.recipe, &work.document_reader());
    NightCommand { args: &args, config: &config, recipe, reader: reading, prices }.run().await
}

/// Writes a recipe's prompts about all its documents as a batch file, for `plan`. Prompts that
/// combine answers are not among them: they are made of the answers.
pub(super) async fn write_prompts(
    config: &Config,
    recipe: &Path,
    source: Option<&str>,
    path: &Path,
) -> Result<(), CommandError> {
    let work = DocumentsSetup::open(recipe, source, config).await?;
    preview::write(&work.document_reader(), path).await?;
    if work.recipe.reduce.is_some() {
        say(
            "note: prompts that combine the answers of parts are not planned: they depend on the answers",
        );
    }
    Ok(())
}

/// A recipe, its documents, and the program and limits for reading them.
struct DocumentsSetup {
    recipe: Arc<Recipe>,
    source: DocumentSource,
    reader_program: PathBuf,
    limits: ReadLimits,
    scratch: tempfile::TempDir,
}

impl DocumentsSetup {
    async fn open(
        recipe: &Path,
        source: Option<&str>,
        config: &Config,
    ) -> Result<Self, CommandError> {
        let recipe = Recipe::load(recipe).map(Arc::new)?;
        let limits = ReadLimits { file_bytes: recipe.max_file_mib << 20, ..ReadLimits::default() };
        Ok(Self {
            recipe,
            source: open_source(source, config).await?,
            // Documents that may break their reader are read by a child process of this program.
            reader_program: std::env::current_exe().map_err(CommandError::internal)?,
            limits,
            scratch: scratch_dir()?,
        })
    }

    fn document_reader(&self) -> DocumentReader<'_> {
        DocumentReader {
            source: &self.source,
            recipe: &self.recipe,
            reader_program: &self.reader_program,
            limits: &self.limits,
            scratch: self.scratch.path().to_owned(),
        }
    }
}

async fn open_source(given: Option<&str>, config: &Config) -> Result<DocumentSource, CommandError> {
    let given = given.or(config.documents.source.as_deref());
    let given = given
        .ok_or_else(|| CommandError::usage_text("name the location of the documents: --source"))?;
    Ok(DocumentSource::open(given, &config.documents).await?)
}

impl DocumentsArgs {
    /// Applies the flags of `--run` to the configuration; starts the simulator if it is to answer.
    async fn with_run_flags(
        &self,
        config: Config,
    ) -> Result<(Option<simulator::Simulator>, Config), CommandError> {
        match (self.run, self.local.is_given()) {
            (true, _) => self.local.start_simulator(self.local.apply(config)?).await,
            (false, false) => Ok((None, config)),
            (false, true) => Err(CommandError::usage_text(
                "--simulate, --endpoint, --state and the limits go with --run; without it, workers \
                 call what their configuration says",
            )),
        }
    }
}

/// Copies `with` to `path` atomically: the file appears under its name only when complete.
fn copy_atomically(path: &Path, with: &Path) -> Result<(), CommandError> {
    let failed = |error| write_error(path, error);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file =
        tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    let mut from = std::fs::File::open(with).map_err(failed)?;
    std::io::copy(&mut from, &mut file).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}
