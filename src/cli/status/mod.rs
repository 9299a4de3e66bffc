//! `promptmill status`: progress of batches, queue depth and workers, once or repeatedly.

mod text;
mod watch;

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value, json};

use super::{CommandError, ExitStatus, print, print_lines};
use crate::backends;
use crate::config::Config;
use domain::heartbeat::Heartbeat;
use domain::job::BatchId;
use domain::prices::Prices;
use queue::QueueDepth;
use report::autoscale::{self, ScalingAdvice};
use report::deployments::{self, DeploymentStatus};
use report::live::{self, BatchFilter, LiveInputs, LiveStatus, LiveWatcher};
use store::{Store, StoreError};

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

impl StatusArgs {
    fn interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.interval.get()))
    }
}

/// Status at one moment.
struct StatusSnapshot {
    batches: Vec<LiveStatus>,
    deployments: Vec<DeploymentStatus>,
    workers: Vec<Heartbeat>,
}

pub(super) async fn run(args: StatusArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let prices = Prices::load(config.prices.file.as_deref())?;
    let store = backends::open_store(&config).await?;
    if let Some(batch) = &args.batch
        && store.batch(batch).await?.is_none()
    {
        return Err(CommandError::usage_text(format!("there is no batch '{batch}'")));
    }
    if args.watch {
        return watch::watch(&args, store.as_ref(), &prices).await;
    }
    let seen = StatusSnapshot::read(store.as_ref(), args.batch.as_ref(), &prices, None).await;
    let queue = backends::open_queue(&config)?;
    let depth = queue.depth().await;
    queue.close().await;
    let (seen, depth) = (seen?, depth?);
    let waiting = waiting(store.as_ref(), depth, &seen, &config).await;
    let waiting = waiting?;
    if args.json {
        print(&seen.json(Some(waiting), &prices).to_string())?;
    } else {
        print_lines(&seen.lines(&prices, Some(waiting)))?;
    }
    Ok(ExitStatus::AllDone)
}

/// Depth of the queue, and the number of workers useful for it.
#[derive(Clone, Copy)]
struct StatusBacklog {
    depth: QueueDepth,
    replicas: ScalingAdvice,
}

async fn waiting(
    store: &dyn Store,
    depth: QueueDepth,
    seen: &StatusSnapshot,
    config: &Config,
) -> Result<StatusBacklog, StoreError> {
    let backlog = autoscale::backlog(store, &store.batches().await?).await?;
    let replicas = autoscale::advise(depth, backlog, &seen.workers, &config.scaling);
    Ok(StatusBacklog { depth, replicas })
}

impl StatusSnapshot {
    async fn read(
        store: &dyn Store,
        only: Option<&BatchId>,
        prices: &Prices,
        watch: Option<&mut LiveWatcher>,
    ) -> Result<Self, StoreError> {
        let mut workers = store.heartbeats().await?;
        workers.retain(Heartbeat::is_worker);
        let deployments = deployments::aggregate(&workers);
        let by = LiveInputs { deployments: &deployments, prices };
        let which = only.map_or(BatchFilter::All, BatchFilter::One);
        let batches = match watch {
            Some(watch) => watch.snapshot(store, which, by).await?,
            None => live::snapshot(store, which, by).await?,
        };
        Ok(Self { batches, deployments, workers })
    }

    fn json(&self, waiting: Option<StatusBacklog>, prices: &Prices) -> Value {
        let mut status = json!({
            "batches": self.batches,
            "deployments": self.deployments,
            "workers": self.workers,
            "currency": prices.currency,
            "prices_of": prices.date,
        });
        if let Some(StatusBacklog { depth, replicas }) = waiting {
            status["queue"] = json!(depth);
            status["scaling"] = json!(replicas);
        }
        status
    }

    fn lines(&self, prices: &Prices, waiting: Option<StatusBacklog>) -> Vec<String> {
        let mut lines: Vec<String> =
            self.batches.iter().flat_map(|live| text::batch(live, prices)).collect();
        lines.extend(waiting.map(|waiting| text::queue(waiting.depth)));
        lines.extend(self.deployments.iter().map(text::deployment));
        lines.extend(self.workers.iter().map(text::worker));
        lines.extend(waiting.map(|waiting| text::replicas(waiting.replicas)));
        lines
    }
}
