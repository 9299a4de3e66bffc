//! `promptmill enqueue`: puts files of prompts into the configured queue, for workers to take.

use std::path::PathBuf;

use clap::ValueHint;
use serde_json::json;

use super::budget::BudgetFlags;
use super::charges;
use super::count_bar::CountBar;
use super::exit::{CommandError, ExitStatus};
use super::input::{InputRequest, InvalidLines, PreparedInput, prepare_input};
use super::local::refuse_simulated;
use super::output::{print, say};
use crate::app::input::InputFiles;
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use intake::EnqueueCounts;

/// Put files of prompts into the configured queue; run again to complete an interrupted batch
#[derive(Debug, clap::Args)]
pub(super) struct EnqueueArgs {
    /// Batch files (JSONL, also .gz and .zst); - is standard input
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    inputs: Vec<PathBuf>,
    /// Name of the batch [default: from the input's name and content]
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Model for lines that name none
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Skip lines that are not valid jobs
    #[arg(long)]
    skip_invalid: bool,
    #[command(flatten)]
    budget: BudgetFlags,
    /// Print the counts of jobs as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: EnqueueArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    config.input.model = args.model.or(config.input.model);
    let request = InputRequest {
        paths: &args.inputs,
        batch: args.batch.as_ref(),
        budget: args.budget,
        invalid: InvalidLines::by_flag(args.skip_invalid),
    };
    let prepared = prepare_input(request, &config, &std::env::temp_dir()).await?;
    let PreparedInput { files, batch, prices } = prepared;
    refuse_simulated(&batch)?;
    let backends = backends::open(&config).await?;
    let to = (backends.queue.as_ref(), backends.store.as_ref());
    args.budget.apply(backends.store.as_ref(), &batch, &prices).await?;
    let InputFiles { sources, options, report } = &files;
    let bar = CountBar::start("enqueued", report.jobs);
    let sent = intake::enqueue(sources, options, report, &batch, to, |jobs| bar.set(jobs)).await;
    drop(bar);
    backends.queue.close().await;
    let sent = sent?;
    if args.json {
        print(&as_json(&batch, &sent, report.faults))?;
    } else {
        print(batch.as_str())?;
    }
    say(&format!(
        "batch {batch}: {} jobs, {} of them done and {} waiting already, {} prompt tokens",
        sent.jobs, sent.known, sent.waiting, sent.prompt_tokens
    ));
    if let Some(charges) = backends.store.charges() {
        charges::say_request_units(&charges, sent.jobs);
    }
    Ok(ExitStatus::of_jobs(report.faults == 0))
}

fn as_json(batch: &BatchId, sent: &EnqueueCounts, skipped_lines: u64) -> String {
    json!({
        "batch": batch,
        "jobs": sent.jobs,
        "known": sent.known,
        "waiting": sent.waiting,
        "prompt_tokens": sent.prompt_tokens,
        "skipped_lines": skipped_lines,
    })
    .to_string()
}
