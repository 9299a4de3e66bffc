//! `promptmill why`: why a job or a batch is not done, in sentences.

use std::time::Duration;

use indicatif::HumanDuration;
use jiff::Timestamp;

use super::{CommandError, ExitStatus, print, print_lines};
use crate::backends;
use crate::config::Config;
use control::batches::BatchStatus;
use domain::inquiry::{
    BlockReason, BlockedDeployment, JobStage, JobWait, LeasedJobCounts, LeasedJobReport,
};
use domain::job::BatchId;
use queue::peek;
use report::why::{self, BatchExplanation, JobExplanation, JobLocation, WhyReport, WorkerProcess};
use store::BatchState;

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
        WhyReport::Batch(of) => batch_lines(of),
        WhyReport::Job(of) => job_lines(of),
    };
    print_lines(&lines)?;
    Ok(ExitStatus::AllDone)
}

fn batch_lines(of: &BatchExplanation) -> Vec<String> {
    let s = &of.status;
    let endings: String = s.totals.endings.iter().map(|(e, n)| format!("{n} {e}, ")).collect();
    let mut lines = vec![format!(
        "{}: {}; {} jobs = {endings}{} pending",
        s.batch,
        state_text(s),
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
            None => lines.push(format!("worker {}: does not answer", worker_name(&worker.worker))),
            Some(holds) => lines.extend(holding_lines(&worker.worker, holds)),
        }
    }
    lines
}

const NO_WORKER: &str = "no worker is alive on this store: start one with `promptmill work` (a \
                         `promptmill run` works alone and is not seen from outside)";

fn holding_lines(worker: &WorkerProcess, holds: &LeasedJobCounts) -> Vec<String> {
    let mut lines = vec![format!(
        "worker {}: holds {} of its jobs: {} in line, {} in flight, {} waiting for a retry",
        worker_name(worker),
        holds.jobs(),
        holds.in_line(),
        holds.in_flight(),
        holds.retries
    )];
    for line in &holds.lines {
        let next = line
            .first
            .goes_in_ms
            .map_or(String::new(), |ms| format!("; it goes {}", relative_time(ms)));
        lines.push(format!("  the first of {} in line waits{next}", line.jobs));
        lines.extend(line.first.blocks.iter().map(|block| format!("    {}", block_text(block))));
    }
    lines.extend(
        holds.calls.iter().map(|(deployment, n)| format!("  {n} in flight at {deployment}")),
    );
    if let Some(ms) = holds.next_retry_in_ms {
        lines.push(format!("  the next is retried {}", relative_time(ms)));
    }
    lines
}

fn job_lines(of: &JobExplanation) -> Vec<String> {
    let mut lines = vec![format!("job {} of batch {}", of.id, of.batch)];
    match &of.location {
        JobLocation::Ended { ending, failure, attempts, deployment, finished_at } => {
            let at = if deployment.is_empty() { String::new() } else { format!(" at {deployment}") };
            lines.push(format!("{ending}{at} on {finished_at}, after {attempts} attempts"));
            lines.extend(failure.as_ref().map(|f| format!("{}: {}", f.code, f.message)));
        }
        JobLocation::Held { worker, job } => {
            lines.push(format!("held by worker {}", worker_name(worker)));
            lines.extend(held_job_lines(job));
        }
        JobLocation::Queued { seen } => lines.extend(seen.iter().flat_map(peeked_job_lines)),
        JobLocation::NotSeen { looked_at } => lines.push(format!(
            "it has not ended, and no worker holds it; it is not among the first {} messages of the \
             queue, which can't be searched any further",
            looked_at.unwrap_or_default()
        )),
    }
    if let JobLocation::Ended { .. } = of.location {
        return lines;
    }
    lines.extend(of.status.as_ref().and_then(state_reason));
    if of.workers == 0 {
        lines.push(NO_WORKER.to_owned());
    } else if of.silent > 0 {
        lines.push(format!("{} of {} workers did not answer", of.silent, of.workers));
    }
    lines
}

fn held_job_lines(job: &LeasedJobReport) -> Vec<String> {
    let mut lines = Vec::new();
    match &job.at {
        JobStage::Call { deployment, since_ms } => {
            let span = HumanDuration(Duration::from_millis(*since_ms));
            lines.push(format!("in flight at {deployment} for {span:#}"));
        }
        JobStage::Retry { due_in_ms } => {
            lines.push(format!("it is retried {}", relative_time(*due_in_ms)))
        }
        JobStage::Line { wait } => lines.extend(wait_lines(wait)),
    }
    if job.attempts > 0 {
        let why = job.last_error.as_deref().unwrap_or("an error");
        lines.push(format!("attempt {} failed: {why}", job.attempts));
    }
    let deadline = job.deadline_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
    lines.extend(deadline.map(|at| format!("it expires at {at} if it has not been sent by then")));
    lines
}

fn wait_lines(wait: &JobWait) -> Vec<String> {
    let goes =
        wait.goes_in_ms.map_or(String::new(), |ms| format!("; it goes {}", relative_time(ms)));
    let mut lines = vec![format!(
        "in line for {} tokens, behind {} jobs with {} tokens{goes}",
        wait.charge, wait.ahead, wait.ahead_tokens
    )];
    lines.extend(wait.blocks.iter().map(|block| format!("  {}", block_text(block))));
    lines
}

fn block_text(block: &BlockedDeployment) -> String {
    let per_cent = |share: f64| format!("{:.0} %", share * 100.0);
    let known = |limit: Option<u64>| limit.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    let why = match &block.reason {
        BlockReason::Tokens { tpm, share } => {
            format!(
                "waits for tokens (quota {} a minute, our share {})",
                known(*tpm),
                per_cent(*share)
            )
        }
        BlockReason::Requests { rpm, share } => {
            format!(
                "waits for requests (quota {} a minute, our share {})",
                known(*rpm),
                per_cent(*share)
            )
        }
        BlockReason::Calls { in_flight } => {
            format!("is at its limit of calls in flight: {in_flight}")
        }
        BlockReason::Paused { error } => {
            format!("pauses after a refusal: {}", error.as_deref().unwrap_or("429"))
        }
        BlockReason::RefusedJob => "refused the job for good; another one may take it".to_owned(),
        BlockReason::Breaker { error } => {
            format!("keeps failing or refusing, so single calls probe it: {error}")
        }
        BlockReason::Retired { error } => format!("removed from the pool: {error}"),
        BlockReason::TooLarge { most } => {
            format!("can never grant so many tokens; at most {most} for one call")
        }
        BlockReason::Deadline => "the job's deadline is too near for the flex tier".to_owned(),
        BlockReason::FailedHere => "failed the job just now; another one is tried first".to_owned(),
        BlockReason::TierAbove => "a tier above it can take the job soon".to_owned(),
        BlockReason::Line => "free as soon as the jobs before it have gone".to_owned(),
    };
    let over = block.over_in_ms.map_or(String::new(), |ms| format!(", until {}", clock_time(ms)));
    format!("{} (tier {}): {why}{over}", block.deployment, block.tier)
}

fn peeked_job_lines(seen: &peek::PeekedJob) -> Vec<String> {
    let place = match seen.place {
        peek::QueuePosition::Ready { ahead } => {
            format!("in the queue, not handed out yet; {ahead} before it")
        }
        peek::QueuePosition::Locked { until } => {
            format!("handed out; its lock lasts until {until}")
        }
        peek::QueuePosition::Scheduled { until } => format!("waits in the queue until {until}"),
        peek::QueuePosition::Active => {
            "in the queue, or handed out: the queue does not report which".to_owned()
        }
    };
    let mut lines = vec![format!("{place}; handed out {} times so far", seen.deliveries)];
    if seen.attempts > 0 {
        let why = seen.last_error.as_deref().unwrap_or("an error");
        lines.push(format!("attempt {} failed: {why}", seen.attempts));
    }
    lines.extend(
        seen.deadline.map(|at| format!("it expires at {at} if it has not been sent by then")),
    );
    lines
}

fn state_text(s: &BatchStatus) -> String {
    let reason = s.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    format!("{}{reason}", s.state.as_str())
}

/// Explains how the batch's state keeps its jobs from going on.
fn state_reason(s: &BatchStatus) -> Option<String> {
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
        BatchState::Enqueuing => {
            Some("its jobs are still being added; run an interrupted enqueue again".to_owned())
        }
        BatchState::Running | BatchState::Done => None,
    }
}

fn worker_name(worker: &WorkerProcess) -> String {
    match worker.pid {
        Some(pid) => format!("{pid} on {}", worker.host),
        None => worker.host.clone(),
    }
}

fn relative_time(ms: u64) -> String {
    if ms < 1_000 { "now".to_owned() } else { format!("in about {:.0} s", ms as f64 / 1e3) }
}

/// Formats a time of day, since people look at clocks.
fn clock_time(ms: u64) -> String {
    let at = Timestamp::now() + Duration::from_millis(ms);
    format!("about {} ({})", at.strftime("%H:%M:%S UTC"), relative_time(ms))
}
