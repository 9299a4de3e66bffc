//! Jobs whose next attempt is far off wait in the queue: no worker holds them, no lock is renewed.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::WorkerError;
use super::leases::{BoxedJob, LeaseSlot, LeasedJob};
use domain::outcome::JobFailure;
use model::verdict::ErrorReply;
use queue::{DeferOrder, Queue, QueueError};

/// Most jobs deferred together.
const MAX_GROUP: usize = 256;

/// Job on its way back to the queue.
pub(super) struct DeferredJob {
    order: DeferOrder,
    slot: LeaseSlot,
}

impl DeferredJob {
    pub(super) fn new(held: BoxedJob, until: Timestamp, why: &JobFailure) -> Self {
        let LeasedJob { delivery, attempts, slot, .. } = *held;
        let why = format!("{}: {}", why.code, why.message);
        Self { order: delivery.defer(until, attempts, Some(&why)), slot }
    }

    /// Defers a job of a paused batch: nothing was attempted, its earlier attempts and error stay.
    pub(super) fn for_paused_batch(held: BoxedJob, until: Timestamp) -> Self {
        let LeasedJob { delivery, attempts, last_error, slot, .. } = *held;
        let why = |error: ErrorReply| format!("{}: {}", error.failure.code, error.failure.message);
        let why = last_error.map(why).or_else(|| delivery.job.history.last_error.clone());
        Self { order: delivery.defer(until, attempts, why.as_deref()), slot }
    }
}

/// Defers all jobs received, until the channel is closed and empty.
pub(super) async fn defer_all(
    queue: Arc<dyn Queue>,
    mut waiting: mpsc::Receiver<DeferredJob>,
) -> Result<(), WorkerError> {
    let mut group = Vec::new();
    while waiting.recv_many(&mut group, MAX_GROUP).await > 0 {
        // A lost lock means that another worker may own the job: leave it alone.
        let ours = group.drain(..).filter(|postponed| !postponed.slot.is_lost());
        let (orders, places): (Vec<_>, Vec<_>) = ours.map(|p| (p.order, p.slot)).unzip();
        debug!(jobs = orders.len(), "the queue keeps jobs until their next attempt");
        match queue.defer(orders).await {
            Ok(()) => {}
            // They come again when their locks expire, with the attempts that they had before.
            Err(QueueError::Unavailable(error)) => {
                warn!(%error, jobs = places.len(), "could not defer jobs; they will be redelivered");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
