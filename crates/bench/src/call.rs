//! One request of a benchmark: sent at its time, tried again if so told, and measured.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::watch::Watch;
use domain::job::Job;
use model::verdict::Verdict;
use model::{Called, Client, Reply};
use worker::retry;

/// Calls of one request before it counts as what its last call came to.
const MOST_TRIES: u32 = 8;

/// What is done about a 429 or a passing fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    None,
    /// Exponential backoff with full jitter, never before the time that the service asks for.
    Exponential,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    Succeeded,
    /// Refused for quota (429).
    Throttled,
    Failed {
        code: String,
    },
    /// Nothing that is sent to the endpoint will be answered.
    Misconfigured {
        why: String,
    },
}

/// One request, measured. Times are from the phase's start.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub intended: Duration,
    pub started: Duration,
    pub ended: Duration,
    pub ending: Ending,
    /// From the intended start to the first words; only of streams.
    pub ttft: Option<Duration>,
    /// Between tokens, on average over the answer; only of streams of two tokens and more.
    pub tbt: Option<Duration>,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// What the service books for it: prompt plus the most it may answer.
    pub charge: u64,
    /// Percent, as the service says.
    pub utilization: Option<f64>,
    pub calls: u32,
    /// Of these, refused for quota.
    pub refused_calls: u32,
}

/// When a request is to be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// The phase's start.
    pub(super) zero: Instant,
    pub(super) intended: Duration,
    /// After it nothing is tried again.
    pub(super) until: Option<Duration>,
}

/// Sends one request and waits for its end. Nothing is tried again after `halt`.
pub(super) async fn make(
    client: &Client,
    job: &Job,
    retry: Retry,
    times: Times,
    halt: &CancellationToken,
) -> Sample {
    let started = times.zero.elapsed();
    let mut sample = Sample {
        intended: times.intended,
        started,
        ended: started,
        ending: Ending::Throttled,
        ttft: None,
        tbt: None,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        charge: job.estimate.unwrap_or_default().charge(),
        utilization: None,
        calls: 0,
        refused_calls: 0,
    };
    loop {
        let mut watch = Watch::new(job.api);
        let Called { verdict, told } =
            client.call_watched(job, &mut |bytes| watch.read(Instant::now(), bytes)).await;
        sample.ended = times.zero.elapsed();
        sample.calls += 1;
        sample.utilization = told.utilisation.map(|share| share * 100.0).or(sample.utilization);
        let wait = match &verdict {
            Verdict::Answered(reply) => {
                sample.answered(reply, &watch, times);
                return sample;
            }
            Verdict::Throttled { pause } => {
                sample.refused_calls += 1;
                Some(*pause)
            }
            Verdict::Transient { retry_after, .. } => *retry_after,
            Verdict::Unreachable { .. } => None,
            Verdict::Refused(_) | Verdict::Missing { .. } | Verdict::Misconfigured { .. } => {
                sample.ending = ending(verdict);
                return sample;
            }
        };
        sample.ending = ending(verdict);
        let delay = retry::delay(sample.calls, wait, rand::random());
        let in_vain = times.until.is_some_and(|until| sample.ended + delay >= until);
        if retry == Retry::None || sample.calls >= MOST_TRIES || in_vain {
            return sample;
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = halt.cancelled() => return sample,
        }
    }
}

fn ending(verdict: Verdict) -> Ending {
    match verdict {
        Verdict::Answered(_) => Ending::Succeeded,
        Verdict::Throttled { .. } => Ending::Throttled,
        Verdict::Refused(error) | Verdict::Transient { error, .. } => {
            Ending::Failed { code: error.failure.code }
        }
        Verdict::Unreachable { .. } => Ending::Failed { code: Sample::UNREACHABLE.into() },
        Verdict::Missing { why } | Verdict::Misconfigured { why } => Ending::Misconfigured { why },
    }
}

impl Sample {
    /// The code of requests that found no connection.
    pub const UNREACHABLE: &str = "unreachable";

    /// End to end, as the one who wanted it sent at its time sees it.
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.intended)
    }

    fn answered(&mut self, reply: &Reply, watch: &Watch, times: Times) {
        self.ending = Ending::Succeeded;
        self.prompt_tokens = reply.usage.prompt;
        self.cached_tokens = reply.usage.cached;
        self.output_tokens = reply.usage.completion;
        let since = |at: Instant| at.saturating_duration_since(times.zero + self.intended);
        self.ttft = watch.first.map(since);
        if let (Some(first), Some(last)) = (watch.first, watch.last)
            && let Ok(gaps @ 1..) = u32::try_from(self.output_tokens.saturating_sub(1))
        {
            self.tbt = Some((last - first) / gaps);
        }
    }
}
