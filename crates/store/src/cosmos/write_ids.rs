//! Write ids: a random id in every item, kept until the result of its write is known.
//!
//! A create that was executed can still come back as a failure (the response got lost), and when it
//! is repeated, here or inside the SDK, the service says that the item exists. The id in the item
//! then tells our own write from another worker's. It has to be the same when the *caller* retries
//! after an error, and must not be when the same outcome is recorded anew.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;
use xxhash_rust::xxh3::Xxh3;

use domain::job::JobId;
use domain::mutex::lock;
use domain::outcome::Outcome;

/// One attempt to record one outcome: the job, and a fingerprint of its result.
type WriteAttempt = (JobId, u64);

/// Ids of failed calls: only of outcomes that the caller still holds and will offer again.
#[derive(Debug, Default)]
pub(super) struct WriteIds {
    open: Mutex<HashMap<WriteAttempt, Uuid>>,
}

impl WriteIds {
    /// Claims ids for one call's outcomes, in their order: the failed call's before, else new ones.
    pub(super) fn claim<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) -> ClaimedIds<'_> {
        let mut open = self.open();
        let claimed = outcomes.map(|outcome| {
            let attempt = (outcome.job_id, fingerprint(outcome));
            (attempt, open.remove(&attempt).unwrap_or_else(Uuid::new_v4))
        });
        ClaimedIds { of: self, claimed: claimed.collect() }
    }

    fn open(&self) -> MutexGuard<'_, HashMap<WriteAttempt, Uuid>> {
        lock(&self.open)
    }
}

/// Ids of a call that runs. Dropped without [`ClaimedIds::settle`], by an error or a cancelled
/// caller, they are kept for the next attempt.
#[derive(Debug)]
pub(super) struct ClaimedIds<'a> {
    of: &'a WriteIds,
    claimed: Vec<(WriteAttempt, Uuid)>,
}

impl ClaimedIds<'_> {
    pub(super) fn id(&self, place: usize) -> Uuid {
        self.claimed[place].1
    }

    /// Drops the ids: all of the call's outcomes are proven.
    pub(super) fn settle(mut self) {
        self.claimed.clear();
    }
}

impl Drop for ClaimedIds<'_> {
    fn drop(&mut self) {
        self.of.open().extend(self.claimed.drain(..));
    }
}

fn fingerprint(o: &Outcome) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&o.finished_at.as_nanosecond().to_le_bytes());
    hash.update(&o.latency_ms.to_le_bytes());
    hash.update(o.ending.as_str().as_bytes());
    hash.update(o.body.as_deref().unwrap_or_default());
    hash.digest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::job::BatchId;
    use domain::outcome::{OutcomeStatus, TokenUsage};

    fn outcome() -> Outcome {
        let batch_id: BatchId = "b".parse().unwrap();
        Outcome {
            job_id: JobId::new(&batch_id, "1"),
            batch_id,
            custom_id: "1".into(),
            position: 0,
            digest: 7,
            ending: OutcomeStatus::Succeeded,
            status_code: Some(200),
            request_id: None,
            body: None,
            failure: None,
            usage: TokenUsage::default(),
            finish: None,
            flaw: None,
            service_tier: None,
            attempts: 1,
            throttled: 0,
            deployment: "d".into(),
            model: "m".into(),
            latency_ms: 5,
            finished_at: "2026-11-23T12:00:00Z".parse().unwrap(),
            deadline: None,
            metadata: None,
        }
    }

    #[test]
    fn a_failed_call_is_repeated_with_its_ids() {
        let (ids, outcome) = (WriteIds::default(), outcome());
        let first = ids.claim(std::iter::once(&outcome));
        let id = first.id(0);
        drop(first);
        assert_eq!(ids.claim(std::iter::once(&outcome)).id(0), id);
    }

    #[test]
    fn a_settled_outcome_that_is_recorded_again_is_another_write() {
        let (ids, outcome) = (WriteIds::default(), outcome());
        let first = ids.claim(std::iter::once(&outcome));
        let id = first.id(0);
        first.settle();
        assert_ne!(ids.claim(std::iter::once(&outcome)).id(0), id);
    }

    #[test]
    fn calls_at_the_same_time_never_share_an_id() {
        let (ids, outcome) = (WriteIds::default(), outcome());
        drop(ids.claim(std::iter::once(&outcome)));
        let (one, two) =
            (ids.claim(std::iter::once(&outcome)), ids.claim(std::iter::once(&outcome)));
        assert_ne!(one.id(0), two.id(0));
    }

    #[test]
    fn another_end_of_the_same_job_is_another_write() {
        let (ids, first) = (WriteIds::default(), outcome());
        let id = ids.claim(std::iter::once(&first)).id(0);
        let second = Outcome { latency_ms: 6, ..outcome() };
        assert_ne!(ids.claim(std::iter::once(&second)).id(0), id);
    }
}
