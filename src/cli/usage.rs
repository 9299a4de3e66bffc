//! `promptmill usage`: tokens and cost.

use serde_json::{Value, json};

use super::answers_text;
use super::exit::{CommandError, ExitStatus};
use super::output::{print, say};
use super::table;
use crate::app::status::require_batch;
use crate::backends;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;
use report::usage::{self, Cost, UsageDimension, UsageLine};

/// Show tokens and cost by batch, deployment, model, day, hour, or a key of the jobs' metadata
#[derive(Debug, clap::Args)]
pub(super) struct UsageArgs {
    /// Only this batch
    batch: Option<BatchId>,
    /// Columns to group by: batch, deployment, model, day, hour, metadata.KEY
    #[arg(long, value_delimiter = ',', default_value = "batch,model", value_name = "LIST")]
    by: Vec<UsageDimension>,
    /// Print as JSON on standard output
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print as CSV on standard output
    #[arg(long)]
    csv: bool,
}

const COLUMNS: [&str; 7] = ["jobs", "calls", "prompt", "cached", "completion", "reasoning", "cost"];

pub(super) async fn run(args: UsageArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let prices = Prices::load(config.prices.file.as_deref())?;
    let store = backends::open_store(&config).await?;
    if let Some(batch) = &args.batch {
        require_batch(store.as_ref(), batch).await?;
    }
    let lines = usage::sum(store.as_ref(), args.batch.as_ref(), &args.by, &prices).await;
    let lines = lines?;
    let total = usage::total(&lines);
    if args.json {
        print(&as_json(&args.by, &lines, &total, &prices).to_string())?;
        return Ok(ExitStatus::AllDone);
    }
    let names = args.by.iter().map(UsageDimension::name);
    let mut rows = vec![names.chain(COLUMNS.map(Into::into)).collect::<Vec<_>>()];
    rows.extend(lines.iter().map(row));
    if args.csv {
        print(table::csv(&rows).trim_end())?;
        return Ok(ExitStatus::AllDone);
    }
    if lines.len() > 1 {
        let keys = args.by.iter().enumerate();
        let keys = keys.map(|(n, _)| if n == 0 { "total".to_owned() } else { String::new() });
        rows.push(row(&UsageLine { keys: keys.collect(), ..total.clone() }));
    }
    print(table::aligned(&rows, args.by.len()).trim_end())?;
    say(&format!("cost in {}, by prices of {}", prices.currency, prices.date));
    if let Some(line) = answers_text::unreported(total.usage) {
        say(&line);
    }
    if total.cost.unpriced_tokens > 0 {
        say(&format!(
            "{} tokens are of models without a price: add them to the price table \
             ([prices] file in the configuration)",
            total.cost.unpriced_tokens
        ));
    }
    Ok(ExitStatus::AllDone)
}

fn row(line: &UsageLine) -> Vec<String> {
    let UsageLine { keys, jobs, attempts, usage, cost, .. } = line;
    let numbers = [*jobs, *attempts, usage.prompt, usage.cached, usage.completion, usage.reasoning];
    let numbers = numbers.iter().map(u64::to_string);
    keys.iter().cloned().chain(numbers).chain([cost_text(*cost)]).collect()
}

fn cost_text(cost: Cost) -> String {
    if cost.unpriced_tokens == 0 { cost.known.to_string() } else { "unknown".to_owned() }
}

fn as_json(
    by: &[UsageDimension],
    lines: &[UsageLine],
    total: &UsageLine,
    prices: &Prices,
) -> Value {
    let named = |line: &UsageLine| {
        let mut object = serde_json::to_value(line).unwrap_or_default();
        object["keys"] = by.iter().map(UsageDimension::name).zip(line.keys.clone()).collect();
        object
    };
    json!({
        "currency": prices.currency,
        "prices_of": prices.date,
        "lines": lines.iter().map(named).collect::<Vec<_>>(),
        "total": total,
        "unpriced_tokens": total.cost.unpriced_tokens,
    })
}
