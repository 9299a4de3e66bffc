//! One batch as the API knows it, and how it moves on from status to status.
//!
//! The record lies in the store; jobs and outcomes are not in it. [`BatchRecord::advance`] is told how
//! these stand and says what follows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use domain::job::Api;
use domain::outcome::Ending;
use store::{BatchState, Totals};

/// After this a batch counts as cancelled, whether or not workers were there to end its jobs
/// (OpenAI docs, "Cancel batch": "will be in status cancelling for up to 10 minutes").
const CANCELLING_FOR: i64 = 10 * 60;

/// What is kept of a batch. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BatchRecord {
    pub endpoint: Api,
    pub input_file_id: String,
    pub completion_window: String,
    pub metadata: Option<BTreeMap<String, String>>,
    pub created_at: i64,
    /// When the completion window closes.
    pub expires_at: i64,
    pub in_progress_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    /// What is wrong with the input, at most some of it.
    pub errors: Vec<LineError>,
    /// Of the end; while it is at work they are counted anew.
    pub counts: Counts,
}

/// What is wrong with one line, as the API tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LineError {
    pub code: String,
    pub line: Option<u64>,
    pub message: String,
    pub param: Option<String>,
}

/// Requests of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub total: u64,
    pub completed: u64,
    /// All that ended without an answer.
    pub failed: u64,
}

/// How the batch stands in the queue and the store.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub state: Option<BatchState>,
    pub totals: Totals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl BatchRecord {
    pub(super) fn status(&self) -> Status {
        let reached = [
            (self.failed_at, Status::Failed),
            (self.cancelled_at, Status::Cancelled),
            (self.expired_at, Status::Expired),
            (self.completed_at, Status::Completed),
            (self.cancelling_at, Status::Cancelling),
            (self.finalizing_at, Status::Finalizing),
            (self.in_progress_at, Status::InProgress),
        ];
        let reached = reached.into_iter().find(|(at, _)| at.is_some());
        reached.map_or(Status::Validating, |(_, status)| status)
    }

    /// Whether it changes no more.
    pub(super) fn is_final(&self) -> bool {
        use Status::{Cancelled, Completed, Expired, Failed};
        matches!(self.status(), Failed | Cancelled | Expired | Completed)
    }

    /// Whether its jobs may go to the queue, or are there.
    pub(super) fn is_to_be_worked(&self) -> bool {
        !self.is_final() && self.cancelling_at.is_none()
    }

    pub(super) fn is_metadata_empty(&self) -> bool {
        self.metadata.as_ref().is_none_or(BTreeMap::is_empty)
    }

    /// Moves on by what was seen. True if anything is new.
    pub(super) fn advance(&mut self, seen: &Seen, now: i64) -> bool {
        let before = self.clone();
        self.step(seen, now);
        *self != before
    }

    fn step(&mut self, seen: &Seen, now: i64) {
        if self.is_final() || self.in_progress_at.is_none() {
            return;
        }
        if seen.state == Some(BatchState::Cancelled) {
            self.cancelling_at.get_or_insert(now);
        }
        let ended = seen.totals.ended();
        let have_all_ended = ended >= self.counts.total;
        match self.cancelling_at {
            Some(since) if have_all_ended || now >= since + CANCELLING_FOR => {
                self.cancelled_at = Some(now);
            }
            Some(_) => {}
            None if have_all_ended => {
                self.finalizing_at.get_or_insert(now);
                let any_expired = seen.totals.of(Ending::Expired) > 0;
                let at = if any_expired { &mut self.expired_at } else { &mut self.completed_at };
                *at = Some(now);
            }
            // Workers now end as expired what is left.
            None if now >= self.expires_at => {
                self.finalizing_at.get_or_insert(now);
            }
            None => {}
        }
        let completed = seen.totals.of(Ending::Succeeded);
        if self.is_final() {
            self.counts = Counts { completed, failed: ended - completed, ..self.counts };
        }
    }

    /// Asks for its end.
    pub(super) fn cancel(&mut self, now: i64) -> bool {
        if !self.is_to_be_worked() {
            return false;
        }
        self.cancelling_at = Some(now);
        if self.in_progress_at.is_none() {
            // No job of it is anywhere yet, and none will be.
            self.cancelled_at = Some(now);
        }
        true
    }

    pub(super) fn fail(&mut self, errors: Vec<LineError>, now: i64) -> bool {
        let is_first = !self.is_final();
        if is_first {
            self.failed_at = Some(now);
            self.errors = errors;
        }
        is_first
    }

    /// The batch object of the API.
    pub(super) fn object(&self, id: &str, seen: &Seen) -> Value {
        let counts = if self.is_final() { self.counts } else { self.running_counts(seen) };
        let file = |count: u64, of: Output| (count > 0 && self.is_final()).then(|| of.file_id(id));
        let errors =
            (!self.errors.is_empty()).then(|| json!({ "object": "list", "data": self.errors }));
        json!({
            "id": id,
            "object": "batch",
            "endpoint": self.endpoint.url(),
            "errors": errors,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status(),
            "output_file_id": file(counts.completed, Output::Answers),
            "error_file_id": file(counts.failed, Output::Errors),
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": counts,
            "metadata": self.metadata,
        })
    }

    fn running_counts(&self, seen: &Seen) -> Counts {
        let completed = seen.totals.of(Ending::Succeeded);
        Counts { completed, failed: seen.totals.ended() - completed, ..self.counts }
    }
}

/// The two files that a batch leaves; they are made of its outcomes whenever they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    Answers,
    Errors,
}

impl Output {
    const BATCH: &str = "batch_";

    pub(super) fn file_id(self, batch: &str) -> String {
        let hex = batch.strip_prefix(Self::BATCH).unwrap_or(batch);
        match self {
            Self::Answers => format!("file-{hex}-output"),
            Self::Errors => format!("file-{hex}-errors"),
        }
    }

    /// The file's batch, if it is one of these two.
    pub(super) fn of_file(id: &str) -> Option<(Self, String)> {
        let (hex, what) = id.strip_prefix("file-")?.rsplit_once('-')?;
        let batch = format!("{}{hex}", Self::BATCH);
        match what {
            "output" => Some((Self::Answers, batch)),
            "errors" => Some((Self::Errors, batch)),
            _ => None,
        }
    }

    pub(super) fn endings(self) -> Vec<Ending> {
        let is_answer = |ending: &Ending| *ending == Ending::Succeeded;
        let all = Ending::ALL.into_iter();
        all.filter(|ending| is_answer(ending) == (self == Self::Answers)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> BatchRecord {
        BatchRecord {
            endpoint: Api::ChatCompletions,
            input_file_id: "file-1".into(),
            completion_window: "24h".into(),
            metadata: None,
            created_at: 0,
            expires_at: 86_400,
            in_progress_at: None,
            finalizing_at: None,
            completed_at: None,
            failed_at: None,
            expired_at: None,
            cancelling_at: None,
            cancelled_at: None,
            errors: Vec::new(),
            counts: Counts { total: 10, ..Counts::default() },
        }
    }

    fn seen(succeeded: u64, other: Ending, count: u64) -> Seen {
        let endings = [(Ending::Succeeded, succeeded), (other, count)].into();
        Seen { state: Some(BatchState::Running), totals: Totals { endings, ..Totals::default() } }
    }

    #[test]
    fn it_completes_when_all_have_ended() {
        let mut batch = record();
        assert!(!batch.advance(&seen(10, Ending::Failed, 0), 5), "it was never begun");
        batch.in_progress_at = Some(5);
        assert!(!batch.advance(&seen(9, Ending::Failed, 0), 6));
        assert_eq!(batch.status(), Status::InProgress);
        assert!(batch.advance(&seen(8, Ending::Dead, 2), 7));
        assert_eq!((batch.status(), batch.completed_at), (Status::Completed, Some(7)));
        assert_eq!(batch.counts, Counts { total: 10, completed: 8, failed: 2 });
        assert!(!batch.advance(&seen(10, Ending::Dead, 0), 8), "what is final stays");
        let object = batch.object("batch_7", &Seen::default());
        assert_eq!(object["output_file_id"], "file-7-output");
        assert_eq!(object["error_file_id"], "file-7-errors");
    }

    #[test]
    fn it_expires_when_its_jobs_do() {
        let mut batch = BatchRecord { in_progress_at: Some(5), ..record() };
        batch.advance(&seen(3, Ending::Failed, 0), 86_400);
        assert_eq!(batch.status(), Status::Finalizing);
        batch.advance(&seen(3, Ending::Expired, 7), 86_500);
        assert_eq!((batch.status(), batch.counts.failed), (Status::Expired, 7));
    }

    #[test]
    fn it_is_cancelled_when_its_jobs_are_or_nobody_does_it() {
        let mut early = record();
        assert!(early.cancel(3) && !early.cancel(4));
        assert_eq!(early.status(), Status::Cancelled);
        let mut late = BatchRecord { in_progress_at: Some(5), ..record() };
        assert!(late.cancel(6) && !late.is_to_be_worked());
        late.advance(&seen(3, Ending::Cancelled, 6), 7);
        assert_eq!(late.status(), Status::Cancelling);
        let mut alone = late.clone();
        late.advance(&seen(3, Ending::Cancelled, 7), 8);
        assert_eq!((late.status(), late.cancelled_at), (Status::Cancelled, Some(8)));
        alone.advance(&seen(3, Ending::Cancelled, 6), 6 + CANCELLING_FOR);
        assert_eq!(alone.status(), Status::Cancelled);
        let mut by_others = BatchRecord { in_progress_at: Some(5), ..record() };
        by_others.advance(&Seen { state: Some(BatchState::Cancelled), ..Seen::default() }, 9);
        assert_eq!(by_others.status(), Status::Cancelling);
    }

    #[test]
    fn its_files_are_told_by_their_names() {
        for output in [Output::Answers, Output::Errors] {
            let id = output.file_id("batch_0f");
            assert_eq!(Output::of_file(&id), Some((output, "batch_0f".to_owned())));
        }
        assert_eq!(Output::of_file("file-0f"), None);
        assert_eq!(Output::Answers.endings(), [Ending::Succeeded]);
        assert_eq!(Output::Errors.endings().len(), Ending::ALL.len() - 1);
    }
}
