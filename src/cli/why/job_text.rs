//! Sentences about a job: where it is, and what it waits for there.

use std::time::Duration;

use indicatif::HumanDuration;
use jiff::Timestamp;

use super::block_text::{block_line, relative_time};
use super::state_text::{NO_WORKER, state_reason, worker_name};
use domain::inquiry::{JobStage, JobWait, LeasedJobReport};
use queue::peek::{PeekedJob, QueuePosition};
use report::why::{JobExplanation, JobLocation};

/// Explains why a job is not done.
pub(super) fn lines(of: &JobExplanation) -> Vec<String> {
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
    lines.extend(wait.blocks.iter().map(|block| format!("  {}", block_line(block))));
    lines
}

fn peeked_job_lines(seen: &PeekedJob) -> Vec<String> {
    let place = match seen.place {
        QueuePosition::Ready { ahead } => {
            format!("in the queue, not handed out yet; {ahead} before it")
        }
        QueuePosition::Locked { until } => {
            format!("handed out; its lock lasts until {until}")
        }
        QueuePosition::Scheduled { until } => format!("waits in the queue until {until}"),
        QueuePosition::Active => {
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
