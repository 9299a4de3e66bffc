//! Report of a pipeline benchmark: as a value, and as terminal output.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::report::LatencyDistribution;
use domain::job::BatchId;
use domain::outcome::OutcomeStatus;
use worker::WorkerExit;

/// Measurements of a pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineReport {
    /// The version that measured.
    pub promptmill: String,
    pub started_at: Timestamp,
    pub setup: PipelineSetup,
    /// Batch of the jobs in the store.
    pub batch: BatchId,
    pub ended: PipelineStopReason,
    pub enqueued: EnqueueStats,
    pub worked: WorkStats,
}

/// Configuration that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipelineSetup {
    pub queue: String,
    pub store: String,
    pub deployments: Vec<String>,
    pub requests: String,
    pub jobs: u64,
    /// Limit of calls in flight.
    pub calls: usize,
}

/// Reason why the measurement ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PipelineStopReason {
    Complete,
    Interrupted,
    /// No deployment will answer as configured.
    NoDeployment {
        why: String,
    },
    Unreachable {
        why: String,
    },
}

impl PipelineStopReason {
    /// Returns the end of the worker that was measured.
    pub fn as_exit(&self) -> WorkerExit {
        match self {
            Self::Complete => WorkerExit::Drained,
            Self::Interrupted => WorkerExit::Stopped,
            Self::NoDeployment { why } => WorkerExit::NoDeployment { why: why.clone() },
            Self::Unreachable { why } => WorkerExit::Unreachable { why: why.clone() },
        }
    }
}

impl From<WorkerExit> for PipelineStopReason {
    fn from(exit: WorkerExit) -> Self {
        match exit {
            WorkerExit::Drained => Self::Complete,
            // Somebody paused the batch: what was measured until then is no measurement of all.
            WorkerExit::Stopped | WorkerExit::Paused { .. } => Self::Interrupted,
            WorkerExit::NoDeployment { why } => Self::NoDeployment { why },
            WorkerExit::Unreachable { why } => Self::Unreachable { why },
        }
    }
}

/// Sending jobs to the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnqueueStats {
    pub jobs: u64,
    /// Time spent in the queue's calls.
    pub seconds: f64,
    pub jobs_per_second: f64,
    /// Durations of calls with up to 2,000 jobs.
    pub send: Option<LatencyDistribution>,
}

/// Work on the jobs, from the queue to their outcomes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkStats {
    /// Jobs with an outcome.
    pub jobs: u64,
    pub endings: BTreeMap<OutcomeStatus, u64>,
    /// From the worker's start to the last outcome.
    pub seconds: f64,
    pub jobs_per_second: f64,
    /// Outcomes in each whole second.
    pub series: Vec<u64>,
    pub calls: CallErrorCounts,
    /// Tokens of the answers: prompt and completion.
    pub tokens_per_minute: f64,
    /// From a job's end to its outcome being durable: a crash in this time pays the call again.
    pub record: Option<LatencyDistribution>,
    /// Latency from there until the queue has removed the job.
    pub settle: Option<LatencyDistribution>,
    pub jobs_per_commit: f64,
    /// Absent where a deployment's quota is unknown.
    pub quota: Option<QuotaUse>,
    /// Processor time of this process.
    pub cpu_us_per_job: f64,
}

/// Calls without an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallErrorCounts {
    /// Throttled (429).
    pub throttled: u64,
    /// Ended in a transient error.
    pub faults: u64,
}

/// Use of the quota.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QuotaUse {
    /// Tokens a minute of all deployments, as configured or learnt.
    pub tpm: u64,
    /// Booked tokens: prompt plus the most that each may answer, throttled calls included.
    pub charged_tpm: f64,
    /// Share of the quota; 1.0 is all of it.
    pub used: f64,
}

impl fmt::Display for PipelineReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setup, enqueued, worked, .. } = self;
        writeln!(f, "queue       {}", setup.queue)?;
        writeln!(f, "store       {}", setup.store)?;
        let (deployments, calls) = (setup.deployments.join(", "), setup.calls);
        writeln!(f, "deployments {deployments}; up to {calls} calls at a time")?;
        writeln!(f, "requests    {} of {}", setup.jobs, setup.requests)?;
        writeln!(f)?;
        writeln!(
            f,
            "enqueued    {} jobs in {:.1} s: {:.0} jobs/s",
            enqueued.jobs, enqueued.seconds, enqueued.jobs_per_second
        )?;
        worked.fmt(f)?;
        writeln!(
            f,
            "ms          mean       p50       p90       p95       p99     p99.9       max"
        )?;
        let kinds =
            [("send", &enqueued.send), ("record", &worked.record), ("settle", &worked.settle)];
        for (name, dist) in kinds {
            dist.as_ref().map_or(Ok(()), |dist| write_dist(f, name, dist))?;
        }
        match &self.ended {
            PipelineStopReason::Complete => Ok(()),
            PipelineStopReason::Interrupted => {
                writeln!(f, "\ninterrupted: the figures cover the work done until then")
            }
            reason => writeln!(f, "\nstopped: {}", reason.as_exit()),
        }
    }
}

impl fmt::Display for WorkStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "worked      {} jobs in {:.1} s: {:.0} jobs/s;",
            self.jobs, self.seconds, self.jobs_per_second
        )?;
        for (n, (ending, jobs)) in self.endings.iter().enumerate() {
            write!(f, "{} {jobs} {ending}", if n > 0 { "," } else { "" })?;
        }
        let CallErrorCounts { throttled, faults } = self.calls;
        writeln!(f, "\ncalls       {throttled} throttled (429), {faults} transient errors")?;
        writeln!(f, "tokens      {:.0} a minute", self.tokens_per_minute)?;
        match &self.quota {
            Some(QuotaUse { tpm, charged_tpm, used }) => writeln!(
                f,
                "quota       {:.1} % of {tpm} tokens a minute: {charged_tpm:.0} were booked",
                used * 100.0
            )?,
            None => writeln!(f, "quota       not known")?,
        }
        writeln!(
            f,
            "client      {:.0} us CPU a job; {:.0} jobs a commit",
            self.cpu_us_per_job, self.jobs_per_commit
        )
    }
}

fn write_dist(f: &mut fmt::Formatter<'_>, name: &str, dist: &LatencyDistribution) -> fmt::Result {
    write!(f, "{name:<6} {:>9.2}", dist.mean_ms)?;
    for share in [0.5, 0.9, 0.95, 0.99, 0.999] {
        write!(f, " {:>9.2}", dist.percentile(share).map_or(0.0, |percentile| percentile.ms))?;
    }
    writeln!(f, " {:>9.2}", dist.max_ms)
}

/// Progress, once a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PipelineLiveStats {
    pub elapsed: Duration,
    pub ended: u64,
    /// Jobs that ended in this second.
    pub recent: u64,
    pub throttled: u64,
    pub held: u64,
}

impl fmt::Display for PipelineLiveStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ended, recent, throttled, held, .. } = self;
        let elapsed = self.elapsed.as_secs_f64();
        write!(
            f,
            "{elapsed:>4.0} s  {ended} ended, {recent} a second  429 {throttled}  held {held}"
        )
    }
}
