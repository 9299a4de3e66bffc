//! `promptmill why`: why a job or a batch is not done, in sentences.

use std::time::Duration;

use indicatif::HumanDuration;
use jiff::Timestamp;

use super::{Exit, Failure, print};
use crate::backends;
use crate::config::Config;
use admission::explain::{Block, Hindrance, Wait};
use control::batches::Standing;
use domain::job::BatchId;
use queue::QueueError;
use queue::sight;
use report::why::{self, OfBatch, OfJob, Place, Who, Why, WhyError};
use store::{BatchState, StoreError};
use worker::explain::{At, Holding, Told};

/// Say why a job or a batch is not done: what it waits for, until about when, and who holds it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A batch, or a job by its custom_id or its id
    #[arg(value_name = "JOB|BATCH")]
    name: String,
    /// The job's batch
    #[arg(long, value_name = "NAME")]
    batch: Option<BatchId>,
    /// Print as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let (queue, store) = (backends::open_queue(&config)?, backends::open_store(&config).await?);
    let batch = args.batch.as_ref();
    let why = why::explain(queue.as_ref(), store.as_ref(), &args.name, batch).await;
    queue.close().await;
    let why = why.map_err(|error| match error {
        WhyError::Queue(QueueError::Unavailable(_))
        | WhyError::Store(StoreError::Unavailable(_)) => Failure::unreachable(error),
        error => Failure::usage(error),
    })?;
    if args.json {
        print(&serde_json::to_string(&why).unwrap_or_default());
        return Ok(Exit::AllDone);
    }
    let lines = match &why {
        Why::Batch(of) => batch_lines(of),
        Why::Job(of) => job_lines(of),
    };
    lines.iter().for_each(|line| print(line));
    Ok(Exit::AllDone)
}

fn batch_lines(of: &OfBatch) -> Vec<String> {
    let s = &of.standing;
    let endings: String = s.totals.endings.iter().map(|(e, n)| format!("{n} {e}, ")).collect();
    let mut lines = vec![format!(
        "{}: {}; {} jobs = {endings}{} pending",
        s.batch,
        state(s),
        s.jobs,
        s.pending
    )];
    if s.pending == 0 {
        return lines;
    }
    let seen = match of.looked_at {
        None => String::new(),
        Some(n) => format!(" (of the first {n} messages; the queue can't be searched)"),
    };
    let queue = of.queue;
    lines.push(format!(
        "in the queue: {} ready, {} handed out, {} scheduled for later{seen}",
        queue.active, queue.locked, queue.scheduled
    ));
    lines.extend(state_reason(s));
    if of.workers.is_empty() {
        lines.push(NO_WORKER.to_owned());
    }
    for worker in &of.workers {
        match &worker.holds {
            None => lines.push(format!("worker {}: does not answer", name(&worker.worker))),
            Some(holds) => lines.extend(holding_lines(&worker.worker, holds)),
        }
    }
    lines
}

const NO_WORKER: &str = "no worker is alive on this store: start one with `promptmill work` (a \
                         `promptmill run` works alone and is not seen from outside)";

fn holding_lines(worker: &Who, holds: &Holding) -> Vec<String> {
    let mut lines = vec![format!(
        "worker {}: holds {} of its jobs: {} in line, {} in flight, {} waiting to be tried again",
        name(worker),
        holds.jobs(),
        holds.in_line(),
        holds.in_flight(),
        holds.retries
    )];
    for line in &holds.lines {
        let next =
            line.first.goes_in_ms.map_or(String::new(), |ms| format!("; it goes {}", soon(ms)));
        lines.push(format!("  the first of {} in line waits{next}", line.jobs));
        lines.extend(line.first.blocks.iter().map(|block| format!("    {}", block_text(block))));
    }
    lines.extend(
        holds.calls.iter().map(|(deployment, n)| format!("  {n} in flight at {deployment}")),
    );
    if let Some(ms) = holds.next_retry_in_ms {
        lines.push(format!("  the next is tried again {}", soon(ms)));
    }
    lines
}

fn job_lines(of: &OfJob) -> Vec<String> {
    let mut lines = vec![format!("job {} of batch {}", of.id, of.batch)];
    match &of.place {
        Place::Ended { ending, failure, attempts, deployment, finished_at } => {
            let at = if deployment.is_empty() { String::new() } else { format!(" at {deployment}") };
            lines.push(format!("{ending}{at} on {finished_at}, after {attempts} tries"));
            lines.extend(failure.as_ref().map(|f| format!("{}: {}", f.code, f.message)));
        }
        Place::Held { worker, job } => {
            lines.push(format!("held by worker {}", name(worker)));
            lines.extend(told_lines(job));
        }
        Place::Queued { seen } => lines.extend(seen.iter().flat_map(seen_lines)),
        Place::NotSeen { looked_at } => lines.push(format!(
            "it has not ended, and no worker holds it; it is not among the first {} messages of the \
             queue, which can't be searched any further",
            looked_at.unwrap_or_default()
        )),
    }
    if let Place::Ended { .. } = of.place {
        return lines;
    }
    lines.extend(of.standing.as_ref().and_then(state_reason));
    if of.workers == 0 {
        lines.push(NO_WORKER.to_owned());
    } else if of.silent > 0 {
        lines.push(format!("{} of {} workers did not answer", of.silent, of.workers));
    }
    lines
}

fn told_lines(job: &Told) -> Vec<String> {
    let mut lines = Vec::new();
    match &job.at {
        At::Call { deployment, since_ms } => {
            let span = HumanDuration(Duration::from_millis(*since_ms));
            lines.push(format!("in flight at {deployment} for {span:#}"));
        }
        At::Retry { due_in_ms } => lines.push(format!("it is tried again {}", soon(*due_in_ms))),
        At::Line { wait } => lines.extend(wait_lines(wait)),
    }
    if job.tries > 0 {
        let why = job.last_error.as_deref().unwrap_or("a fault");
        lines.push(format!("try {} failed: {why}", job.tries));
    }
    let deadline = job.deadline_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    lines.extend(deadline.map(|at| format!("it expires at {at} if it has not been sent by then")));
    lines
}

fn wait_lines(wait: &Wait) -> Vec<String> {
    let goes = wait.goes_in_ms.map_or(String::new(), |ms| format!("; it goes {}", soon(ms)));
    let mut lines = vec![format!(
        "in line for {} tokens, behind {} jobs with {} tokens{goes}",
        wait.charge, wait.ahead, wait.ahead_tokens
    )];
    lines.extend(wait.blocks.iter().map(|block| format!("  {}", block_text(block))));
    lines
}

fn block_text(block: &Block) -> String {
    let per_cent = |share: f64| format!("{:.0} %", share * 100.0);
    let known = |limit: Option<u64>| limit.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let why = match &block.hindrance {
        Hindrance::Tokens { tpm, share } => {
            format!(
                "waits for tokens (quota {} a minute, our share {})",
                known(*tpm),
                per_cent(*share)
            )
        }
        Hindrance::Requests { rpm, share } => {
            format!(
                "waits for requests (quota {} a minute, our share {})",
                known(*rpm),
                per_cent(*share)
            )
        }
        Hindrance::Calls { in_flight } => {
            format!("has as many calls in flight as it may: {in_flight}")
        }
        Hindrance::Paused => "paused by a 429's retry-after".to_owned(),
        Hindrance::Missing => "not found; it is asked again from time to time".to_owned(),
        Hindrance::Breaker { error } => format!("keeps failing, so its breaker is open: {error}"),
        Hindrance::Retired { error } => format!("out of the pool: {error}"),
        Hindrance::TooLarge { most } => {
            format!("never gives so many tokens; at most {most} for one call")
        }
        Hindrance::Deadline => "the job's deadline is too near for the flex tier".to_owned(),
        Hindrance::FailedHere => "failed the job just now; another one is tried first".to_owned(),
        Hindrance::TierAbove => "a tier above it can take the job soon".to_owned(),
        Hindrance::Line => "free as soon as the jobs before it have gone".to_owned(),
    };
    let over = block.over_in_ms.map_or(String::new(), |ms| format!(", until {}", about(ms)));
    format!("{} (tier {}): {why}{over}", block.deployment, block.tier)
}

fn seen_lines(seen: &sight::Seen) -> Vec<String> {
    let place = match seen.place {
        sight::Place::Ready { ahead } => {
            format!("in the queue, not handed out yet; {ahead} before it")
        }
        sight::Place::Locked { until } => format!("handed out; its lock lasts until {until}"),
        sight::Place::Scheduled { until } => format!("waits in the queue until {until}"),
        sight::Place::Active => "in the queue, or handed out: the queue does not tell".to_owned(),
    };
    let mut lines = vec![format!("{place}; handed out {} times so far", seen.deliveries)];
    if seen.tries > 0 {
        let why = seen.last_error.as_deref().unwrap_or("a fault");
        lines.push(format!("try {} failed: {why}", seen.tries));
    }
    lines.extend(
        seen.deadline.map(|at| format!("it expires at {at} if it has not been sent by then")),
    );
    lines
}

fn state(s: &Standing) -> String {
    let reason = s.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    format!("{}{reason}", s.state.as_str())
}

/// What of the batch's state keeps its jobs.
fn state_reason(s: &Standing) -> Option<String> {
    match s.state {
        BatchState::Paused => {
            let why = s.reason.as_deref().unwrap_or("by hand");
            Some(format!(
                "the batch is paused: {why}; `promptmill resume {}` lets it go on",
                s.batch
            ))
        }
        BatchState::Cancelled => {
            Some("the batch is cancelled: the workers end its jobs as they come to them".to_owned())
        }
        BatchState::Enqueuing => Some(
            "its jobs are still being added; an enqueue that broke off is to be run again"
                .to_owned(),
        ),
        BatchState::Running | BatchState::Done => None,
    }
}

fn name(worker: &Who) -> String {
    match worker.pid {
        Some(pid) => format!("{pid} on {}", worker.host),
        None => worker.host.clone(),
    }
}

fn soon(ms: u64) -> String {
    if ms < 1_000 { "now".to_owned() } else { format!("in about {:.0} s", ms as f64 / 1e3) }
}

/// A time of day, since people look at clocks.
fn about(ms: u64) -> String {
    let at = Timestamp::now() + Duration::from_millis(ms);
    format!("about {} ({})", at.strftime("%H:%M:%S UTC"), soon(ms))
}
