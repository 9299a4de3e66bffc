//! `promptmill status`: batches, how far they are, what waits, and who works.

use serde_json::json;

use super::{Exit, Failure, print};
use crate::backends;
use crate::config::Config;
use crate::job::BatchId;
use crate::report::batches::{self, Standing};
use crate::report::deployments::{self, Deployment};
use crate::share::{Part, Word};

/// Show batches with their counts, how much waits in the queue, and the workers of the last minute
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
    let workers = store.words().await;
    queue.close().await;
    let standings = standings.map_err(Failure::unreachable)?;
    let depth = depth.map_err(Failure::unreachable)?;
    let workers = workers.map_err(Failure::unreachable)?;
    if let (Some(batch), []) = (&args.batch, standings.as_slice()) {
        return Err(Failure::usage(anyhow::anyhow!("there is no batch '{batch}'")));
    }
    if args.json {
        let deployments = deployments::sum(&workers);
        let status = json!({
            "batches": standings,
            "queue": depth,
            "deployments": deployments,
            "workers": workers,
        });
        print(&status.to_string());
        return Ok(Exit::AllDone);
    }
    for standing in &standings {
        print(&line(standing));
    }
    print(&format!(
        "queue: {} ready, {} locked, {} scheduled, {} dead letters",
        depth.active, depth.locked, depth.scheduled, depth.dead_letters
    ));
    deployments::sum(&workers).iter().for_each(|of| print(&deployment(of)));
    workers.iter().for_each(|word| print(&worker(word)));
    Ok(Exit::AllDone)
}

fn line(s: &Standing) -> String {
    let endings: Vec<_> = s.totals.endings.iter().map(|(e, n)| format!("{n} {e}")).collect();
    let ended =
        if endings.is_empty() { String::new() } else { format!(", {}", endings.join(", ")) };
    let (state, usage) = (s.state.as_str(), s.totals.usage);
    let why = s.reason.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    let budget = s.budget.as_ref().map_or(String::new(), |budget| format!(", budget of {budget}"));
    format!(
        "{}: {state}{why}, {} jobs{ended}, {} pending, {} prompt and {} completion tokens{budget}",
        s.batch, s.jobs, s.pending, usage.prompt, usage.completion
    )
}

fn deployment(d: &Deployment) -> String {
    let tpm = d.tpm.map_or_else(|| "unknown".to_owned(), |tpm| tpm.to_string());
    let mut line = format!(
        "deployment {}: {} tokens in the last minute of {tpm} TPM, {} waiting, {} calls in flight, \
         {} workers",
        d.name, d.used_last_minute, d.waiting, d.in_flight, d.workers
    );
    if let Some(ms) = d.paused_ms {
        line += &format!(", paused by a 429 for {} s more", ms.div_ceil(1_000));
    }
    d.troubles.iter().for_each(|why| line += &format!(", kept off: {why}"));
    line
}

fn worker(word: &Word) -> String {
    let about = |key: &str| word.about[key].as_str().unwrap_or("unknown").to_owned();
    let part = |(quota, part): (&String, &Part)| {
        let percent = |fraction: f64| format!("{:.0} %", fraction * 100.0);
        format!("{} of {quota} (could use {})", percent(part.claim), percent(part.demand))
    };
    let parts: Vec<_> = word.parts.iter().map(part).collect();
    format!(
        "worker {} on {}, since {}: {}",
        word.about["pid"],
        about("host"),
        about("started"),
        parts.join(", ")
    )
}
