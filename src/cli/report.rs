//! `promptmill report`: a batch's account, as an HTML page or as JSON.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error_class::write_error;
use super::exit::{CommandError, ExitStatus};
use super::output::{print, say};
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;
use queue::QueueDepth;
use report::batch_report::{self, BatchReport, ReportInputs, ReportLanguage};
use report::deployments;
use store::{Store, StoreError};

/// Write a batch's balance, tokens, cost, pace, failures and deadlines as an HTML page
#[derive(Debug, clap::Args)]
pub(super) struct ReportArgs {
    /// The batch
    batch: BatchId,
    /// File for the page [default: BATCH.report.html]; - is standard output
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print as JSON on standard output, instead of the page
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Language of the page: en, ja
    #[arg(long, default_value = "en", value_name = "LANGUAGE")]
    lang: ReportLanguage,
}

pub(super) async fn run(args: ReportArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let prices = Prices::load(config.prices.file.as_deref())?;
    let store = backends::open_store(&config).await?;
    // Read before the outcomes: a job without an outcome by then was in the queue.
    let queued = queue_depth(&config).await;
    let tpm = quotas(store.as_ref(), &config).await?;
    let beside = ReportInputs { prices: &prices, queued, tpm: &tpm };
    let account = batch_report::build(store.as_ref(), &args.batch, &beside).await;
    let Some(account) = account? else {
        return Err(CommandError::usage_text(format!("there is no batch '{}'", args.batch)));
    };
    if args.json {
        print(&serde_json::to_string(&account)?)?;
    } else {
        write_page(&args, &account)?;
    }
    Ok(say_balance(&account))
}

/// Returns the queue's depth; without the queue there is a report too, which says less.
async fn queue_depth(config: &Config) -> Option<QueueDepth> {
    let depth = async {
        let queue = backends::open_queue(config)?;
        let depth = queue.depth().await;
        queue.close().await;
        Ok::<_, backends::BackendError>(depth?)
    };
    match depth.await {
        Ok(depth) => Some(depth),
        Err(error) => {
            say(&format!("the queue can't be reached, so its depth is not compared: {error}"));
            None
        }
    }
}

/// Returns tokens a minute by deployment, as live workers report them, else as configured.
async fn quotas(store: &dyn Store, config: &Config) -> Result<BTreeMap<String, u64>, StoreError> {
    // Without keys there are no targets; a report needs none.
    let targets = config.targets().unwrap_or_default();
    let configured =
        targets.into_iter().map(|target| (target.member.name, target.member.limits.tpm));
    let told =
        deployments::aggregate(&store.heartbeats().await?).into_iter().map(|d| (d.name, d.tpm));
    Ok(configured.chain(told).filter_map(|(name, tpm)| Some((name, tpm?))).collect())
}

fn write_page(args: &ReportArgs, account: &BatchReport) -> Result<(), CommandError> {
    let page = account.to_html(args.lang);
    let path = args.html.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.report.html", args.batch)));
    if path.as_os_str() == "-" {
        print(page.trim_end())?;
        return Ok(());
    }
    std::fs::write(&path, page).map_err(|error| write_error(&path, error))?;
    say(&format!("report: {}", path.display()));
    Ok(())
}

fn say_balance(account: &BatchReport) -> ExitStatus {
    let balance = &account.balance;
    if balance.is_balanced() {
        say(&format!(
            "{} jobs went in: {} ended, {} pending",
            balance.jobs, balance.ended, balance.pending
        ));
        return ExitStatus::AllDone;
    }
    for fault in &balance.faults {
        say(&format!("IT DOES NOT BALANCE: {fault}"));
    }
    ExitStatus::SomeFailed
}
