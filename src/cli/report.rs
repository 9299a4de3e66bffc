//! `promptmill report`: a batch's account, as a page or as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Exit, Failure, print, say};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;
use queue::Depth;
use report::account::{self, Account, Beside, Language};
use report::deployments;
use store::{Store, StoreError};

/// Tell what became of a batch: its balance, tokens, cost, pace, failures and deadlines, as a page
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    batch: BatchId,
    /// The page goes here [default: BATCH.report.html]; - is standard output
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print as JSON on standard output, instead of the page
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// The page's language: en, ja
    #[arg(long, default_value = "en", value_name = "LANGUAGE")]
    lang: Language,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    let store = backends::open_store(&config).await?;
    // Before the outcomes are read: a job that has none then was in the queue.
    let queued = queued(&config).await;
    let tpm = quotas(store.as_ref(), &config).await.map_err(Failure::unreachable)?;
    let beside = Beside { prices: &prices, queued, tpm: &tpm };
    let account = account::count(store.as_ref(), &args.batch, &beside).await;
    let Some(account) = account.map_err(Failure::unreachable)? else {
        return Err(Failure::usage(anyhow::anyhow!("there is no batch '{}'", args.batch)));
    };
    if args.json {
        print(&serde_json::to_string(&account).map_err(Failure::usage)?);
    } else {
        write_page(&args, &account)?;
    }
    Ok(tell_the_balance(&account))
}

/// A report can be had without the queue; it says less then.
async fn queued(config: &Config) -> Option<Depth> {
    let depth = async {
        let queue = backends::open_queue(config)?;
        let depth = queue.depth().await;
        queue.close().await;
        Ok::<_, backends::BackendError>(depth?)
    };
    match depth.await {
        Ok(depth) => Some(depth),
        Err(error) => {
            say(&format!("the queue can't be asked, so what waits in it is not compared: {error}"));
            None
        }
    }
}

/// Tokens a minute by deployment: what the workers alive say, else what is configured.
async fn quotas(store: &dyn Store, config: &Config) -> Result<BTreeMap<String, u64>, StoreError> {
    // Without keys there are no targets; a report needs none.
    let targets = config.targets().unwrap_or_default();
    let configured =
        targets.into_iter().map(|target| (target.member.name, target.member.limits.tpm));
    let told = deployments::sum(&store.words().await?).into_iter().map(|d| (d.name, d.tpm));
    Ok(configured.chain(told).filter_map(|(name, tpm)| Some((name, tpm?))).collect())
}

fn write_page(args: &Args, account: &Account) -> Result<(), Failure> {
    let page = account.to_html(args.lang);
    let path = args.html.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.report.html", args.batch)));
    if path.as_os_str() == "-" {
        print(page.trim_end());
        return Ok(());
    }
    std::fs::write(&path, page).map_err(|error| {
        Failure::unreachable(anyhow::Error::new(error).context(format!("{}", path.display())))
    })?;
    say(&format!("report: {}", path.display()));
    Ok(())
}

fn tell_the_balance(account: &Account) -> Exit {
    let balance = &account.balance;
    if balance.balances() {
        say(&format!(
            "{} jobs went in: {} ended, {} pending",
            balance.jobs, balance.ended, balance.pending
        ));
        return Exit::AllDone;
    }
    for fault in &balance.faults {
        say(&format!("IT DOES NOT BALANCE: {fault}"));
    }
    Exit::SomeFailed
}
