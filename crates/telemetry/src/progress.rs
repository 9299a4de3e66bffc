//! What one worker has done so far: counters that progress bars, gauges and webhooks read.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use domain::deployment::DeploymentSnapshot;
use domain::outcome::{Outcome, OutcomeStatus, TokenUsage};
use store::Recorded;

use crate::stage_latency::StageLatency;

/// Live counters of a worker.
#[derive(Debug, Default)]
pub struct WorkerProgress {
    endings: [AtomicU64; OutcomeStatus::ALL.len()],
    prompt_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    /// Tokens booked for the calls that were started.
    pub charged: AtomicU64,
    /// Throttled calls (429).
    pub throttled: AtomicU64,
    /// Calls that ended in a transient error.
    pub transient_errors: AtomicU64,
    /// Deliveries held by this worker.
    pub held: AtomicU64,
    /// Calls still in flight when the grace time was over: these alone may be paid twice.
    pub aborted_calls: AtomicU64,
    /// Outcomes of calls whose job had its outcome already: these were paid and are not counted above.
    pub late_outcomes: AtomicU64,
    /// Number of durable commits of groups of outcomes.
    pub commits: AtomicU64,
    /// Latency from a job's end to its outcome being durable.
    pub record_latency: StageLatency,
    /// From there until the queue has deleted the job.
    pub settle_latency: StageLatency,
    /// State of every deployment, once a second.
    pub deployments: watch::Sender<Vec<DeploymentSnapshot>>,
}

impl WorkerProgress {
    /// Returns the outcomes recorded by this worker.
    pub fn of(&self, ending: OutcomeStatus) -> u64 {
        self.endings[ending as usize].load(Ordering::Relaxed)
    }

    pub fn ended(&self) -> u64 {
        OutcomeStatus::ALL.into_iter().map(|ending| self.of(ending)).sum()
    }

    /// Returns the tokens of the recorded answers.
    pub fn tokens(&self) -> u64 {
        self.prompt_tokens.load(Ordering::Relaxed) + self.completion_tokens.load(Ordering::Relaxed)
    }

    /// Adds so many jobs that ended so.
    pub fn count_ended(&self, ending: OutcomeStatus, jobs: u64) {
        self.endings[ending as usize].fetch_add(jobs, Ordering::Relaxed);
    }

    /// Adds the outcomes that these records were the first for.
    pub fn add_recorded(&self, outcomes: &[Outcome], proofs: &[Recorded]) {
        let mut sum = TokenUsage::default();
        for (outcome, proof) in outcomes.iter().zip(proofs) {
            if !proof.is_first() {
                // One without a deployment ended without a call.
                let was_called = !outcome.deployment.is_empty();
                self.late_outcomes.fetch_add(u64::from(was_called), Ordering::Relaxed);
                continue;
            }
            // The store may have had to record it as failed.
            self.count_ended(proof.ending(), 1);
            sum += outcome.usage;
        }
        self.prompt_tokens.fetch_add(sum.prompt, Ordering::Relaxed);
        self.completion_tokens.fetch_add(sum.completion, Ordering::Relaxed);
    }
}
