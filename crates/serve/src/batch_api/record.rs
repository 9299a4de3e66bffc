//! Record of one batch in the API, and its status transitions.
//!
//! The record is stored without jobs and outcomes. [`BatchRecord::advance`] takes the state of
//! these and updates the status.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use domain::job::Api;
use domain::outcome::OutcomeStatus;
use store::{BatchState, BatchTotals};

/// Seconds after which a batch counts as cancelled, whether or not workers have ended its jobs
/// (OpenAI docs, "Cancel batch": "will be in status cancelling for up to 10 minutes").
const CANCELLING_FOR: i64 = 10 * 60;

/// Stored record of a batch. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct BatchRecord {
    pub endpoint: Api,
    pub input_file_id: String,
    pub completion_window: String,
    pub metadata: Option<BTreeMap<String, String>>,
    pub created_at: i64,
    /// End of the completion window.
    pub expires_at: i64,
    pub in_progress_at: Option<i64>,
    pub finalizing_at: Option<i64>,
    pub completed_at: Option<i64>,
    pub failed_at: Option<i64>,
    pub expired_at: Option<i64>,
    pub cancelling_at: Option<i64>,
    pub cancelled_at: Option<i64>,
    /// Errors of the input, up to a limit.
    pub errors: Vec<LineError>,
    /// Final counts; while the batch runs they are counted afresh.
    pub counts: BatchRequestCounts,
}

/// Error of one input line, in the API's format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LineError {
    pub code: String,
    pub line: Option<u64>,
    pub message: String,
    pub param: Option<String>,
}

/// Request counts of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BatchRequestCounts {
    pub total: u64,
    pub completed: u64,
    /// Requests that ended without an answer.
    pub failed: u64,
}

/// State and totals of the batch in the store.
#[derive(Debug, Clone, Default)]
pub(super) struct BatchSnapshot {
    pub state: Option<BatchState>,
    pub totals: BatchTotals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ApiBatchStatus {
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
    pub(super) fn status(&self) -> ApiBatchStatus {
        let reached = [
            (self.failed_at, ApiBatchStatus::Failed),
            (self.cancelled_at, ApiBatchStatus::Cancelled),
            (self.expired_at, ApiBatchStatus::Expired),
            (self.completed_at, ApiBatchStatus::Completed),
            (self.cancelling_at, ApiBatchStatus::Cancelling),
            (self.finalizing_at, ApiBatchStatus::Finalizing),
            (self.in_progress_at, ApiBatchStatus::InProgress),
        ];
        let reached = reached.into_iter().find(|(at, _)| at.is_some());
        reached.map_or(ApiBatchStatus::Validating, |(_, status)| status)
    }

    /// Returns whether the status is final.
    pub(super) fn is_final(&self) -> bool {
        use ApiBatchStatus::{Cancelled, Completed, Expired, Failed};
        matches!(self.status(), Failed | Cancelled | Expired | Completed)
    }

    /// Returns whether its jobs may go to the queue, or are there.
    pub(super) fn is_active(&self) -> bool {
        !self.is_final() && self.cancelling_at.is_none()
    }

    pub(super) fn is_metadata_empty(&self) -> bool {
        self.metadata.as_ref().is_none_or(BTreeMap::is_empty)
    }

    /// Updates the status by the snapshot; returns whether anything changed.
    pub(super) fn advance(&mut self, snapshot: &BatchSnapshot, now: i64) -> bool {
        let before = self.clone();
        self.step(snapshot, now);
        *self != before
    }

    fn step(&mut self, snapshot: &BatchSnapshot, now: i64) {
        if self.is_final() || self.in_progress_at.is_none() {
            return;
        }
        if snapshot.state == Some(BatchState::Cancelled) {
            self.cancelling_at.get_or_insert(now);
        }
        let ended = snapshot.totals.ended();
        let have_all_ended = ended >= self.counts.total;
        match self.cancelling_at {
            Some(since) if have_all_ended || now >= since + CANCELLING_FOR => {
                self.cancelled_at = Some(now);
            }
            Some(_) => {}
            None if have_all_ended => {
                self.finalizing_at.get_or_insert(now);
                let any_expired = snapshot.totals.of(OutcomeStatus::Expired) > 0;
                let at = if any_expired { &mut self.expired_at } else { &mut self.completed_at };
                *at = Some(now);
            }
            // Workers now end the remaining jobs as expired.
            None if now >= self.expires_at => {
                self.finalizing_at.get_or_insert(now);
            }
            None => {}
        }
        let completed = snapshot.totals.of(OutcomeStatus::Succeeded);
        if self.is_final() {
            self.counts =
                BatchRequestCounts { completed, failed: ended - completed, ..self.counts };
        }
    }

    /// Starts the cancellation; returns false if the batch is final or already cancelling.
    pub(super) fn cancel(&mut self, now: i64) -> bool {
        if !self.is_active() {
            return false;
        }
        self.cancelling_at = Some(now);
        if self.in_progress_at.is_none() {
            // None of its jobs is in the queue yet, and none will be.
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

    /// Returns the batch object of the API.
    pub(super) fn object(&self, id: &str, snapshot: &BatchSnapshot) -> Value {
        let counts = if self.is_final() { self.counts } else { self.running_counts(snapshot) };
        let file =
            |count: u64, of: OutputKind| (count > 0 && self.is_final()).then(|| of.file_id(id));
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
            "output_file_id": file(counts.completed, OutputKind::Answers),
            "error_file_id": file(counts.failed, OutputKind::Errors),
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

    fn running_counts(&self, snapshot: &BatchSnapshot) -> BatchRequestCounts {
        let completed = snapshot.totals.of(OutcomeStatus::Succeeded);
        BatchRequestCounts { completed, failed: snapshot.totals.ended() - completed, ..self.counts }
    }
}

/// The two result files of a batch, generated from its outcomes on each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputKind {
    Answers,
    Errors,
}

impl OutputKind {
    const BATCH: &str = "batch_";

    pub(super) fn file_id(self, batch: &str) -> String {
        let hex = batch.strip_prefix(Self::BATCH).unwrap_or(batch);
        match self {
            Self::Answers => format!("file-{hex}-output"),
            Self::Errors => format!("file-{hex}-errors"),
        }
    }

    /// Parses a file id into the kind and batch; `None` if it is neither of the two.
    pub(super) fn from_file_id(id: &str) -> Option<(Self, String)> {
        let (hex, what) = id.strip_prefix("file-")?.rsplit_once('-')?;
        let batch = format!("{}{hex}", Self::BATCH);
        match what {
            "output" => Some((Self::Answers, batch)),
            "errors" => Some((Self::Errors, batch)),
            _ => None,
        }
    }

    pub(super) fn endings(self) -> Vec<OutcomeStatus> {
        let is_answer = |ending: &OutcomeStatus| *ending == OutcomeStatus::Succeeded;
        let all = OutcomeStatus::ALL.into_iter();
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
            counts: BatchRequestCounts { total: 10, ..BatchRequestCounts::default() },
        }
    }

    fn seen(succeeded: u64, other: OutcomeStatus, count: u64) -> BatchSnapshot {
        let endings = [(OutcomeStatus::Succeeded, succeeded), (other, count)].into();
        BatchSnapshot {
            state: Some(BatchState::Running),
            totals: BatchTotals { endings, ..BatchTotals::default() },
        }
    }

    #[test]
    fn it_completes_when_all_have_ended() {
        let mut batch = record();
        assert!(!batch.advance(&seen(10, OutcomeStatus::Failed, 0), 5), "it was never begun");
        batch.in_progress_at = Some(5);
        assert!(!batch.advance(&seen(9, OutcomeStatus::Failed, 0), 6));
        assert_eq!(batch.status(), ApiBatchStatus::InProgress);
        assert!(batch.advance(&seen(8, OutcomeStatus::Dead, 2), 7));
        assert_eq!((batch.status(), batch.completed_at), (ApiBatchStatus::Completed, Some(7)));
        assert_eq!(batch.counts, BatchRequestCounts { total: 10, completed: 8, failed: 2 });
        assert!(!batch.advance(&seen(10, OutcomeStatus::Dead, 0), 8), "what is final stays");
        let object = batch.object("batch_7", &BatchSnapshot::default());
        assert_eq!(object["output_file_id"], "file-7-output");
        assert_eq!(object["error_file_id"], "file-7-errors");
    }

    #[test]
    fn it_expires_when_its_jobs_do() {
        let mut batch = BatchRecord { in_progress_at: Some(5), ..record() };
        batch.advance(&seen(3, OutcomeStatus::Failed, 0), 86_400);
        assert_eq!(batch.status(), ApiBatchStatus::Finalizing);
        batch.advance(&seen(3, OutcomeStatus::Expired, 7), 86_500);
        assert_eq!((batch.status(), batch.counts.failed), (ApiBatchStatus::Expired, 7));
    }

    #[test]
    fn it_is_cancelled_when_its_jobs_are_or_nobody_does_it() {
        let mut early = record();
        assert!(early.cancel(3) && !early.cancel(4));
        assert_eq!(early.status(), ApiBatchStatus::Cancelled);
        let mut late = BatchRecord { in_progress_at: Some(5), ..record() };
        assert!(late.cancel(6) && !late.is_active());
        late.advance(&seen(3, OutcomeStatus::Cancelled, 6), 7);
        assert_eq!(late.status(), ApiBatchStatus::Cancelling);
        let mut alone = late.clone();
        late.advance(&seen(3, OutcomeStatus::Cancelled, 7), 8);
        assert_eq!((late.status(), late.cancelled_at), (ApiBatchStatus::Cancelled, Some(8)));
        alone.advance(&seen(3, OutcomeStatus::Cancelled, 6), 6 + CANCELLING_FOR);
        assert_eq!(alone.status(), ApiBatchStatus::Cancelled);
        let mut by_others = BatchRecord { in_progress_at: Some(5), ..record() };
        by_others.advance(
            &BatchSnapshot { state: Some(BatchState::Cancelled), ..BatchSnapshot::default() },
            9,
        );
        assert_eq!(by_others.status(), ApiBatchStatus::Cancelling);
    }

    #[test]
    fn its_files_are_told_by_their_names() {
        for output in [OutputKind::Answers, OutputKind::Errors] {
            let id = output.file_id("batch_0f");
            assert_eq!(OutputKind::from_file_id(&id), Some((output, "batch_0f".to_owned())));
        }
        assert_eq!(OutputKind::from_file_id("file-0f"), None);
        assert_eq!(OutputKind::Answers.endings(), [OutcomeStatus::Succeeded]);
        assert_eq!(OutputKind::Errors.endings().len(), OutcomeStatus::ALL.len() - 1);
    }
}
