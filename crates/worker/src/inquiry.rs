//! Inquiries by people about the jobs that a worker holds, and its answers.
//!
//! A worker holds thousands of jobs, so it publishes none of them: `promptmill why` puts an inquiry
//! among the workers' heartbeats, and each answers in its next one. The dispatcher knows the
//! answers; the share task carries both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::dispatcher::{Dispatcher, PendingRetry};
use super::leases::{BoxedJob, LeasedJob};
use admission::DeploymentIndex;
use admission::explain::{JobWait, WaitSummary};
use domain::heartbeat::Heartbeat;
use domain::job::{BatchId, JobId};

/// Inquiries answered at a time; later ones wait.
const MAX_OPEN: usize = 16;

/// Keys of the inquiry and of the answers in a heartbeat's `about`.
const INQUIRY_KEY: &str = "asks";
const ANSWERS_KEY: &str = "answers";

/// Inquiry to every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerInquiry {
    /// Jobs to report one by one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub jobs: BTreeSet<JobId>,
    /// Batch whose jobs to count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
}

impl WorkerInquiry {
    /// Returns the heartbeat that carries it. It claims no share of any quota.
    pub fn heartbeat(&self, instance: Uuid) -> Heartbeat {
        let about = json!({ INQUIRY_KEY: self });
        Heartbeat { instance, sequence: 1, quota_claims: BTreeMap::new(), status: about }
    }

    /// Returns a heartbeat's inquiry, if it has one.
    pub fn of(word: &Heartbeat) -> Option<Self> {
        Self::deserialize(word.status.get(INQUIRY_KEY)?).ok()
    }
}

/// A worker's answer to an inquiry. All times are relative to the answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct InquiryAnswer {
    /// Those of the requested jobs that it holds.
    pub jobs: Vec<LeasedJobReport>,
    /// Counts of the requested batch.
    pub batch: Option<LeasedJobCounts>,
    /// Counts of all that it holds, whatever was requested.
    pub all: LeasedJobCounts,
}

impl InquiryAnswer {
    /// Returns a worker's answer to an inquiry, once its heartbeat has it.
    pub fn of(word: &Heartbeat, question: Uuid) -> Option<Self> {
        Self::deserialize(word.status.get(ANSWERS_KEY)?.get(question.to_string())?).ok()
    }
}

/// Report on one job that a worker holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeasedJobReport {
    pub job: JobId,
    pub batch: BatchId,
    /// Calls so far that counted as attempts, the one under way not included.
    #[serde(rename = "tries")]
    pub attempts: u32,
    /// Error of the last attempt.
    pub last_error: Option<String>,
    /// Unix ms after which it ends as expired, if it has not been sent by then.
    pub deadline_ms: Option<i64>,
    #[serde(flatten)]
    pub at: JobStage,
}

/// Stage of a job within a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum JobStage {
    /// Waits for admission.
    Line { wait: JobWait },
    /// Its call is under way.
    Call { deployment: String, since_ms: u64 },
    /// Waits for its next attempt after a transient error.
    Retry { due_in_ms: u64 },
}

/// Counts of the jobs that a worker holds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct LeasedJobCounts {
    /// Jobs that wait for admission, by the deployments that can serve them.
    pub lines: Vec<WaitSummary>,
    /// Calls in flight by deployment.
    pub calls: BTreeMap<String, u64>,
    pub retries: u64,
    pub next_retry_in_ms: Option<u64>,
}

impl LeasedJobCounts {
    pub fn in_line(&self) -> u64 {
        self.lines.iter().map(|line| line.jobs).sum()
    }

    pub fn in_flight(&self) -> u64 {
        self.calls.values().sum()
    }

    pub fn jobs(&self) -> u64 {
        self.in_line() + self.in_flight() + self.retries
    }
}

/// Open inquiries and their answers. Each is answered once.
#[derive(Debug, Default)]
pub(super) struct OpenInquiries(BTreeMap<Uuid, Option<InquiryAnswer>>);

impl OpenInquiries {
    /// Takes new inquiries; drops withdrawn ones.
    pub(super) fn update(&mut self, words: &[Heartbeat]) -> Vec<(Uuid, WorkerInquiry)> {
        let asked: BTreeMap<_, _> = words
            .iter()
            .filter_map(|word| Some((word.instance, WorkerInquiry::of(word)?)))
            .collect();
        self.0.retain(|question, _| asked.contains_key(question));
        let mut open = Vec::new();
        for (id, question) in asked {
            if self.0.len() < MAX_OPEN || self.0.contains_key(&id) {
                let answer = self.0.entry(id).or_default();
                open.extend(answer.is_none().then_some((id, question)));
            }
        }
        open
    }

    pub(super) fn answer(&mut self, question: Uuid, answer: InquiryAnswer) {
        self.0.insert(question, Some(answer));
    }

    /// Writes the answers into the `about` of a worker's heartbeat.
    pub(super) fn write_answers(&self, about: &mut Value) {
        let answers = self.0.iter().filter_map(|(id, answer)| Some((id, answer.as_ref()?)));
        let answers: BTreeMap<String, &InquiryAnswer> =
            answers.map(|(id, answer)| (id.to_string(), answer)).collect();
        if answers.is_empty() {
            about.as_object_mut().map(|about| about.remove(ANSWERS_KEY));
        } else {
            about[ANSWERS_KEY] = json!(answers);
        }
    }
}

impl Dispatcher {
    /// Returns what we know of the requested jobs and batch.
    pub(super) fn explain(&self, question: &WorkerInquiry, now: Instant) -> InquiryAnswer {
        let batch = question.batch.as_ref();
        InquiryAnswer {
            jobs: self.job_reports(&question.jobs, now),
            batch: batch.map(|batch| self.count_jobs(|other| other == batch, now)),
            all: self.count_jobs(|_| true, now),
        }
    }

    fn job_reports(&self, jobs: &BTreeSet<JobId>, now: Instant) -> Vec<LeasedJobReport> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let is_asked = |held: &BoxedJob| jobs.contains(&held.delivery.job.id);
        let waits = self.admission.explain_waits(is_asked, now);
        let in_line =
            waits.into_iter().map(|(held, wait)| job_report(held, JobStage::Line { wait }));
        let retries = self.retries.iter().map(|Reverse(retry)| retry);
        let retries = retries.filter(|retry| is_asked(&retry.held)).map(|retry| {
            let due_in_ms = ms(retry.due.0.saturating_duration_since(now));
            job_report(&retry.held, JobStage::Retry { due_in_ms })
        });
        let flights = jobs.iter().filter_map(|job| Some((*job, self.in_flight.get(job)?)));
        let flights = flights.map(|(job, flight)| LeasedJobReport {
            job,
            batch: flight.batch.clone(),
            attempts: flight.attempts,
            last_error: flight.last_error.clone(),
            deadline_ms: flight.deadline.map(Timestamp::as_millisecond),
            at: JobStage::Call {
                deployment: self.deployment_name(flight.deployment),
                since_ms: ms(now.saturating_duration_since(flight.since)),
            },
        });
        in_line.chain(retries).chain(flights).collect()
    }

    fn count_jobs(&self, is_asked: impl Fn(&BatchId) -> bool, now: Instant) -> LeasedJobCounts {
        let mut holding = LeasedJobCounts {
            lines: self
                .admission
                .summarize_waits(|held| is_asked(&held.delivery.job.batch_id), now),
            ..LeasedJobCounts::default()
        };
        for flight in self.in_flight.values().filter(|flight| is_asked(&flight.batch)) {
            *holding.calls.entry(self.deployment_name(flight.deployment)).or_default() += 1;
        }
        for Reverse(PendingRetry { due, held }) in &self.retries {
            if is_asked(&held.delivery.job.batch_id) {
                let due_in = ms(due.0.saturating_duration_since(now));
                let next = holding.next_retry_in_ms.map_or(due_in, |next| next.min(due_in));
                holding.next_retry_in_ms = Some(next);
                holding.retries += 1;
            }
        }
        holding
    }

    fn deployment_name(&self, deployment: DeploymentIndex) -> String {
        self.caller.targets[deployment.0].member.name.clone()
    }
}

fn job_report(held: &LeasedJob, at: JobStage) -> LeasedJobReport {
    let job = &held.delivery.job;
    LeasedJobReport {
        job: job.id,
        batch: job.batch_id.clone(),
        attempts: held.attempts,
        last_error: held.last_error(),
        deadline_ms: job.deadline.map(Timestamp::as_millisecond),
        at,
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> WorkerInquiry {
        WorkerInquiry { batch: Some("night".parse().unwrap()), ..WorkerInquiry::default() }
    }

    #[test]
    fn a_question_is_answered_once_and_forgotten_with_its_word() {
        let (mut desk, asker) = (OpenInquiries::default(), Uuid::from_u128(1));
        let worker =
            Heartbeat { status: json!({ "pid": 7 }), ..question().heartbeat(Uuid::from_u128(2)) };
        let words = [question().heartbeat(asker), worker];
        assert_eq!(desk.update(&words), [(asker, question())]);
        assert_eq!(desk.update(&words), [(asker, question())], "it has no answer yet");
        let all = LeasedJobCounts { retries: 3, ..LeasedJobCounts::default() };
        let answer = InquiryAnswer { all, ..InquiryAnswer::default() };
        desk.answer(asker, answer.clone());
        assert_eq!(desk.update(&words), [], "answered");
        let mut about = json!({ "pid": 8 });
        desk.write_answers(&mut about);
        let word = Heartbeat { status: about, ..words[1].clone() };
        assert_eq!(InquiryAnswer::of(&word, asker), Some(answer));
        assert_eq!(InquiryAnswer::of(&word, Uuid::from_u128(9)), None);
        assert_eq!(desk.update(&words[1..]), []);
        let mut about = word.status;
        desk.write_answers(&mut about);
        assert_eq!(about, json!({ "pid": 8 }));
    }

    #[test]
    fn more_questions_than_a_word_should_carry_wait_for_their_turn() {
        let mut desk = OpenInquiries::default();
        let words: Vec<_> =
            (0..MAX_OPEN as u128 + 2).map(|n| question().heartbeat(Uuid::from_u128(n))).collect();
        assert_eq!(desk.update(&words).len(), MAX_OPEN);
        assert_eq!(desk.update(&words[2..]).len(), MAX_OPEN, "the first two went away");
    }
}
