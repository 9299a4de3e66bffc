//! What one worker has done so far: counters that progress bars, gauges and webhooks read.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use admission::snapshot::Snapshot;
use domain::outcome::{Ending, Outcome, Usage};
use store::Recorded;

use crate::laps::Laps;

/// What has happened so far, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    endings: [AtomicU64; Ending::ALL.len()],
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    /// Tokens booked for the calls that were started.
    pub charged: AtomicU64,
    /// Calls refused for want of quota.
    pub throttled: AtomicU64,
    /// Calls that ended in a passing fault.
    pub faults: AtomicU64,
    /// Deliveries in this worker's hands.
    pub held: AtomicU64,
    /// Calls still in flight when the grace time was over: these alone may be paid twice.
    pub cut_off: AtomicU64,
    /// Times when groups of outcomes were made durable.
    pub commits: AtomicU64,
    /// From a job's end to its outcome being durable.
    pub record: Laps,
    /// From there until the queue has forgotten the job.
    pub settle: Laps,
    /// Every deployment's state, once a second.
    pub deployments: watch::Sender<Vec<Snapshot>>,
}

impl Progress {
    /// Outcomes recorded by this worker.
    pub fn of(&self, ending: Ending) -> u64 {
        self.endings[ending as usize].load(Ordering::Relaxed)
    }

    pub fn ended(&self) -> u64 {
        Ending::ALL.into_iter().map(|ending| self.of(ending)).sum()
    }

    /// Tokens of the recorded answers.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.load(Ordering::Relaxed) + self.completion_tokens.load(Ordering::Relaxed)
    }

    /// Adds so many jobs that ended so.
    pub fn count_ended(&self, ending: Ending, jobs: u64) {
        self.endings[ending as usize].fetch_add(jobs, Ordering::Relaxed);
    }

    /// Adds the outcomes that these records were the first for.
    pub fn count(&self, outcomes: &[Outcome], proofs: &[Recorded]) {
        let mut sum = Usage::default();
        for (outcome, _) in outcomes.iter().zip(proofs).filter(|(_, proof)| proof.is_first()) {
            self.count_ended(outcome.ending, 1);
            sum += outcome.usage;
        }
        self.prompt_tokens.fetch_add(sum.prompt, Ordering::Relaxed);
        self.completion_tokens.fetch_add(sum.completion, Ordering::Relaxed);
    }
}
