//! `promptmill status`: batches, how far they are, and what waits.

use serde_json::json;

use super::{Exit, Failure, print};
use crate::backends;
use crate::config::Config;
use crate::job::BatchId;
use crate::report::batches::{self, Standing};

/// Show batches with their counts, and how much waits in the queue
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this batch
    batch: Option<BatchId>,
    /// Print as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let store = backends::open_store(&config).await?;
    let queue = backends::open_queue(&config)?;
    let standings = batches::standings(store.as_ref(), args.batch.as_ref()).await;
    let depth = queue.depth().await;
    queue.close().await;
    let standings = standings.map_err(Failure::unreachable)?;
    let depth = depth.map_err(Failure::unreachable)?;
    if let (Some(batch), []) = (&args.batch, standings.as_slice()) {
        return Err(Failure::usage(anyhow::anyhow!("there is no batch '{batch}'")));
    }
    if args.json {
        print(&json!({ "batches": standings, "queue": depth }).to_string());
        return Ok(Exit::AllDone);
    }
    for standing in &standings {
        print(&line(standing));
    }
    print(&format!(
        "queue: {} ready, {} locked, {} scheduled, {} dead letters",
        depth.active, depth.locked, depth.scheduled, depth.dead_letters
    ));
    Ok(Exit::AllDone)
}

fn line(s: &Standing) -> String {
    let endings: Vec<_> = s.totals.endings.iter().map(|(e, n)| format!("{n} {e}")).collect();
    let ended =
        if endings.is_empty() { String::new() } else { format!(", {}", endings.join(", ")) };
    let (state, usage) = (s.state.as_str(), s.totals.usage);
    format!(
        "{}: {state}, {} jobs{ended}, {} pending, {} prompt and {} completion tokens",
        s.batch, s.jobs, s.pending, usage.prompt, usage.completion
    )
}
