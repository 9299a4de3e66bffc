//! Finding of a check: what is wrong with one service, and how to mend it.

use serde::Serialize;

/// Result of checking one service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckFinding {
    pub service: String,
    /// Absent if all is well.
    pub problem: Option<String>,
    #[serde(rename = "mend")]
    pub hint: Option<&'static str>,
    /// Observations that are no problem.
    pub notes: Vec<String>,
    /// Settings that work but do not fit.
    pub warnings: Vec<String>,
}

pub(super) fn finding(service: &str, tried: Result<(), String>) -> CheckFinding {
    let problem = tried.err();
    let hint = problem.as_deref().and_then(hint_for);
    CheckFinding { service: service.to_owned(), problem, hint, ..CheckFinding::default() }
}

/// Returns a hint by words in the error message of a service or connection. Only advice depends on
/// it. A message that already names its fix gets none.
fn hint_for(problem: &str) -> Option<&'static str> {
    const HINTS: [(&[&str], &str); 5] = [
        (
            &["unauthorized-access", "http 401"],
            "check the key, or give the identity the roles 'Azure Service Bus Data Sender' and \
             'Azure Service Bus Data Receiver'; a clock that is off by minutes looks the same",
        ),
        (&["amqp:not-found", "there is no queue"], "check the queue's name, or create it"),
        (
            &["certificate", "tls"],
            "something on the way shows another certificate: trust the company's proxy, \
             or correct the host name",
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
    HINTS.iter().find(|(words, _)| known(words)).map(|(_, mend)| *mend)
}
