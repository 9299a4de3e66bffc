//! Inquiries by people about the jobs that a worker holds, and its answers.
//!
//! A worker holds thousands of jobs, so it publishes none of them: `promptmill why` puts an inquiry
//! among the workers' heartbeats, and each answers in its next one. The dispatcher knows the
//! answers; the share task carries both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use super::dispatcher::{Dispatcher, PendingRetry};
use super::leases::{BoxedJob, LeasedJob};
use admission::DeploymentIndex;
use domain::heartbeat::Heartbeat;
use domain::inquiry::{InquiryAnswer, JobStage, LeasedJobCounts, LeasedJobReport, WorkerInquiry};
use domain::job::{BatchId, JobId};

/// Inquiries answered at a time; later ones wait.
const MAX_OPEN: usize = 16;

/// Open inquiries and their answers. Each is answered once.
#[derive(Debug, Default)]
pub(super) struct OpenInquiries(BTreeMap<Uuid, Option<InquiryAnswer>>);

impl OpenInquiries {
    /// Takes new inquiries; drops withdrawn ones.
    pub(super) fn update(&mut self, heartbeats: &[Heartbeat]) -> Vec<(Uuid, WorkerInquiry)> {
        let asked: BTreeMap<_, _> = heartbeats
            .iter()
            .filter_map(|heartbeat| Some((heartbeat.instance, heartbeat.status.inquiry.clone()?)))
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

    /// Returns the answers that a heartbeat is to carry.
    pub(super) fn answers(&self) -> BTreeMap<Uuid, InquiryAnswer> {
        self.0.iter().filter_map(|(id, answer)| Some((*id, answer.clone()?))).collect()
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
    fn a_question_is_answered_once_and_forgotten_with_its_heartbeat() {
        let (mut inquiries, asker) = (OpenInquiries::default(), Uuid::from_u128(1));
        let worker = Heartbeat { instance: Uuid::from_u128(2), ..Heartbeat::default() };
        let heartbeats = [Heartbeat::asking(question(), asker), worker];
        assert_eq!(inquiries.update(&heartbeats), [(asker, question())]);
        assert_eq!(inquiries.update(&heartbeats), [(asker, question())], "it has no answer yet");
        let all = LeasedJobCounts { retries: 3, ..LeasedJobCounts::default() };
        let answer = InquiryAnswer { all, ..InquiryAnswer::default() };
        inquiries.answer(asker, answer.clone());
        assert_eq!(inquiries.update(&heartbeats), [], "answered");
        assert_eq!(inquiries.answers(), [(asker, answer)].into());
        assert_eq!(inquiries.update(&heartbeats[1..]), []);
        assert_eq!(inquiries.answers(), BTreeMap::new());
    }

    #[test]
    fn more_questions_than_a_heartbeat_should_carry_wait_for_their_turn() {
        let mut inquiries = OpenInquiries::default();
        let asking = |n| Heartbeat::asking(question(), Uuid::from_u128(n));
        let heartbeats: Vec<_> = (0..MAX_OPEN as u128 + 2).map(asking).collect();
        assert_eq!(inquiries.update(&heartbeats).len(), MAX_OPEN);
        assert_eq!(inquiries.update(&heartbeats[2..]).len(), MAX_OPEN, "the first two went away");
    }
}
