//! What the pipe came to: as a value, and as a terminal shows it.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::PipeLive;
use crate::report::Dist;
use domain::job::BatchId;
use domain::outcome::Ending;

/// A pipe, measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipeReport {
    /// The version that measured.
    pub promptmill: String,
    pub started_at: Timestamp,
    pub setup: PipeSetup,
    /// The name of the jobs in the store.
    pub batch: BatchId,
    pub ended: Ended,
    pub enqueued: Enqueued,
    pub worked: Worked,
}

/// What it was made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PipeSetup {
    pub queue: String,
    pub store: String,
    pub deployments: Vec<String>,
    pub requests: String,
    pub jobs: u64,
    /// Calls that may be in flight at a time.
    pub calls: usize,
}

/// Why it was over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
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

/// Jobs into the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Enqueued {
    pub jobs: u64,
    /// In the queue's hands.
    pub seconds: f64,
    pub jobs_per_second: f64,
    /// Of calls with up to 2,000 jobs.
    pub send: Option<Dist>,
}

/// Jobs from the queue to their ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worked {
    /// Jobs with an outcome.
    pub jobs: u64,
    pub endings: BTreeMap<Ending, u64>,
    /// From the worker's start to the last outcome.
    pub seconds: f64,
    pub jobs_per_second: f64,
    /// Outcomes in each whole second.
    pub series: Vec<u64>,
    pub calls: Calls,
    /// Of the answers: prompt and completion.
    pub tokens_per_minute: f64,
    /// From a job's end to its outcome being durable: a crash in this time pays the call again.
    pub record: Option<Dist>,
    /// From there until the queue has forgotten the job.
    pub settle: Option<Dist>,
    pub jobs_per_commit: f64,
    /// Absent where a deployment's quota is not known.
    pub quota: Option<QuotaUse>,
    /// Processor time of this process.
    pub cpu_us_per_job: f64,
}

/// Calls that brought no outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Refused for quota.
    pub throttled: u64,
    /// Ended in a passing fault.
    pub faults: u64,
}

/// How much of the quota was used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QuotaUse {
    /// Of all deployments, as configured or learnt.
    pub tpm: u64,
    /// Booked: prompt plus the most that each may answer, refused calls included.
    pub charged_tpm: f64,
    /// 1.0: all of it.
    pub used: f64,
}

impl fmt::Display for PipeReport {
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
            Ended::Complete => Ok(()),
            Ended::Interrupted => {
                writeln!(f, "\ninterrupted: the figures are of what was worked until then")
            }
            Ended::NoDeployment { why } => writeln!(f, "\nstopped: no deployment answers: {why}"),
            Ended::Unreachable { why } => writeln!(f, "\nstopped: no endpoint is in reach: {why}"),
        }
    }
}

impl fmt::Display for Worked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "worked      {} jobs in {:.1} s: {:.0} jobs/s;",
            self.jobs, self.seconds, self.jobs_per_second
        )?;
        for (n, (ending, jobs)) in self.endings.iter().enumerate() {
            write!(f, "{} {jobs} {ending}", if n > 0 { "," } else { "" })?;
        }
        let Calls { throttled, faults } = self.calls;
        writeln!(f, "\ncalls       {throttled} refused for quota (429), {faults} passing faults")?;
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

fn write_dist(f: &mut fmt::Formatter<'_>, name: &str, dist: &Dist) -> fmt::Result {
    write!(f, "{name:<6} {:>9.2}", dist.mean_ms)?;
    for share in [0.5, 0.9, 0.95, 0.99, 0.999] {
        write!(f, " {:>9.2}", dist.percentile(share).map_or(0.0, |percentile| percentile.ms))?;
    }
    writeln!(f, " {:>9.2}", dist.max_ms)
}

impl fmt::Display for PipeLive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ended, recent, throttled, held, .. } = self;
        let elapsed = self.elapsed.as_secs_f64();
        write!(
            f,
            "{elapsed:>4.0} s  {ended} ended, {recent} a second  429 {throttled}  held {held}"
        )
    }
}
