//! One request of a benchmark: sent at its time, retried if configured, and measured.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::stream_timer::StreamTimer;
use domain::job::Job;
use model::verdict::Verdict;
use model::{CallResult, ModelClient, ModelResponse};
use worker::retry;

/// Calls of one request; after the last of them its result is final.
const MAX_ATTEMPTS: u32 = 8;

/// Wait after a 429 that names none, and the longest one that is kept to.
const USUAL_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Reaction to a 429 or a transient error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryPolicy {
    None,
    /// Exponential backoff with full jitter, never before the time that the service asks for.
    Exponential,
}

/// Result of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SampleStatus {
    Succeeded,
    /// Throttled (429).
    Throttled,
    Failed {
        code: String,
    },
    /// The endpoint will answer nothing that is sent to it.
    Misconfigured {
        why: String,
    },
}

/// Measurements of one request. Times are from the phase's start.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestSample {
    pub intended: Duration,
    pub started: Duration,
    pub ended: Duration,
    pub status: SampleStatus,
    /// From the intended start to the first output; streams only.
    pub ttft: Option<Duration>,
    /// Mean time between tokens; only for streams of two tokens and more.
    pub tbt: Option<Duration>,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    /// Tokens that the service books: prompt plus the most it may answer.
    pub charge: u64,
    /// Percent, as the service reports it.
    pub utilization: Option<f64>,
    pub calls: u32,
    /// Calls among these that were throttled (429).
    pub throttled_calls: u32,
}

/// Schedule of one request.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestTimes {
    /// The phase's start.
    pub(super) phase_start: Instant,
    pub(super) intended: Duration,
    /// No retry starts after it.
    pub(super) until: Option<Duration>,
}

/// Sends one request and waits for its end. Nothing is retried after `halt`. Returns the wait, too,
/// that a request given up for now would still have to keep to: one in its place keeps to it.
pub(super) async fn send_with_retries(
    client: &ModelClient,
    job: &Job,
    retry: RetryPolicy,
    times: RequestTimes,
    halt: &CancellationToken,
) -> (RequestSample, Duration) {
    let started = times.phase_start.elapsed();
    let mut sample = RequestSample {
        intended: times.intended,
        started,
        ended: started,
        status: SampleStatus::Throttled,
        ttft: None,
        tbt: None,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        charge: job.estimate.unwrap_or_default().charge(),
        utilization: None,
        calls: 0,
        throttled_calls: 0,
    };
    loop {
        let mut watch = StreamTimer::new(job.api);
        let CallResult { verdict, rate_limits: told } =
            client.call_watched(job, &mut |bytes| watch.read(Instant::now(), bytes)).await;
        sample.ended = times.phase_start.elapsed();
        sample.calls += 1;
        sample.utilization = told.utilisation.map(|share| share * 100.0).or(sample.utilization);
        let wait = match &verdict {
            Verdict::Answered(reply) => {
                sample.record_reply(reply, &watch, times);
                return (sample, Duration::ZERO);
            }
            Verdict::Throttled { asked, .. } => {
                sample.throttled_calls += 1;
                Some(asked.unwrap_or(USUAL_PAUSE).min(LONGEST_PAUSE))
            }
            Verdict::Transient { retry_after, .. } => *retry_after,
            Verdict::Unreachable { .. } => None,
            Verdict::Refused(_)
            | Verdict::RefusedHere(_)
            | Verdict::NoAnswer(_)
            | Verdict::Denied { .. }
            | Verdict::Misconfigured { .. } => {
                sample.status = status_of(verdict);
                return (sample, Duration::ZERO);
            }
        };
        sample.status = status_of(verdict);
        let delay = retry::delay(sample.calls, wait, rand::random());
        let in_vain = times.until.is_some_and(|until| sample.ended + delay >= until);
        if retry == RetryPolicy::None {
            return (sample, Duration::ZERO);
        }
        if sample.calls >= MAX_ATTEMPTS || in_vain {
            return (sample, delay);
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = halt.cancelled() => return (sample, Duration::ZERO),
        }
    }
}

fn status_of(verdict: Verdict) -> SampleStatus {
    match verdict {
        Verdict::Answered(_) => SampleStatus::Succeeded,
        Verdict::Throttled { .. } => SampleStatus::Throttled,
        Verdict::Refused(error)
        | Verdict::RefusedHere(error)
        | Verdict::NoAnswer(error)
        | Verdict::Transient { error, .. } => SampleStatus::Failed { code: error.failure.code },
        Verdict::Unreachable { .. } => {
            SampleStatus::Failed { code: RequestSample::UNREACHABLE.into() }
        }
        Verdict::Denied { why, .. } | Verdict::Misconfigured { why } => {
            SampleStatus::Misconfigured { why }
        }
    }
}

impl RequestSample {
    /// Error code of requests that found no connection.
    pub const UNREACHABLE: &str = "unreachable";

    /// End-to-end time from the intended start, as the user sees it.
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.intended)
    }

    fn record_reply(&mut self, reply: &ModelResponse, watch: &StreamTimer, times: RequestTimes) {
        self.status = SampleStatus::Succeeded;
        self.prompt_tokens = reply.usage.prompt;
        self.cached_tokens = reply.usage.cached;
        self.output_tokens = reply.usage.completion;
        let since = |at: Instant| at.saturating_duration_since(times.phase_start + self.intended);
        self.ttft = watch.first.map(since);
        if let (Some(first), Some(last)) = (watch.first, watch.last)
            && let Ok(gaps @ 1..) = u32::try_from(self.output_tokens.saturating_sub(1))
        {
            self.tbt = Some((last - first) / gaps);
        }
    }
}
