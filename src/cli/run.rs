//! `promptmill run`: files of prompts in, one outcome per prompt out, all in this process.

use std::path::PathBuf;

use clap::ValueHint;

use super::budget::BudgetFlags;
use super::exit::{CommandError, ExitStatus};
use super::input::{InputRequest, InvalidLines, PreparedInput, prepare_input};
use super::local::LocalFlags;
use super::output::say;
use super::progress::{BatchSize, ProgressDisplay};
use super::summary::RunSummary;
use super::{interrupt, result_files, worker_end};
use crate::app::local_run::{LocalRun, LocalRunError};
use crate::backends::LocalBackends;
use crate::config::Config;
use domain::job::BatchId;
use intake::EnqueueCounts;
use store::SortOrder;

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
    let mut config = args.local.apply(config)?;
    config.input.model = args.model.clone().or(config.input.model);
    config.input.max_line_mib = args.max_line_mib.unwrap_or(config.input.max_line_mib).max(1);
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let backends = LocalBackends::open(&config)?;
    let request = InputRequest {
        paths: &args.inputs,
        batch: args.batch.as_ref(),
        budget: args.budget,
        invalid: InvalidLines::by_flag(args.skip_invalid),
    };
    let prepared = prepare_input(request, &config, backends.dir()).await?;
    let PreparedInput { files, batch, prices } = prepared;
    let batch = args.local.batch_name(batch)?;
    let stem = args.batch.as_ref().map_or_else(|| files.sources[0].stem(), ToString::to_string);
    let paths = result_files::paths(args.out, args.errors, &stem);
    paths.check()?;
    let (_simulator, config) = args.local.start_simulator(config).await?;
    let mut run = LocalRun::open(backends, files, batch).await?;
    args.budget.apply(run.store(), &run.batch, &prices).await?;
    let shown = (!args.quiet).then(|| {
        let tpm = config.deployments.iter().map(|deployment| deployment.tpm).sum();
        let (jobs, ended_before) = (run.input.report.jobs, run.totals_before.ended());
        ProgressDisplay::start(run.progress.clone(), Some(BatchSize { jobs, ended_before }), tpm)
    });
    let enqueued = |counts: &_| {
        if !args.quiet {
            say_enqueued(&run.batch, counts);
        }
    };
    let end = run.work(&config, prices, &stop, enqueued).await?;
    drop(shown);
    let again = format!("{} jobs are left; nothing is lost: run the same command again", end.left);
    if let Some(status) = worker_end::say_end(&end.exit, &run.progress, run.store(), &again).await?
    {
        return Ok(status);
    }
    let order = if args.ordered { SortOrder::ByPosition } else { SortOrder::AsStored };
    let written = run.finish(&end, &paths, order, &config.webhook).await;
    let written = written.map_err(|error| match error {
        LocalRunError::Results(error) => {
            result_files::write_error(error, &result_files::kept_in_state_dir(&run.batch))
        }
        error => error.into(),
    })?;
    RunSummary::new(&run, &end, &paths, written).tell(args.json, args.quiet)
}

fn say_enqueued(batch: &BatchId, counts: &EnqueueCounts) {
    let known = match counts.known {
        0 => String::new(),
        known => format!(", {known} of them done before"),
    };
    say(&format!(
        "batch {batch}: {} jobs{known}, {} prompt tokens",
        counts.jobs, counts.prompt_tokens
    ));
}
