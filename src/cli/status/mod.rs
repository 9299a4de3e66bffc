//! `promptmill status`: progress of batches, queue depth and workers, once or repeatedly.

mod batch_text;
mod money_text;
mod snapshot_text;
mod watch;
mod worker_text;

use std::num::NonZeroU32;
use std::time::Duration;

use super::exit::{CommandError, ExitStatus};
use super::output::{print, print_lines};
use crate::app::status::{StatusSnapshot, require_batch};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;

/// Show batches with counts, pace, cost and ETA, the queue, and the workers of the last minute
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Only this batch
    batch: Option<BatchId>,
    /// Refresh until all batches are done
    #[arg(long)]
    watch: bool,
    /// Seconds between refreshes
    #[arg(long, default_value = "2", value_name = "SECONDS", requires = "watch")]
    interval: NonZeroU32,
    /// Print as JSON on standard output; with --watch one object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: StatusArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let prices = Prices::load(config.prices.file.as_deref())?;
    let store = backends::open_store(&config).await?;
    let (store, only) = (store.as_ref(), args.batch.as_ref());
    if let Some(batch) = only {
        require_batch(store, batch).await?;
    }
    if args.watch {
        let interval = Duration::from_secs(u64::from(args.interval.get()));
        let watch = watch::StatusWatch { store, only, prices: &prices, interval, json: args.json };
        return watch.run().await;
    }
    let snapshot = StatusSnapshot::read(store, only, &prices, None).await?;
    let backlog = snapshot.backlog(store, &config).await?;
    if args.json {
        print(&snapshot_text::json(&snapshot, Some(backlog), &prices).to_string())?;
    } else {
        print_lines(&snapshot_text::lines(&snapshot, Some(backlog), &prices))?;
    }
    Ok(ExitStatus::AllDone)
}
