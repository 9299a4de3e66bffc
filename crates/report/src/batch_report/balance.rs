//! Balance of a batch: jobs enqueued = jobs ended + jobs still pending.

use std::collections::BTreeMap;

use serde::Serialize;

use domain::outcome::OutcomeStatus;
use queue::QueueDepth;
use store::{Batch, BatchState, BatchTotals};

/// Message count at which some queues stop counting.
const QUEUE_COUNT_CAP: u64 = 1_000;

/// Jobs enqueued, by where they are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BatchBalance {
    /// Jobs enqueued.
    pub jobs: u64,
    /// Jobs ended, by ending; every ending has an entry.
    pub endings: BTreeMap<OutcomeStatus, u64>,
    pub ended: u64,
    /// Jobs without an outcome.
    pub pending: u64,
    /// Messages of all batches in the queue; `None` if the queue was not asked.
    pub queued: Option<u64>,
    /// Reasons why it does not balance; empty if it does.
    pub faults: Vec<BalanceFault>,
}

/// One reason why a batch does not balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum BalanceFault {
    #[error("{jobs} more jobs have ended than were enqueued")]
    MoreThanWentIn { jobs: u64 },
    #[error(
        "{jobs} jobs have neither an outcome nor a message in the queue: enqueue the input again"
    )]
    InNoPlace { jobs: u64 },
    #[error("{outcomes} outcomes that were counted when they were recorded are not in the store")]
    OutcomesMissing { outcomes: u64 },
}

impl BatchBalance {
    /// Compares the figures. `running` are the running totals kept beside the outcomes, `queued`
    /// the queue's depth; both were read before the outcomes were counted.
    pub(super) fn new(
        batch: &Batch,
        totals: &BatchTotals,
        running: &BatchTotals,
        queued: Option<QueueDepth>,
    ) -> Self {
        let ended = totals.ended();
        let pending = batch.jobs.saturating_sub(ended);
        let queued = queued.map(QueueDepth::pending);
        let mut faults = Vec::new();
        // While jobs are being added, or where nobody announced it, their number is not known.
        if batch.state != BatchState::Enqueuing && batch.is_counted() {
            if ended > batch.jobs {
                faults.push(BalanceFault::MoreThanWentIn { jobs: ended - batch.jobs });
            }
            let missing = pending.saturating_sub(queued.unwrap_or(pending));
            if missing > 0 && queued.is_some_and(|queued| queued < QUEUE_COUNT_CAP) {
                faults.push(BalanceFault::InNoPlace { jobs: missing });
            }
        }
        if running.ended() > ended {
            faults.push(BalanceFault::OutcomesMissing { outcomes: running.ended() - ended });
        }
        let endings = OutcomeStatus::ALL.map(|ending| (ending, totals.of(ending))).into();
        Self { jobs: batch.size(ended), endings, ended, pending, queued, faults }
    }

    pub fn is_balanced(&self) -> bool {
        self.faults.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use store::BatchSenders;

    fn faults(
        jobs: u64,
        ended: u64,
        counted_before: u64,
        queued: Option<u64>,
    ) -> Vec<BalanceFault> {
        let totals = |n| BatchTotals {
            endings: [(OutcomeStatus::Succeeded, n)].into(),
            ..BatchTotals::default()
        };
        let batch = Batch {
            id: "night".parse().unwrap(),
            state: BatchState::Running,
            reason: None,
            jobs,
            prompt_tokens: 0,
            inputs: Vec::new(),
            senders: BatchSenders::One,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let queued = queued.map(|locked| QueueDepth { locked, ..QueueDepth::default() });
        BatchBalance::new(&batch, &totals(ended), &totals(counted_before), queued).faults
    }

    #[test]
    fn every_way_not_to_balance_is_told() {
        assert_eq!(faults(100, 60, 60, Some(40)), []);
        assert_eq!(faults(100, 60, 55, Some(70)), [], "others wait in the queue as well");
        assert_eq!(faults(100, 60, 60, None), [], "the queue was not asked");
        assert_eq!(faults(9_000, 0, 0, Some(1_000)), [], "it may hold more than it counts");
        assert_eq!(faults(100, 60, 60, Some(30)), [BalanceFault::InNoPlace { jobs: 10 }]);
        assert_eq!(faults(100, 101, 0, Some(0)), [BalanceFault::MoreThanWentIn { jobs: 1 }]);
        assert_eq!(faults(100, 60, 61, Some(40)), [BalanceFault::OutcomesMissing { outcomes: 1 }]);
    }
}
