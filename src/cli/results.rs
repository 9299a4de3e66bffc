//! `promptmill results`: writes a batch's outcomes to files.

use std::path::PathBuf;

use clap::ValueEnum;

use super::exit::{CommandError, ExitStatus};
use super::output::say;
use super::result_files;
use crate::app::status::require_batch;
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use report::results::table::{self, TableFormat};
use report::results::{OutcomeKind, OutcomeSelection, ResultCounts, ResultsError, jsonl};
use store::{Batch, SortOrder, Store};

/// Write a batch's answers and errors so far
#[derive(Debug, clap::Args)]
pub(super) struct ResultsArgs {
    /// The batch
    batch: BatchId,
    /// File for the answers [default: BATCH.results.jsonl, or BATCH.FORMAT with everything]; - is
    /// standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// File for everything without an answer [default: BATCH.errors.jsonl]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Two files in the Batch format, or one table with a row for every outcome
    #[arg(long, value_enum, default_value = "jsonl")]
    format: FormatName,
    /// Only outcomes of these kinds: succeeded, failed, dead, cancelled, expired; truncated, filtered
    /// and flawed are answers that are not whole
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = kind)]
    only: Vec<OutcomeKind>,
    /// Write in input order
    #[arg(long)]
    ordered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Jsonl,
    Csv,
    Parquet,
}

fn kind(name: &str) -> Result<OutcomeKind, String> {
    let known = || OutcomeKind::names().join(", ");
    OutcomeKind::from_name(name).ok_or_else(|| format!("it is none of {}", known()))
}

pub(super) async fn run(args: ResultsArgs, config: Config) -> Result<ExitStatus, CommandError> {
    if args.format != FormatName::Jsonl && args.errors.is_some() {
        let message = "--errors goes with --format jsonl; a table holds all outcomes";
        return Err(CommandError::usage_text(message));
    }
    let store = backends::open_store(&config).await?;
    let batch = require_batch(store.as_ref(), &args.batch).await?;
    let order = if args.ordered { SortOrder::ByPosition } else { SortOrder::AsStored };
    let selection = OutcomeSelection { batch: args.batch.clone(), order, kinds: args.only.clone() };
    let written = match args.format {
        FormatName::Jsonl => two_files(&args, store.as_ref(), &selection).await,
        FormatName::Csv => one_table(&args, store.as_ref(), &selection, TableFormat::Csv).await,
        FormatName::Parquet => {
            let format = TableFormat::parquet().map_err(CommandError::usage)?;
            one_table(&args, store.as_ref(), &selection, format).await
        }
    };
    let written =
        written.map_err(|error| result_files::write_error(error, "the store has all outcomes"))?;
    if !args.only.is_empty() {
        return Ok(ExitStatus::AllDone);
    }
    Ok(say_unfinished(&batch, written))
}

async fn two_files(
    args: &ResultsArgs,
    store: &dyn Store,
    selection: &OutcomeSelection,
) -> Result<ResultCounts, ResultsError> {
    let (out, errors) = (args.out.clone(), args.errors.clone());
    let paths = result_files::paths(out, errors, args.batch.as_str());
    let written = jsonl::write(store, selection, &paths, |_| Ok(())).await?;
    say(&format!("answers: {} ({} lines)", paths.out.display(), written.results));
    say(&format!("errors:  {} ({} lines)", paths.errors.display(), written.errors));
    Ok(written)
}

async fn one_table(
    args: &ResultsArgs,
    store: &dyn Store,
    selection: &OutcomeSelection,
    format: TableFormat,
) -> Result<ResultCounts, ResultsError> {
    let ending = if format == TableFormat::Csv { "csv" } else { "parquet" };
    let file = || PathBuf::from(format!("{}.{ending}", args.batch));
    let path = args.out.clone().unwrap_or_else(file);
    let written = table::write(store, selection, format, &path).await?;
    say(&format!("outcomes: {} ({} rows)", path.display(), written.results + written.errors));
    Ok(written)
}

fn say_unfinished(batch: &Batch, written: ResultCounts) -> ExitStatus {
    let left = batch.jobs.saturating_sub(written.results + written.errors);
    if left > 0 {
        say(&format!("{left} jobs have not ended yet"));
    }
    ExitStatus::of_jobs(left == 0 && written.errors == 0)
}
