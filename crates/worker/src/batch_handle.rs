//! A batch as this worker knows it: whether its jobs may run, and what they may cost.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::allowance::BudgetAllowance;
use super::failure_watch::FailureWatch;
use domain::job::BatchId;
use domain::mutex::lock;
use domain::outcome::Outcome;
use store::{Batch, BatchState};

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
    pub(super) fn of(batch: Option<&Batch>) -> Self {
        match batch.map(|batch| batch.state) {
            Some(BatchState::Paused) => Self::Park,
            Some(BatchState::Cancelled) => Self::Cancel,
            // Jobs can also be sent by programs that announce no batch.
            Some(BatchState::Enqueuing | BatchState::Running | BatchState::Done) | None => {
                Self::Run
            }
        }
    }
}

/// A batch as this worker knows it.
pub(super) struct BatchHandle {
    id: BatchId,
    disposition: AtomicU8,
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
        let failures = Mutex::new(failures);
        Self { id, disposition: AtomicU8::new(disposition as u8), allowance, closed, failures }
    }

    /// Counts how one of its jobs ended; returns why the batch should be paused, if it should.
    pub(super) fn observe(&self, outcome: &Outcome) -> Option<String> {
        lock(&self.failures).observe(outcome)
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
