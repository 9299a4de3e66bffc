//! What people ask a worker about the jobs that it holds, and what it answers.
//!
//! A worker holds thousands of jobs, so it publishes none of them: `promptmill why` puts a question
//! among the workers' words, and each answers in its next one. The conductor knows the answers; the
//! share task carries both.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::conductor::{Conductor, Retry};
use super::held::{Held, InHand};
use admission::DeploymentIndex;
use admission::explain::{Wait, Waiters};
use domain::job::{BatchId, JobId};
use domain::share::Word;

/// Questions that are answered at a time; of more, those come later that were heard later.
const MOST: usize = 16;

/// Where in a word about itself somebody asks, and where a worker answers.
const ASKS: &str = "asks";
const ANSWERS: &str = "answers";

/// What somebody wants to know of every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Question {
    /// These jobs one by one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub jobs: BTreeSet<JobId>,
    /// The jobs of this batch, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
}

impl Question {
    /// The word that asks it. It claims no part of anything.
    pub fn word(&self, instance: Uuid) -> Word {
        let about = json!({ ASKS: self });
        Word { instance, beat: 1, parts: BTreeMap::new(), about }
    }

    /// What a word asks, if it does.
    pub fn of(word: &Word) -> Option<Self> {
        Self::deserialize(word.about.get(ASKS)?).ok()
    }
}

/// What a worker knows of what it was asked. All times are from when it answered.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// The jobs asked for that it holds.
    pub jobs: Vec<Told>,
    /// The batch asked for.
    pub batch: Option<Holding>,
    /// All that it holds, whatever was asked.
    pub all: Holding,
}

impl Answer {
    /// A worker's answer to a question, once its word has it.
    pub fn of(word: &Word, question: Uuid) -> Option<Self> {
        Self::deserialize(word.about.get(ANSWERS)?.get(question.to_string())?).ok()
    }
}

/// One job that a worker holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub job: JobId,
    pub batch: BatchId,
    /// Calls so far that counted as tries, the one under way not included.
    pub tries: u32,
    /// How the last of them ended.
    pub last_error: Option<String>,
    /// Unix ms after which it ends as expired, if it has not been sent by then.
    pub deadline_ms: Option<i64>,
    #[serde(flatten)]
    pub at: At,
}

/// Where in a worker a job is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum At {
    /// It wants to go.
    Line { wait: Wait },
    /// Its call is under way.
    Call { deployment: String, since_ms: u64 },
    /// It waits for its next try after a fault.
    Retry { due_in_ms: u64 },
}

/// Jobs that a worker holds, counted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Holding {
    /// Those that want to go, by the deployments that can serve them.
    pub lines: Vec<Waiters>,
    /// Calls in flight by deployment.
    pub calls: BTreeMap<String, u64>,
    pub retries: u64,
    pub next_retry_in_ms: Option<u64>,
}

impl Holding {
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

/// The questions that are asked now, and what was answered. Each is answered once.
#[derive(Debug, Default)]
pub(super) struct Desk(BTreeMap<Uuid, Option<Answer>>);

impl Desk {
    /// Hears who asks; forgets those who ask no more.
    pub(super) fn hear(&mut self, words: &[Word]) -> Vec<(Uuid, Question)> {
        let asked: BTreeMap<_, _> =
            words.iter().filter_map(|word| Some((word.instance, Question::of(word)?))).collect();
        self.0.retain(|question, _| asked.contains_key(question));
        let mut open = Vec::new();
        for (id, question) in asked {
            if self.0.len() < MOST || self.0.contains_key(&id) {
                let answer = self.0.entry(id).or_default();
                open.extend(answer.is_none().then_some((id, question)));
            }
        }
        open
    }

    pub(super) fn answer(&mut self, question: Uuid, answer: Answer) {
        self.0.insert(question, Some(answer));
    }

    /// Tells the answers in a worker's word about itself.
    pub(super) fn tell(&self, about: &mut Value) {
        let answers = self.0.iter().filter_map(|(id, answer)| Some((id, answer.as_ref()?)));
        let answers: BTreeMap<String, &Answer> =
            answers.map(|(id, answer)| (id.to_string(), answer)).collect();
        if answers.is_empty() {
            about.as_object_mut().map(|about| about.remove(ANSWERS));
        } else {
            about[ANSWERS] = json!(answers);
        }
    }
}

impl Conductor {
    /// What we know of the jobs and the batch that somebody asks for.
    pub(super) fn explain(&self, question: &Question, now: Instant) -> Answer {
        let batch = question.batch.as_ref();
        Answer {
            jobs: self.told(&question.jobs, now),
            batch: batch.map(|batch| self.holding(|other| other == batch, now)),
            all: self.holding(|_| true, now),
        }
    }

    fn told(&self, jobs: &BTreeSet<JobId>, now: Instant) -> Vec<Told> {
        if jobs.is_empty() {
            return Vec::new();
        }
        let is_asked = |held: &Held| jobs.contains(&held.delivery.job.id);
        let waits = self.admission.waits(is_asked, now);
        let in_line = waits.into_iter().map(|(held, wait)| told(held, At::Line { wait }));
        let retries = self.retries.iter().map(|Reverse(retry)| retry);
        let retries = retries.filter(|retry| is_asked(&retry.held)).map(|retry| {
            let due_in_ms = ms(retry.due.0.saturating_duration_since(now));
            told(&retry.held, At::Retry { due_in_ms })
        });
        let flights = jobs.iter().filter_map(|job| Some((*job, self.flights.get(job)?)));
        let flights = flights.map(|(job, flight)| Told {
            job,
            batch: flight.batch.clone(),
            tries: flight.tries,
            last_error: flight.last_error.clone(),
            deadline_ms: flight.deadline.map(Timestamp::as_millisecond),
            at: At::Call {
                deployment: self.name_of(flight.deployment),
                since_ms: ms(now.saturating_duration_since(flight.since)),
            },
        });
        in_line.chain(retries).chain(flights).collect()
    }

    fn holding(&self, is_asked: impl Fn(&BatchId) -> bool, now: Instant) -> Holding {
        let mut holding = Holding {
            lines: self.admission.waiters(|held| is_asked(&held.delivery.job.batch_id), now),
            ..Holding::default()
        };
        for flight in self.flights.values().filter(|flight| is_asked(&flight.batch)) {
            *holding.calls.entry(self.name_of(flight.deployment)).or_default() += 1;
        }
        for Reverse(Retry { due, held }) in &self.retries {
            if is_asked(&held.delivery.job.batch_id) {
                let due_in = ms(due.0.saturating_duration_since(now));
                let next = holding.next_retry_in_ms.map_or(due_in, |next| next.min(due_in));
                holding.next_retry_in_ms = Some(next);
                holding.retries += 1;
            }
        }
        holding
    }

    fn name_of(&self, deployment: DeploymentIndex) -> String {
        self.caller.targets[deployment.0].member.name.clone()
    }
}

fn told(held: &InHand, at: At) -> Told {
    let job = &held.delivery.job;
    Told {
        job: job.id,
        batch: job.batch_id.clone(),
        tries: held.attempts,
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

    fn question() -> Question {
        Question { batch: Some("night".parse().unwrap()), ..Question::default() }
    }

    #[test]
    fn a_question_is_answered_once_and_forgotten_with_its_word() {
        let (mut desk, asker) = (Desk::default(), Uuid::from_u128(1));
        let worker = Word { about: json!({ "pid": 7 }), ..question().word(Uuid::from_u128(2)) };
        let words = [question().word(asker), worker];
        assert_eq!(desk.hear(&words), [(asker, question())]);
        assert_eq!(desk.hear(&words), [(asker, question())], "it has no answer yet");
        let all = Holding { retries: 3, ..Holding::default() };
        let answer = Answer { all, ..Answer::default() };
        desk.answer(asker, answer.clone());
        assert_eq!(desk.hear(&words), [], "answered");
        let mut about = json!({ "pid": 8 });
        desk.tell(&mut about);
        let word = Word { about, ..words[1].clone() };
        assert_eq!(Answer::of(&word, asker), Some(answer));
        assert_eq!(Answer::of(&word, Uuid::from_u128(9)), None);
        assert_eq!(desk.hear(&words[1..]), []);
        let mut about = word.about;
        desk.tell(&mut about);
        assert_eq!(about, json!({ "pid": 8 }));
    }

    #[test]
    fn more_questions_than_a_word_should_carry_wait_for_their_turn() {
        let mut desk = Desk::default();
        let words: Vec<_> =
            (0..MOST as u128 + 2).map(|n| question().word(Uuid::from_u128(n))).collect();
        assert_eq!(desk.hear(&words).len(), MOST);
        assert_eq!(desk.hear(&words[2..]).len(), MOST, "the first two went away");
    }
}
