//! Jobs, outcomes and proofs for tests.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use promptmill::job::{Api, BatchId, Job, JobHistory, JobId, TokenEstimate};
use promptmill::outcome::{Outcome, OutcomeStatus, TokenUsage};
use promptmill::sqlite::Database;
use promptmill::store::local::LocalStore;
use promptmill::store::{OutcomeStore, Recorded};

pub fn job(batch: &str, custom_id: &str) -> Job {
    let batch_id: BatchId = batch.parse().unwrap();
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{custom_id}"}}]}}"#);
    Job {
        id: JobId::new(&batch_id, custom_id),
        batch_id,
        custom_id: custom_id.into(),
        position: 0,
        api: Api::ChatCompletions,
        model: "m".into(),
        body: Bytes::from(body),
        estimate: Some(TokenEstimate { prompt: 8, max_output: 16 }),
        deadline: None,
        not_before: None,
        priority: 0,
        metadata: Some(r#"{"team":"営業"}"#.into()),
        may_have_outcome: false,
        claim_check: None,
        history: JobHistory::default(),
    }
}

pub fn outcome(job: &Job, ending: OutcomeStatus) -> Outcome {
    Outcome {
        job_id: job.id,
        batch_id: job.batch_id.clone(),
        custom_id: job.custom_id.clone(),
        position: job.position,
        digest: job.digest(),
        ending,
        status_code: Some(200),
        request_id: Some("r".into()),
        body: Some(Bytes::from_static(br#"{"choices":[]}"#)),
        failure: None,
        usage: TokenUsage { prompt: 8, completion: 5, ..TokenUsage::default() },
        finish: None,
        flaw: None,
        service_tier: None,
        attempts: 1,
        throttled: 0,
        deployment: "d".into(),
        model: job.model.clone(),
        latency_ms: 12,
        finished_at: Timestamp::now(),
        deadline: job.deadline,
        metadata: job.metadata.clone(),
    }
}

/// Gives proofs, for tests that are about something else.
pub struct Prover {
    store: LocalStore,
    _dir: tempfile::TempDir,
}

impl Prover {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(dir.path()).unwrap());
        Self { store, _dir: dir }
    }

    pub async fn prove(&self, job: &Job) -> Recorded {
        self.prove_all(std::slice::from_ref(job)).await[0]
    }

    pub async fn prove_all(&self, jobs: &[Job]) -> Vec<Recorded> {
        let outcomes = jobs.iter().map(|job| outcome(job, OutcomeStatus::Succeeded)).collect();
        self.store.record(Arc::new(outcomes)).await.unwrap()
    }
}
