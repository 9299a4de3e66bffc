//! Jobs whose next try is far off wait in the queue: no worker holds them, no lock is renewed.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::WorkerError;
use super::held::{Held, InHand, Place};
use domain::outcome::Failure;
use model::verdict::ErrorReply;
use queue::{Postponement, Queue, QueueError};

/// Jobs put off together at the most.
const GROUP: usize = 256;

/// A job on its way back to the queue.
pub(super) struct Postponed {
    order: Postponement,
    place: Place,
}

impl Postponed {
    pub(super) fn new(held: Held, until: Timestamp, why: &Failure) -> Self {
        let InHand { delivery, attempts, place, .. } = *held;
        let why = format!("{}: {}", why.code, why.message);
        Self { order: delivery.postpone(until, attempts, Some(&why)), place }
    }

    /// Of a batch that is paused: nothing has been tried, what was known of earlier tries stays.
    pub(super) fn of_paused(held: Held, until: Timestamp) -> Self {
        let InHand { delivery, attempts, last_error, place, .. } = *held;
        let why = |error: ErrorReply| format!("{}: {}", error.failure.code, error.failure.message);
        let why = last_error.map(why).or_else(|| delivery.job.history.last_error.clone());
        Self { order: delivery.postpone(until, attempts, why.as_deref()), place }
    }
}

/// Puts off all that comes, until the channel is closed and empty.
pub(super) async fn postpone_all(
    queue: Arc<dyn Queue>,
    mut waiting: mpsc::Receiver<Postponed>,
) -> Result<(), WorkerError> {
    let mut group = Vec::new();
    while waiting.recv_many(&mut group, GROUP).await > 0 {
        // Who has lost a lock has nothing to say about its job any more.
        let ours = group.drain(..).filter(|postponed| !postponed.place.is_lost());
        let (orders, places): (Vec<_>, Vec<_>) = ours.map(|p| (p.order, p.place)).unzip();
        debug!(jobs = orders.len(), "the queue keeps jobs until their next try");
        match queue.postpone(orders).await {
            Ok(()) => {}
            // They come again when their locks run out, with the tries that they had before.
            Err(QueueError::Unavailable(error)) => {
                warn!(%error, jobs = places.len(), "could not put jobs off; redelivery will");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
