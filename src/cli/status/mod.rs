//! `promptmill status`: batches, how far they are, what waits, and who works; once or again and again.

mod text;
mod watch;

use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Exit, Failure, print};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;
use domain::share::Word;
use queue::Depth;
use report::deployments::{self, Deployment};
use report::live::{self, By, Live, Watch, Which};
use report::replicas::{self, Replicas};
use store::{Store, StoreError};

/// Show batches with their counts, pace, cost and end, what waits, and the workers of the last minute
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this batch
    batch: Option<BatchId>,
    /// Show it again and again until all batches are done
    #[arg(long)]
    watch: bool,
    /// Seconds from one look to the next
    #[arg(long, default_value = "2", value_name = "SECONDS", requires = "watch")]
    interval: NonZeroU32,
    /// Print as JSON on standard output; with --watch an object a line
    #[arg(long)]
    json: bool,
}

impl Args {
    fn interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.interval.get()))
    }
}

/// What is to be seen at one moment.
struct Seen {
    batches: Vec<Live>,
    deployments: Vec<Deployment>,
    workers: Vec<Word>,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    let store = backends::open_store(&config).await?;
    if let Some(batch) = &args.batch
        && store.batch(batch).await.map_err(Failure::unreachable)?.is_none()
    {
        return Err(Failure::usage(anyhow::anyhow!("there is no batch '{batch}'")));
    }
    if args.watch {
        return watch::watch(&args, store.as_ref(), &prices).await;
    }
    let seen = Seen::now(store.as_ref(), args.batch.as_ref(), &prices, None).await;
    let queue = backends::open_queue(&config)?;
    let depth = queue.depth().await;
    queue.close().await;
    let (seen, depth) = (seen.map_err(Failure::unreachable)?, depth.map_err(Failure::unreachable)?);
    let waiting = waiting(store.as_ref(), depth, &seen, &config).await;
    let waiting = waiting.map_err(Failure::unreachable)?;
    if args.json {
        print(&seen.json(Some(waiting), &prices).to_string());
    } else {
        seen.lines(&prices, Some(waiting)).iter().for_each(|line| print(line));
    }
    Ok(Exit::AllDone)
}

/// What waits in the queue, and how many workers that is worth.
#[derive(Clone, Copy)]
struct Waiting {
    depth: Depth,
    replicas: Replicas,
}

async fn waiting(
    store: &dyn Store,
    depth: Depth,
    seen: &Seen,
    config: &Config,
) -> Result<Waiting, StoreError> {
    let backlog = replicas::backlog(store, &store.batches().await?).await?;
    let replicas = replicas::now(depth, backlog, &seen.workers, &config.scaling);
    Ok(Waiting { depth, replicas })
}

impl Seen {
    async fn now(
        store: &dyn Store,
        only: Option<&BatchId>,
        prices: &Prices,
        watch: Option<&mut Watch>,
    ) -> Result<Self, StoreError> {
        let workers = store.words().await?;
        let deployments = deployments::sum(&workers);
        let by = By { deployments: &deployments, prices };
        let which = only.map_or(Which::All, Which::One);
        let batches = match watch {
            Some(watch) => watch.look(store, which, by).await?,
            None => live::look(store, which, by).await?,
        };
        Ok(Self { batches, deployments, workers })
    }

    fn json(&self, waiting: Option<Waiting>, prices: &Prices) -> Value {
        let mut status = json!({
            "batches": self.batches,
            "deployments": self.deployments,
            "workers": self.workers,
            "currency": prices.currency,
            "prices_of": prices.date,
        });
        if let Some(Waiting { depth, replicas }) = waiting {
            status["queue"] = json!(depth);
            status["scaling"] = json!(replicas);
        }
        status
    }

    fn lines(&self, prices: &Prices, waiting: Option<Waiting>) -> Vec<String> {
        let mut lines: Vec<String> =
            self.batches.iter().flat_map(|live| text::batch(live, prices)).collect();
        lines.extend(waiting.map(|waiting| text::queue(waiting.depth)));
        lines.extend(self.deployments.iter().map(text::deployment));
        lines.extend(self.workers.iter().map(text::worker));
        lines.extend(waiting.map(|waiting| text::replicas(waiting.replicas)));
        lines
    }
}
