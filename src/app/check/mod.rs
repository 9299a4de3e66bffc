//! Tries every configured service once, and reports for each what is wrong and how to fix it.

#[cfg(feature = "documents")]
mod documents;
mod finding;
#[cfg(feature = "azure")]
mod service_bus;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

pub use finding::CheckFinding;
use finding::finding;

use crate::backends;
#[cfg(feature = "azure")]
use crate::config;
use crate::config::Config;
use admission::deployment::DeploymentLimits;
use domain::headers::RateHeaders;
use domain::job::{Api, BatchId, Job, JobHistory, JobId};
use model::CallResult;
use model::verdict::Verdict;
use worker::WorkerTarget;

/// Largest clock difference that is not reported: well below what any service accepts (Cosmos DB
/// and Service Bus: 15 and 5 minutes), well above the delay of a slow answer.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Request that each deployment gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentProbe {
    /// A request that every service refuses as invalid, so it costs nothing. Few report their quota
    /// then.
    InvalidRequest,
    /// A prompt of one word, to get the headers that come with an answer.
    OneWordPrompt,
}

impl DeploymentProbe {
    fn body(self, model: &str) -> Bytes {
        let body = match self {
            Self::InvalidRequest => json!({ "messages": [] }),
            Self::OneWordPrompt => json!({
                "model": model,
                "messages": [{ "role": "user", "content": "Hello" }],
                "max_completion_tokens": 16,
            }),
        };
        body.to_string().into()
    }
}

/// Checks the queue, the store, each deployment, and the source of documents.
pub async fn all(
    config: &Config,
    targets: Vec<WorkerTarget>,
    ask: DeploymentProbe,
) -> Vec<CheckFinding> {
    let store = async {
        let store = match backends::open_store(config).await {
            Ok(store) => store.batches().await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        finding("store", store)
    };
    let mut findings = vec![timed(check_queue(config)).await, timed(store).await];
    for target in targets {
        findings.push(timed(check_deployment(&target, ask)).await);
    }
    #[cfg(feature = "documents")]
    if let Some(source) = &config.documents.source {
        findings.push(timed(documents::check(source, &config.documents)).await);
    }
    findings
}

/// Notes how long a check took, if it succeeded.
async fn timed(tried: impl Future<Output = CheckFinding>) -> CheckFinding {
    let began = Instant::now();
    let mut finding = tried.await;
    if finding.problem.is_none() {
        finding.notes.push(format!("answered in {} ms", began.elapsed().as_millis()));
    }
    finding
}

async fn check_deployment(target: &WorkerTarget, ask: DeploymentProbe) -> CheckFinding {
    let service = format!("deployment {} at {}", target.member.name, target.client.base());
    let (problem, rate_limits) = send_probe(target, ask).await;
    let clock = target.client.server_time().await;
    let skewed = clock.and_then(|clock| clock_warning(clock, SystemTime::now()));
    let limits = &target.member.limits;
    let notes =
        describe_quota(&rate_limits, limits).into_iter().filter(|_| problem.is_none()).collect();
    let warnings = skewed.into_iter().chain(tpm_warning(&rate_limits, limits)).collect();
    CheckFinding { service, problem, notes, warnings, ..CheckFinding::default() }
}

/// Describes the quota as reported by the service, or else as configured.
fn describe_quota(rate_limits: &RateHeaders, limits: &DeploymentLimits) -> Option<String> {
    if let Some(used) = rate_limits.utilisation {
        return Some(format!("quota: provisioned, {:.0} % of it in use", used * 100.0));
    }
    let in_words = |tokens: Option<u64>, requests: Option<u64>| {
        let tokens = tokens.map(|tokens| format!("{tokens} tokens a minute"));
        let requests = requests.map(|requests| format!("{requests} requests a minute"));
        let both: Vec<_> = tokens.into_iter().chain(requests).collect();
        (!both.is_empty()).then(|| both.join(", "))
    };
    let left =
        rate_limits.remaining_tokens.map(|left| format!("; {left} tokens left of this minute"));
    let seen = in_words(rate_limits.limit_tokens, rate_limits.limit_requests);
    let seen = seen.map(|seen| format!("quota: {seen}{}", left.unwrap_or_default()));
    let set = || {
        in_words(limits.tpm, limits.rpm)
            .map(|set| format!("quota: not reported; configured: {set}"))
    };
    seen.or_else(set)
}

/// Warns of a quota below the configured tpm: calls beyond it are throttled until it is learnt.
fn tpm_warning(rate_limits: &RateHeaders, limits: &DeploymentLimits) -> Option<String> {
    let (tpm, limit) = limits.tpm.zip(rate_limits.limit_tokens)?;
    (tpm > limit).then(|| {
        format!("tpm = {tpm} is set, and the service gives {limit}: lower it, or raise the quota")
    })
}

/// Warns of two clocks that differ by more than [`MAX_CLOCK_SKEW`].
fn clock_warning(theirs: SystemTime, ours: SystemTime) -> Option<String> {
    let (apart, which) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    (apart > MAX_CLOCK_SKEW).then(|| {
        format!(
            "this machine's clock is {} s {which} the service's: signatures and tokens may be \
             refused as expired or not yet valid; set the clock by NTP",
            apart.as_secs()
        )
    })
}

/// Reads the queue's depth; for Service Bus also its settings.
async fn check_queue(config: &Config) -> CheckFinding {
    let tried = match backends::open_queue(config) {
        Ok(queue) => {
            let depth = queue.depth().await.map(drop);
            queue.close().await;
            depth
        }
        Err(error) => return finding("queue", Err(error.to_string())),
    };
    #[cfg(feature = "azure")]
    if let config::QueueBackend::ServiceBus(settings) = &config.queue {
        return service_bus::inspect(config, settings, tried).await;
    }
    finding("queue", tried.map_err(|error| error.to_string()))
}

/// Sends the request. A refused one counts as success too: missing access is reported otherwise.
async fn send_probe(target: &WorkerTarget, ask: DeploymentProbe) -> (Option<String>, RateHeaders) {
    let batch: BatchId = "check".parse().expect("it is of letters");
    let model = target.member.models.first().unwrap_or(&target.member.name).clone();
    let job = Job {
        id: JobId::new(&batch, "check"),
        batch_id: batch,
        custom_id: "check".into(),
        position: 0,
        api: Api::ChatCompletions,
        body: ask.body(&model),
        model,
        estimate: None,
        deadline: None,
        not_before: None,
        priority: 0,
        metadata: None,
        may_have_outcome: false,
        claim_check: None,
        history: JobHistory::default(),
    };
    let CallResult { verdict, rate_limits: told } = target.client.call(&job).await;
    let problem = match verdict {
        Verdict::Answered(_)
        | Verdict::Refused(_)
        | Verdict::RefusedHere(_)
        | Verdict::Throttled { .. } => None,
        // It knows no such parameter: the jobs may not have it.
        Verdict::Denied { error, .. } if error.status == Some(400) => None,
        Verdict::Transient { error, .. } | Verdict::NoAnswer(error) => Some(error.words()),
        Verdict::Unreachable { why } => Some(format!("no connection: {why}")),
        Verdict::Denied { why, .. } | Verdict::Misconfigured { why } => Some(why),
    };
    (problem, told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_told_by_whom_it_is_known_and_one_smaller_than_set_is_warned_of() {
        let limits =
            DeploymentLimits { tpm: Some(300_000), rpm: Some(300), ..DeploymentLimits::default() };
        let silent = RateHeaders::default();
        let said = describe_quota(&silent, &limits).unwrap();
        assert_eq!(
            said,
            "quota: not reported; configured: 300000 tokens a minute, 300 requests a minute"
        );
        assert_eq!(
            (describe_quota(&silent, &DeploymentLimits::default()), tpm_warning(&silent, &limits)),
            (None, None)
        );
        let told = RateHeaders {
            limit_tokens: Some(120_000),
            remaining_tokens: Some(90_000),
            ..RateHeaders::default()
        };
        let said = describe_quota(&told, &limits).unwrap();
        assert_eq!(said, "quota: 120000 tokens a minute; 90000 tokens left of this minute");
        assert!(tpm_warning(&told, &limits).unwrap().contains("gives 120000"));
        assert_eq!(tpm_warning(&told, &DeploymentLimits { tpm: Some(120_000), ..limits }), None);
        let provisioned = RateHeaders { utilisation: Some(0.42), ..RateHeaders::default() };
        assert_eq!(
            describe_quota(&provisioned, &limits).unwrap(),
            "quota: provisioned, 42 % of it in use"
        );
    }

    #[test]
    fn a_clock_that_is_off_is_told_either_way() {
        let now = SystemTime::now();
        assert_eq!(clock_warning(now, now + Duration::from_secs(5)), None);
        let ahead = clock_warning(now, now + Duration::from_secs(600)).unwrap();
        assert!(ahead.contains("600 s ahead of"), "{ahead}");
        assert!(
            clock_warning(now + Duration::from_secs(600), now).unwrap().contains("600 s behind")
        );
    }
}
