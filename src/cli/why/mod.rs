//! `promptmill why`: why a job or a batch is not done, in sentences.

mod batch_text;
mod block_text;
mod job_text;
mod state_text;

use super::exit::{CommandError, ExitStatus};
use super::output::{print, print_lines};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use report::why::{self, WhyReport};

/// Explain why a job or batch is not done: what it waits for, for about how long, who holds it
#[derive(Debug, clap::Args)]
pub(super) struct WhyArgs {
    /// Batch name, or a job's custom_id or id
    #[arg(value_name = "JOB|BATCH")]
    name: String,
    /// Batch of the job
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Print as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: WhyArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let (queue, store) = (backends::open_queue(&config)?, backends::open_store(&config).await?);
    let batch = args.batch.as_ref();
    let why = why::explain(queue.as_ref(), store.as_ref(), &args.name, batch).await;
    queue.close().await;
    let why = why?;
    if args.json {
        print(&serde_json::to_string(&why)?)?;
        return Ok(ExitStatus::AllDone);
    }
    let lines = match &why {
        WhyReport::Batch(of) => batch_text::lines(of),
        WhyReport::Job(of) => job_text::lines(of),
    };
    print_lines(&lines)?;
    Ok(ExitStatus::AllDone)
}
