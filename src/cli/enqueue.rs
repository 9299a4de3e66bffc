//! `promptmill enqueue`: puts files of prompts into the configured queue, for workers to take.

use std::path::PathBuf;

use clap::ValueHint;
use serde_json::json;

use super::budget::BudgetFlags;
use super::count_bar::CountBar;
use super::input::InputFiles;
use super::{CommandError, ExitStatus, print, say, summary};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;
use intake::{self, LineOptions};

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
    let prices = Prices::load(config.prices.file.as_deref())?;
    args.budget.limit(&prices)?;
    let reading = LineOptions { must_limit_output: args.budget.is_given(), ..config.reading() };
    let input = InputFiles::read(&args.inputs, reading, &std::env::temp_dir()).await?;
    if input.checked.faults > 0 && !args.skip_invalid {
        input.report_faults();
        return Ok(ExitStatus::Usage);
    }
    input.checked.notes.iter().for_each(|note| say(&format!("note: {note}")));
    if input.checked.jobs == 0 {
        let message = "no line of the input is a valid job: nothing to do";
        return Err(CommandError::usage_text(message));
    }
    args.budget.check_prices(&input.checked.models, &config, &prices)?;
    let batch = args.batch.unwrap_or_else(|| input.checked.batch_name(&input.sources));
    let backends = backends::open(&config).await?;
    let to = (backends.queue.as_ref(), backends.store.as_ref());
    args.budget.apply(backends.store.as_ref(), &batch, &prices).await?;
    let InputFiles { sources, reading, checked } = &input;
    let counted = CountBar::start("enqueued", checked.jobs);
    let sent = |jobs| counted.set(jobs);
    let enqueued = intake::enqueue(sources, reading, checked, &batch, to, sent).await;
    drop(counted);
    backends.queue.close().await;
    let enqueued = enqueued?;
    if args.json {
        let report = json!({
            "batch": batch,
            "jobs": enqueued.jobs,
            "known": enqueued.known,
            "waiting": enqueued.waiting,
            "prompt_tokens": enqueued.prompt_tokens,
            "skipped_lines": input.checked.faults,
        });
        print(&report.to_string())?;
    } else {
        print(batch.as_str())?;
    }
    say(&format!(
        "batch {batch}: {} jobs, {} of them done and {} waiting already, {} prompt tokens",
        enqueued.jobs, enqueued.known, enqueued.waiting, enqueued.prompt_tokens
    ));
    if let Some(expense) = backends.store.charges() {
        summary::say_request_units(&expense, enqueued.jobs);
    }
    Ok(if input.checked.faults == 0 { ExitStatus::AllDone } else { ExitStatus::SomeFailed })
}
