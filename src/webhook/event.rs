//! The notice of a batch's end.

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::notice::WebhookNotice;
use store::{Batch, BatchState, BatchTotals};

/// Namespace of all notice ids.
const NAMESPACE: Uuid = Uuid::from_u128(0x1f6c_93ab_0d54_5e7b_8a42_c0ff_ee00_0003);

/// Returns the notice of a batch that has ended; `None` if it has not. All workers that see the
/// same end make the same id; a batch that is worked again has another end.
pub fn notice_of(batch: &Batch, totals: &BatchTotals, now: Timestamp) -> Option<WebhookNotice> {
    let (kind, state) = match batch.state {
        // A pause after the last outcome holds nothing up.
        BatchState::Running | BatchState::Paused | BatchState::Done => {
            ("batch.completed", BatchState::Done)
        }
        BatchState::Cancelled => ("batch.cancelled", BatchState::Cancelled),
        BatchState::Enqueuing => return None,
    };
    if totals.ended() < batch.jobs {
        return None;
    }
    let data = json!({
        "batch": batch.id,
        "state": state,
        // A pause's reason no longer applies.
        "reason": batch.reason.as_ref().filter(|_| state == BatchState::Cancelled),
        "created_at": batch.created_at.to_string(),
        "jobs": batch.jobs,
        "endings": totals.endings,
        "usage": totals.usage,
        "attempts": totals.attempts,
    });
    let id = Uuid::new_v5(&NAMESPACE, format!("{kind}\n{data}").as_bytes());
    let body = json!({ "type": kind, "timestamp": now.to_string(), "data": data });
    Some(WebhookNotice { id, body: body.to_string(), made_at: now, due: now, attempts: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::outcome::OutcomeStatus;
    use store::BatchSenders;

    fn batch(state: BatchState) -> Batch {
        Batch {
            id: "night".parse().unwrap(),
            state,
            reason: None,
            jobs: 3,
            prompt_tokens: 30,
            inputs: Vec::new(),
            senders: BatchSenders::One,
            created_at: "2026-11-23T16:00:00Z".parse().unwrap(),
        }
    }

    fn totals(succeeded: u64, attempts: u64) -> BatchTotals {
        let endings = [(OutcomeStatus::Succeeded, succeeded), (OutcomeStatus::Dead, 1)].into();
        BatchTotals { endings, attempts, ..BatchTotals::default() }
    }

    #[test]
    fn everybody_makes_the_same_notice_of_one_end_and_another_of_the_next() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let running = batch(BatchState::Running);
        let first = notice_of(&running, &totals(2, 9), at(1)).unwrap();
        let later = notice_of(&running, &totals(2, 9), at(7)).unwrap();
        assert_eq!(first.id, later.id);
        assert_eq!(notice_of(&batch(BatchState::Done), &totals(2, 9), at(1)).unwrap(), first);
        let again = notice_of(&running, &totals(2, 10), at(9)).unwrap();
        assert_ne!(first.id, again.id, "worked again");
        let told: serde_json::Value = serde_json::from_str(&first.body).unwrap();
        assert_eq!(
            (&told["type"], &told["data"]["state"]),
            (&"batch.completed".into(), &"done".into())
        );
        assert_eq!(told["data"]["endings"], json!({ "succeeded": 2, "dead": 1 }));
    }

    #[test]
    fn no_end_is_told_before_it_has_come() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(notice_of(&batch(BatchState::Running), &totals(1, 9), now), None);
        assert_eq!(notice_of(&batch(BatchState::Enqueuing), &totals(2, 9), now), None);
        let because = |state| Batch { reason: Some("too dear".into()), ..batch(state) };
        let cancelled = notice_of(&because(BatchState::Cancelled), &totals(2, 9), now).unwrap();
        assert!(cancelled.body.contains("batch.cancelled") && cancelled.body.contains("too dear"));
        let paused = notice_of(&because(BatchState::Paused), &totals(2, 9), now).unwrap();
        let running = notice_of(&batch(BatchState::Running), &totals(2, 9), now).unwrap();
        assert_eq!(paused, running);
    }
}
