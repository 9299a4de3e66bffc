//! Tries every configured service once, and says for each what is wrong and how to mend it.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use crate::backends;
use crate::config::{self, Config};
use admission::deployment::Limits;
use documents::source::{BlobSettings, Source};
use domain::headers::RateHeaders;
use domain::job::{Api, BatchId, History, Job, JobId};
use model::Called;
use model::verdict::Verdict;
use queue::QueueError;
use queue::service_bus::Transport;
use queue::service_bus::admin::{Admin, Inspection, Properties};
use worker::Target;

/// Locks that outlive an outage of some seconds; the service's default.
const SHORTEST_LOCK: Duration = Duration::from_secs(60);

/// Well below what any service lets pass (Cosmos DB and Service Bus: 15 and 5 minutes), well above what
/// a slow answer can look like.
const LARGEST_SKEW: Duration = Duration::from_secs(60);

/// What became of one try.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub service: String,
    /// Absent if all is well.
    pub problem: Option<String>,
    pub mend: Option<&'static str>,
    /// What was seen besides.
    pub notes: Vec<String>,
    /// What works and does not fit.
    pub warnings: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.problem, self.mend) {
            (None, _) => write!(f, "ok: {}", self.service),
            (Some(problem), None) => write!(f, "FAULT: {}: {problem}", self.service),
            (Some(problem), Some(mend)) => {
                write!(f, "FAULT: {}: {problem}\n  mend: {mend}", self.service)
            }
        }?;
        self.notes.iter().try_for_each(|note| write!(f, "\n  {note}"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\n  warning: {warning}"))
    }
}

/// What each deployment is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// What every service refuses as wrong, so that it costs nothing. Few tell their quota then.
    Nothing,
    /// A prompt of a word, for the sake of the headers that come with an answer.
    AWord,
}

impl Ask {
    fn body(self, model: &str) -> Bytes {
        let body = match self {
            Self::Nothing => json!({ "messages": [] }),
            Self::AWord => json!({
                "model": model,
                "messages": [{ "role": "user", "content": "Hello" }],
                "max_completion_tokens": 16,
            }),
        };
        body.to_string().into()
    }
}

/// Tries the queue, the store, each deployment, and where documents come from.
pub async fn all(config: &Config, targets: Vec<Target>, ask: Ask) -> Vec<Finding> {
    let store = async {
        let store = match backends::open_store(config).await {
            Ok(store) => store.batches().await.map(drop).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        finding("store", store)
    };
    let mut findings = vec![timed(try_queue(config)).await, timed(store).await];
    for target in targets {
        findings.push(timed(find_deployment(&target, ask)).await);
    }
    if let Some(source) = &config.documents.source {
        findings.push(timed(try_documents(source, &config.documents)).await);
    }
    findings
}

/// Whether documents can be listed, where the configuration says whence they come.
async fn try_documents(given: &str, settings: &BlobSettings) -> Finding {
    let reached = match Source::open(given, settings).await {
        Ok(source) => source.reach().await,
        Err(error) => Err(error),
    };
    let mend = "check the account's name, and whether the firewall, the proxy (HTTPS_PROXY) and the \
                account's network rules let HTTPS through";
    let service = format!("documents at {given}");
    match reached {
        Ok(()) => Finding { service, ..Finding::default() },
        Err(error) => {
            let mend = error.is_passing().then_some(mend);
            Finding { service, problem: Some(error.to_string()), mend, ..Finding::default() }
        }
    }
}

/// Notes how long a try took, if it succeeded.
async fn timed(tried: impl Future<Output = Finding>) -> Finding {
    let began = Instant::now();
    let mut finding = tried.await;
    if finding.problem.is_none() {
        finding.notes.push(format!("answered in {} ms", began.elapsed().as_millis()));
    }
    finding
}

async fn find_deployment(target: &Target, ask: Ask) -> Finding {
    let service = format!("deployment {} at {}", target.member.name, target.client.base());
    let (problem, told) = try_deployment(target, ask).await;
    let clock = target.client.clock().await;
    let skewed = clock.and_then(|clock| skew(clock, SystemTime::now()));
    let limits = &target.member.limits;
    let notes = quota(&told, limits).into_iter().filter(|_| problem.is_none()).collect();
    let warnings = skewed.into_iter().chain(too_much(&told, limits)).collect();
    Finding { service, problem, notes, warnings, ..Finding::default() }
}

/// What is known of the quota, and from whom.
fn quota(told: &RateHeaders, limits: &Limits) -> Option<String> {
    if let Some(used) = told.utilisation {
        return Some(format!("quota: provisioned, {:.0} % of it in use", used * 100.0));
    }
    let in_words = |tokens: Option<u64>, requests: Option<u64>| {
        let tokens = tokens.map(|tokens| format!("{tokens} tokens a minute"));
        let requests = requests.map(|requests| format!("{requests} requests a minute"));
        let both: Vec<_> = tokens.into_iter().chain(requests).collect();
        (!both.is_empty()).then(|| both.join(", "))
    };
    let left = told.remaining_tokens.map(|left| format!("; {left} tokens left of this minute"));
    let seen = in_words(told.limit_tokens, told.limit_requests);
    let seen = seen.map(|seen| format!("quota: {seen}{}", left.unwrap_or_default()));
    let set = || in_words(limits.tpm, limits.rpm).map(|set| format!("quota: not told; set: {set}"));
    seen.or_else(set)
}

/// A deployment that gives less than is set for it: calls beyond that are refused until it is learnt.
fn too_much(told: &RateHeaders, limits: &Limits) -> Option<String> {
    let (tpm, limit) = limits.tpm.zip(told.limit_tokens)?;
    (tpm > limit).then(|| {
        format!("tpm = {tpm} is set, and the service gives {limit}: lower it, or raise the quota")
    })
}

/// What to say of two clocks that differ by more than a call can take.
fn skew(theirs: SystemTime, ours: SystemTime) -> Option<String> {
    let (apart, which) = match ours.duration_since(theirs) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    (apart > LARGEST_SKEW).then(|| {
        format!(
            "this machine's clock is {} s {which} the service's: signatures and tokens may be \
             refused as expired or not yet valid; set the clock by NTP",
            apart.as_secs()
        )
    })
}

fn finding(service: &str, tried: Result<(), String>) -> Finding {
    let problem = tried.err();
    let mend = problem.as_deref().and_then(mend_for);
    Finding { service: service.to_owned(), problem, mend, ..Finding::default() }
}

/// Asks how much is there; of Service Bus also how the queue is set.
async fn try_queue(config: &Config) -> Finding {
    let mut tried = match backends::open_queue(config) {
        Ok(queue) => {
            let depth = queue.depth().await.map(drop);
            queue.close().await;
            depth
        }
        Err(error) => return finding("queue", Err(error.to_string())),
    };
    let (mut notes, mut warnings) = (Vec::new(), Vec::new());
    if let (config::Queue::ServiceBus(settings), Ok(Some(admin))) =
        (&config.queue, backends::open_admin(config))
    {
        match admin.inspect().await {
            Inspection::Known(properties) => {
                notes.push(described(&properties));
                warnings = unfit(&properties, config.worker.max_deliveries);
            }
            Inspection::Missing(name) => warnings.push(format!(
                "there is no queue '{name}': create it with 'promptmill init', or in the portal"
            )),
            Inspection::Hidden(why) => {
                notes.push(format!("how it is set can't be seen from here: {why}"));
                if settings.transport == Transport::Https {
                    tried = reach_without_counts(&admin, tried, &mut warnings).await;
                }
            }
        }
    }
    let finding = finding("queue", tried.map_err(|error| error.to_string()));
    Finding { notes, warnings, ..finding }
}

/// Over HTTPS the counts need a right that work does not.
async fn reach_without_counts(
    admin: &Admin,
    tried: Result<(), QueueError>,
    warnings: &mut Vec<String>,
) -> Result<(), QueueError> {
    let Err(error) = tried else { return Ok(()) };
    match admin.reach().await {
        Ok(()) => {
            warnings.push(format!("'status' will not work: {error}"));
            Ok(())
        }
        Err(_) => Err(error),
    }
}

fn described(properties: &Properties) -> String {
    let Properties { lock, max_deliveries, drops_duplicates, depth } = properties;
    let duplicates = match drops_duplicates {
        Some(true) => "duplicate detection on",
        Some(false) => "duplicate detection off",
        None => "duplicate detection not said",
    };
    format!(
        "locks last {} s, {max_deliveries} deliveries, {duplicates}; {} active, {} scheduled, {} \
         dead letters",
        lock.as_secs(),
        depth.active,
        depth.scheduled,
        depth.dead_letters
    )
}

/// What works and does not fit our work.
fn unfit(properties: &Properties, max_deliveries: u32) -> Vec<String> {
    let mut unfit = Vec::new();
    if properties.drops_duplicates == Some(false) {
        unfit.push(
            "duplicate detection is off: jobs that are sent twice wait twice (none is paid for \
             twice); it can be set only when a queue is created"
                .to_owned(),
        );
    }
    if properties.max_deliveries < max_deliveries {
        unfit.push(format!(
            "the queue sets a job aside after {} deliveries, before a worker ends it after \
             {max_deliveries} (worker.max_deliveries): such a job has no outcome; raise the \
             queue's max delivery count",
            properties.max_deliveries
        ));
    }
    if properties.lock < SHORTEST_LOCK {
        unfit.push(format!(
            "locks last {} s, so a short outage costs them and may cost calls; set the lock \
             duration to 5 minutes",
            properties.lock.as_secs()
        ));
    }
    unfit
}

/// Answered is well, and so is refused: who may not ask is told so otherwise.
async fn try_deployment(target: &Target, ask: Ask) -> (Option<String>, RateHeaders) {
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
        look_up: false,
        aside: None,
        history: History::default(),
    };
    let Called { verdict, told } = target.client.call(&job).await;
    let problem = match verdict {
        Verdict::Answered(_) | Verdict::Refused(_) | Verdict::Throttled { .. } => None,
        Verdict::Transient { error, .. } => {
            Some(format!("{}: {}", error.failure.code, error.failure.message))
        }
        Verdict::Unreachable { why } => Some(format!("no connection: {why}")),
        Verdict::Missing { why } | Verdict::Misconfigured { why } => Some(why),
    };
    (problem, told)
}

/// The mend, by the words that services and connections have for their troubles. Only advice hangs
/// on it. What already says its mend gets none.
fn mend_for(problem: &str) -> Option<&'static str> {
    const MENDS: [(&[&str], &str); 5] = [
        (
            &["unauthorized-access", "http 401"],
            "check the key, or give the identity the roles 'Azure Service Bus Data Sender' and \
             'Azure Service Bus Data Receiver'; a clock that is off by minutes looks the same",
        ),
        (&["amqp:not-found", "there is no queue"], "check the queue's name, or create it"),
        (
            &["certificate", "tls"],
            "something on the way shows another certificate: trust the company's proxy, \
             or mend the host's name",
        ),
        (
            &["lookup", "resolve", "dns"],
            "the host's name is not known here: check the name, the private endpoint and the DNS",
        ),
        (
            &["refused", "timed out", "no answer", "unreachable"],
            "check the address and the firewall: AMQP needs port 5671, or transport = \"websocket\" \
             and port 443, or transport = \"https\" and an HTTP proxy",
        ),
    ];
    let problem = problem.to_lowercase();
    let known = |words: &[&str]| words.iter().any(|word| problem.contains(word));
    MENDS.iter().find(|(words, _)| known(words)).map(|(_, mend)| *mend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::Depth;

    #[test]
    fn a_quota_is_told_by_whom_it_is_known_and_one_smaller_than_set_is_warned_of() {
        let limits = Limits { tpm: Some(300_000), rpm: Some(300), ..Limits::default() };
        let silent = RateHeaders::default();
        let said = quota(&silent, &limits).unwrap();
        assert_eq!(said, "quota: not told; set: 300000 tokens a minute, 300 requests a minute");
        assert_eq!((quota(&silent, &Limits::default()), too_much(&silent, &limits)), (None, None));
        let told = RateHeaders {
            limit_tokens: Some(120_000),
            remaining_tokens: Some(90_000),
            ..RateHeaders::default()
        };
        let said = quota(&told, &limits).unwrap();
        assert_eq!(said, "quota: 120000 tokens a minute; 90000 tokens left of this minute");
        assert!(too_much(&told, &limits).unwrap().contains("gives 120000"));
        assert_eq!(too_much(&told, &Limits { tpm: Some(120_000), ..limits }), None);
        let provisioned = RateHeaders { utilisation: Some(0.42), ..RateHeaders::default() };
        assert_eq!(quota(&provisioned, &limits).unwrap(), "quota: provisioned, 42 % of it in use");
    }

    #[test]
    fn a_clock_that_is_off_is_told_either_way() {
        let now = SystemTime::now();
        assert_eq!(skew(now, now + Duration::from_secs(5)), None);
        let ahead = skew(now, now + Duration::from_secs(600)).unwrap();
        assert!(ahead.contains("600 s ahead of"), "{ahead}");
        assert!(skew(now + Duration::from_secs(600), now).unwrap().contains("600 s behind"));
    }

    #[test]
    fn a_queue_that_does_not_fit_is_warned_of() {
        let fit = Properties {
            lock: Duration::from_secs(300),
            max_deliveries: 10,
            drops_duplicates: Some(true),
            depth: Depth::default(),
        };
        assert!(unfit(&fit, 10).is_empty());
        let lock = Duration::from_secs(30);
        let bad = Properties { lock, max_deliveries: 5, drops_duplicates: Some(false), ..fit };
        let warnings = unfit(&bad, 10);
        assert_eq!(warnings.len(), 3);
        assert!(warnings[1].contains("after 5 deliveries"), "{warnings:?}");
    }
}
