//! Sentences about a batch: its jobs in the queue, and those that each worker holds.

use super::block_text::{block_line, relative_time};
use super::state_text::{NO_WORKER, state, state_reason, worker_name};
use domain::inquiry::LeasedJobCounts;
use report::why::{BatchExplanation, WorkerProcess};

/// Explains why a batch is not done.
pub(super) fn lines(of: &BatchExplanation) -> Vec<String> {
    let s = &of.status;
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
            None => lines.push(format!("worker {}: does not answer", worker_name(&worker.worker))),
            Some(holds) => lines.extend(holding_lines(&worker.worker, holds)),
        }
    }
    lines
}

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
        lines.extend(line.first.blocks.iter().map(|block| format!("    {}", block_line(block))));
    }
    lines.extend(
        holds.calls.iter().map(|(deployment, n)| format!("  {n} in flight at {deployment}")),
    );
    if let Some(ms) = holds.next_retry_in_ms {
        lines.push(format!("  the next is retried {}", relative_time(ms)));
    }
    lines
}
