//! Jobs whose next attempt is far off wait in the queue: no worker holds them, no lock is renewed.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::exit::WorkerError;
use super::leases::{BoxedJob, LeaseSlot};
use queue::{DeferOrder, Queue};

/// Most jobs deferred together.
const MAX_GROUP: usize = 256;

/// Delay of a message of whose job another one is worked on: it doubles with each, up to 16 s.
const FIRST_COPY_DELAY: Duration = Duration::from_secs(2);
const MOST_DOUBLINGS: u32 = 3;

/// Job on its way back to the queue.
pub(super) struct DeferredJob {
    order: DeferOrder,
    slot: LeaseSlot,
}

impl DeferredJob {
    /// Defers a job with the attempts that it had and its last error.
    pub(super) fn new(job: BoxedJob, until: Timestamp) -> Self {
        let (order, slot) = job.into_delivery().defer(until);
        Self { order, slot }
    }

    /// Defers a message while another message of its job is being worked on; it is looked up then.
    pub(super) fn copy(mut job: BoxedJob) -> Self {
        let message = &mut job.delivery.job;
        message.may_have_outcome = true;
        let doublings = message.history.deferred.min(MOST_DOUBLINGS);
        Self::new(job, Timestamp::now() + FIRST_COPY_DELAY * 2_u32.pow(doublings))
    }
}

/// Defers all jobs received, until the channel is closed and empty.
pub(super) async fn defer_all(
    queue: Arc<dyn Queue>,
    mut deferred: mpsc::Receiver<DeferredJob>,
) -> Result<(), WorkerError> {
    let mut group = Vec::new();
    while deferred.recv_many(&mut group, MAX_GROUP).await > 0 {
        // A lost lock means that another worker may own the job: leave it alone.
        let ours = group.drain(..).filter(|job| !job.slot.is_lost());
        let (orders, slots): (Vec<_>, Vec<_>) = ours.map(|job| (job.order, job.slot)).unzip();
        debug!(jobs = orders.len(), "the queue keeps jobs until their next attempt");
        match queue.defer(orders).await {
            Ok(()) => {}
            // They come again when their locks expire, with the attempts that they had before.
            Err(error) if error.is_transient() => {
                warn!(%error, jobs = slots.len(), "could not defer jobs; they will be redelivered");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
