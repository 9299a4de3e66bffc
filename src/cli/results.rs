//! `promptmill results`: a batch's outcomes into files.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{Exit, Failure, say};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::outcome::Ending;
use report::results::table::{self, Format};
use report::results::{Paths, ResultsError, Selection, Written, jsonl};
use store::{Batch, Order, Store};

/// Write a batch's answers and errors, as far as they are there
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    batch: BatchId,
    /// Answers go here [default: BATCH.results.jsonl, or BATCH.FORMAT with everything]; - is
    /// standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// All that has no answer goes here [default: BATCH.errors.jsonl]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Two files in the Batch format, or one table with a row for every outcome
    #[arg(long, value_enum, default_value = "jsonl")]
    format: FormatName,
    /// Only outcomes that ended so: succeeded, failed, dead, cancelled, expired
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = ending)]
    only: Vec<Ending>,
    /// Write in the order of the input
    #[arg(long)]
    ordered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatName {
    Jsonl,
    Csv,
    Parquet,
}

fn ending(name: &str) -> Result<Ending, String> {
    let known = || Ending::ALL.map(Ending::as_str).join(", ");
    Ending::from_name(name).ok_or_else(|| format!("it is none of {}", known()))
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    if args.format != FormatName::Jsonl && args.errors.is_some() {
        let message = "--errors goes with --format jsonl; a table holds all outcomes";
        return Err(Failure::usage(anyhow::anyhow!(message)));
    }
    let store = backends::open_store(&config).await?;
    let Some(batch) = store.batch(&args.batch).await.map_err(Failure::unreachable)? else {
        return Err(Failure::usage(anyhow::anyhow!("there is no batch '{}'", args.batch)));
    };
    let order = if args.ordered { Order::ByPosition } else { Order::AsStored };
    let selection = Selection { batch: args.batch.clone(), order, endings: args.only.clone() };
    let written = match args.format {
        FormatName::Jsonl => two_files(&args, store.as_ref(), &selection).await,
        FormatName::Csv => one_table(&args, store.as_ref(), &selection, Format::Csv).await,
        FormatName::Parquet => one_table(&args, store.as_ref(), &selection, Format::Parquet).await,
    };
    let written = written.map_err(Failure::unreachable)?;
    if !args.only.is_empty() {
        return Ok(Exit::AllDone);
    }
    Ok(tell_what_is_left(&batch, written))
}

async fn two_files(
    args: &Args,
    store: &dyn Store,
    selection: &Selection,
) -> Result<Written, ResultsError> {
    let file = |what: &str| PathBuf::from(format!("{}.{what}.jsonl", args.batch));
    let paths = Paths {
        out: args.out.clone().unwrap_or_else(|| file("results")),
        errors: args.errors.clone().unwrap_or_else(|| file("errors")),
    };
    let written = jsonl::write(store, selection, &paths, |_| Ok(())).await?;
    say(&format!("answers: {} ({} lines)", paths.out.display(), written.results));
    say(&format!("errors:  {} ({} lines)", paths.errors.display(), written.errors));
    Ok(written)
}

async fn one_table(
    args: &Args,
    store: &dyn Store,
    selection: &Selection,
    format: Format,
) -> Result<Written, ResultsError> {
    let ending = if format == Format::Csv { "csv" } else { "parquet" };
    let file = || PathBuf::from(format!("{}.{ending}", args.batch));
    let path = args.out.clone().unwrap_or_else(file);
    let written = table::write(store, selection, format, &path).await?;
    say(&format!("outcomes: {} ({} rows)", path.display(), written.results + written.errors));
    Ok(written)
}

fn tell_what_is_left(batch: &Batch, written: Written) -> Exit {
    let left = batch.jobs.saturating_sub(written.results + written.errors);
    if left > 0 {
        say(&format!("{left} jobs have not ended yet"));
    }
    if left == 0 && written.errors == 0 { Exit::AllDone } else { Exit::SomeFailed }
}
