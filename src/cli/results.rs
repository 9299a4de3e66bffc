//! `promptmill results`: a batch's outcomes into files in Batch format.

use std::path::PathBuf;

use super::{Exit, Failure, say};
use crate::backends;
use crate::config::Config;
use crate::job::BatchId;
use crate::report::results::{self, Paths};
use crate::store::Order;

/// Write a batch's answers and errors, as far as they are there
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    batch: BatchId,
    /// Answers go here [default: BATCH.results.jsonl]; - is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// All that has no answer goes here [default: BATCH.errors.jsonl]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Write in the order of the input
    #[arg(long)]
    ordered: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let store = backends::open_store(&config).await?;
    let Some(batch) = store.batch(&args.batch).await.map_err(Failure::unreachable)? else {
        return Err(Failure::usage(anyhow::anyhow!("there is no batch '{}'", args.batch)));
    };
    let file = |ending: &str| PathBuf::from(format!("{}.{ending}.jsonl", args.batch));
    let paths = Paths {
        out: args.out.unwrap_or_else(|| file("results")),
        errors: args.errors.unwrap_or_else(|| file("errors")),
    };
    let order = if args.ordered { Order::ByPosition } else { Order::AsStored };
    let written = results::write(store.as_ref(), &args.batch, order, &paths, |_| Ok(())).await;
    let written = written.map_err(Failure::unreachable)?;
    say(&format!("answers: {} ({} lines)", paths.out.display(), written.results));
    say(&format!("errors:  {} ({} lines)", paths.errors.display(), written.errors));
    let left = batch.jobs.saturating_sub(written.results + written.errors);
    if left > 0 {
        say(&format!("{left} jobs have not ended yet"));
    }
    Ok(if left == 0 && written.errors == 0 { Exit::AllDone } else { Exit::SomeFailed })
}
