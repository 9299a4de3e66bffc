//! Whether a batch's books balance: what went in is what ended and what still waits.

use std::collections::BTreeMap;

use serde::Serialize;

use domain::outcome::Ending;
use queue::Depth;
use store::{Batch, BatchState, Totals};

/// Some queues do not count further.
const COUNTED_UP_TO: u64 = 1_000;

/// What went in, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Jobs that went in.
    pub jobs: u64,
    /// Those that ended, by how; all endings are there.
    pub endings: BTreeMap<Ending, u64>,
    pub ended: u64,
    /// Those without an outcome.
    pub pending: u64,
    /// Messages of all batches that the queue held; unknown if it was not asked.
    pub queued: Option<u64>,
    /// Why it does not balance; empty if it does.
    pub faults: Vec<Fault>,
}

/// A way not to balance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum Fault {
    #[error("{jobs} jobs more have ended than went in")]
    MoreThanWentIn { jobs: u64 },
    #[error(
        "{jobs} jobs have neither an outcome nor a message in the queue: enqueue the input again"
    )]
    InNoPlace { jobs: u64 },
    #[error("{outcomes} outcomes that were counted when they were recorded are not in the store")]
    OutcomesMissing { outcomes: u64 },
}

impl Balance {
    /// `running` are the sums that are kept beside the outcomes, and `queued` what the queue held,
    /// both from before the outcomes were counted.
    pub(super) fn new(
        batch: &Batch,
        totals: &Totals,
        running: &Totals,
        queued: Option<Depth>,
    ) -> Self {
        let ended = totals.ended();
        let pending = batch.jobs.saturating_sub(ended);
        let queued = queued.map(Depth::pending);
        let mut faults = Vec::new();
        // While jobs are being added, the batch does not know their number.
        if batch.state != BatchState::Enqueuing {
            if ended > batch.jobs {
                faults.push(Fault::MoreThanWentIn { jobs: ended - batch.jobs });
            }
            let missing = pending.saturating_sub(queued.unwrap_or(pending));
            if missing > 0 && queued.is_some_and(|queued| queued < COUNTED_UP_TO) {
                faults.push(Fault::InNoPlace { jobs: missing });
            }
        }
        if running.ended() > ended {
            faults.push(Fault::OutcomesMissing { outcomes: running.ended() - ended });
        }
        let endings = Ending::ALL.map(|ending| (ending, totals.of(ending))).into();
        Self { jobs: batch.jobs, endings, ended, pending, queued, faults }
    }

    pub fn balances(&self) -> bool {
        self.faults.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn faults(jobs: u64, ended: u64, counted_before: u64, queued: Option<u64>) -> Vec<Fault> {
        let totals = |n| Totals { endings: [(Ending::Succeeded, n)].into(), ..Totals::default() };
        let batch = Batch {
            id: "night".parse().unwrap(),
            state: BatchState::Running,
            reason: None,
            jobs,
            prompt_tokens: 0,
            inputs: Vec::new(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let queued = queued.map(|locked| Depth { locked, ..Depth::default() });
        Balance::new(&batch, &totals(ended), &totals(counted_before), queued).faults
    }

    #[test]
    fn every_way_not_to_balance_is_told() {
        assert_eq!(faults(100, 60, 60, Some(40)), []);
        assert_eq!(faults(100, 60, 55, Some(70)), [], "others wait in the queue as well");
        assert_eq!(faults(100, 60, 60, None), [], "the queue was not asked");
        assert_eq!(faults(9_000, 0, 0, Some(1_000)), [], "it may hold more than it counts");
        assert_eq!(faults(100, 60, 60, Some(30)), [Fault::InNoPlace { jobs: 10 }]);
        assert_eq!(faults(100, 101, 0, Some(0)), [Fault::MoreThanWentIn { jobs: 1 }]);
        assert_eq!(faults(100, 60, 61, Some(40)), [Fault::OutcomesMissing { outcomes: 1 }]);
    }
}
