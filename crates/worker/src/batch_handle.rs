//! A batch as this worker knows it: whether its jobs may run, and what they may cost.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::allowance::BudgetAllowance;
use super::failure_watch::FailureWatch;
use domain::job::BatchId;
use domain::mutex::lock;
use domain::outcome::Outcome;
use store::{Batch, BatchSenders, BatchState};

/// Interval of polling the batches: what is changed is known to all workers so soon.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Wait of a job's further messages after this worker first heard that its batch has some: three
/// polls by the others.
const COPY_DELAY: Duration = POLL_INTERVAL.saturating_mul(3);

/// Treatment of a batch's jobs that are not in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BatchDisposition {
    Run,
    /// Back to the queue.
    Park,
    /// They end as cancelled.
    Cancel,
}

impl BatchDisposition {
    pub(super) fn of(batch: &Batch) -> Self {
        match batch.state {
            BatchState::Paused => Self::Park,
            BatchState::Cancelled => Self::Cancel,
            BatchState::Enqueuing | BatchState::Running | BatchState::Done => Self::Run,
        }
    }
}

/// Senders of whose messages some may be copies, and the time at which they were first seen.
struct SendersSeen {
    senders: BatchSenders,
    at: Instant,
}

/// A batch as this worker knows it.
pub(super) struct BatchHandle {
    id: BatchId,
    disposition: AtomicU8,
    senders: OnceLock<SendersSeen>,
    /// `None`: no limit on its cost.
    allowance: Option<Arc<BudgetAllowance>>,
    closed: CancellationToken,
    failures: Mutex<FailureWatch>,
}

impl BatchHandle {
    pub(super) fn new(
        id: BatchId,
        disposition: BatchDisposition,
        allowance: Option<Arc<BudgetAllowance>>,
        closed: CancellationToken,
        failures: FailureWatch,
    ) -> Self {
        let disposition = AtomicU8::new(disposition as u8);
        let (senders, failures) = (OnceLock::new(), Mutex::new(failures));
        Self { id, disposition, senders, allowance, closed, failures }
    }

    /// Counts how one of its jobs ended; returns why the batch should be paused, if it should.
    pub(super) fn observe(&self, outcome: &Outcome) -> Option<String> {
        lock(&self.failures).observe(outcome)
    }

    /// Takes note of the batch's senders.
    pub(super) fn see_senders(&self, senders: BatchSenders) {
        if senders != BatchSenders::One {
            self.senders.get_or_init(|| SendersSeen { senders, at: Instant::now() });
        }
    }

    /// Returns whether a job of it may be in the queue twice.
    pub(super) fn may_have_copies(&self) -> bool {
        self.senders.get().is_some()
    }

    /// Returns when every worker knows that there are copies; `None` if none ever worked without
    /// that knowledge.
    pub(super) fn copies_known_at(&self) -> Option<Instant> {
        let seen = self.senders.get().filter(|seen| seen.senders == BatchSenders::Several)?;
        Some(seen.at + COPY_DELAY)
    }

    pub(super) fn id(&self) -> &BatchId {
        &self.id
    }

    pub(super) fn allowance(&self) -> Option<&Arc<BudgetAllowance>> {
        self.allowance.as_ref()
    }

    /// Returns the token that is cancelled when none of its jobs is held any more.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// Returns how its jobs are treated now.
    pub(super) fn disposition(&self) -> BatchDisposition {
        match self.stored_disposition() {
            BatchDisposition::Run
                if self.allowance.as_ref().is_some_and(|allowance| allowance.is_blocked()) =>
            {
                BatchDisposition::Park
            }
            disposition => disposition,
        }
    }

    /// Returns the disposition that the store gave last.
    pub(super) fn stored_disposition(&self) -> BatchDisposition {
        match self.disposition.load(Ordering::Relaxed) {
            0 => BatchDisposition::Run,
            1 => BatchDisposition::Park,
            _ => BatchDisposition::Cancel,
        }
    }

    /// Sets the disposition; returns whether it changed.
    pub(super) fn set_disposition(&self, disposition: BatchDisposition) -> bool {
        let before = self.disposition.swap(disposition as u8, Ordering::Relaxed);
        let changed = before != disposition as u8;
        if changed && disposition == BatchDisposition::Run {
            self.allowance.iter().for_each(|allowance| allowance.reopen());
            lock(&self.failures).reset();
        }
        changed
    }
}
