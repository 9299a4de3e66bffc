//! Tries every configured service once, and says for each what is wrong and how to mend it.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

use crate::backends;
use crate::config::Config;
use crate::job::{Api, BatchId, Job, JobId};
use crate::model::verdict::Verdict;
use crate::worker::Target;

/// What became of one try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub service: String,
    /// Absent if all is well.
    pub problem: Option<String>,
    pub mend: Option<&'static str>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.problem, self.mend) {
            (None, _) => write!(f, "ok: {}", self.service),
            (Some(problem), None) => write!(f, "FAULT: {}: {problem}", self.service),
            (Some(problem), Some(mend)) => {
                write!(f, "FAULT: {}: {problem}\n  mend: {mend}", self.service)
            }
        }
    }
}

/// Tries the queue, the store and each deployment.
pub async fn all(config: &Config, targets: Vec<Target>) -> Vec<Finding> {
    let queue = match backends::open_queue(config) {
        Ok(queue) => {
            let depth = queue.depth().await.map_err(|error| error.to_string());
            queue.close().await;
            depth.map(drop)
        }
        Err(error) => Err(error.to_string()),
    };
    let store = match backends::open_store(config).await {
        Ok(store) => store.batches().await.map(drop).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let mut findings = vec![finding("queue", queue), finding("store", store)];
    for target in targets {
        let service = format!("deployment {} at {}", target.member.name, target.client.base());
        findings.push(Finding { service, problem: try_deployment(&target).await, mend: None });
    }
    findings
}

fn finding(service: &str, tried: Result<(), String>) -> Finding {
    let problem = tried.err();
    let mend = problem.as_deref().and_then(mend_for);
    Finding { service: service.to_owned(), problem, mend }
}

/// A request that every service refuses as wrong, so that it costs nothing: refused is well.
async fn try_deployment(target: &Target) -> Option<String> {
    let batch: BatchId = "check".parse().expect("it is of letters");
    let model = target.member.models.first().unwrap_or(&target.member.name).clone();
    let job = Job {
        id: JobId::new(&batch, "check"),
        batch_id: batch,
        custom_id: "check".into(),
        position: 0,
        api: Api::ChatCompletions,
        body: Bytes::from_static(br#"{"messages":[]}"#),
        model,
        estimate: None,
        deadline: None,
        not_before: None,
        priority: 0,
        metadata: None,
        look_up: false,
    };
    match target.client.call(&job).await.verdict {
        Verdict::Answered(_) | Verdict::Refused(_) | Verdict::Throttled { .. } => None,
        Verdict::Transient { error, .. } => {
            Some(format!("{}: {}", error.failure.code, error.failure.message))
        }
        Verdict::Unreachable { why } => Some(format!("no connection: {why}")),
        Verdict::Missing { why } | Verdict::Misconfigured { why } => Some(why),
    }
}

/// The mend, by the words that services and connections have for their troubles. Only advice hangs
/// on it. What already says its mend gets none.
fn mend_for(problem: &str) -> Option<&'static str> {
    const MENDS: [(&[&str], &str); 5] = [
        (
            &["unauthorized-access"],
            "check the key, or give the identity the roles 'Azure Service Bus Data Sender' and \
             'Azure Service Bus Data Receiver'; a clock that is off by minutes looks the same",
        ),
        (&["amqp:not-found"], "check the queue's name, or create it"),
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
             and port 443",
        ),
    ];
    let problem = problem.to_lowercase();
    let known = |words: &[&str]| words.iter().any(|word| problem.contains(word));
    MENDS.iter().find(|(words, _)| known(words)).map(|(_, mend)| *mend)
}
