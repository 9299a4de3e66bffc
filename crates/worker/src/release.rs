//! Release of jobs to the queue when a worker ends.
//!
//! Abandoning is cheap, but Service Bus counts it as a delivery, and a job that was delivered too
//! often is taken for one that brings its workers down. Workers that come and go with the load must
//! never make it so. So a job with half of its allowed deliveries is deferred until now instead:
//! that costs a message, and its count begins anew.

use jiff::Timestamp;
use tracing::{info, warn};

use super::leases::{BoxedJob, LeaseSlot, LeasedJob};
use queue::{DeferOrder, Delivery, LockToken, Queue};

/// Delivery without an outcome, and its job's attempts.
pub(super) struct ReleasedJob {
    delivery: Delivery,
    attempts: u32,
    last_error: Option<String>,
    /// Keeps its lock renewed until it is released.
    slot: Option<LeaseSlot>,
}

impl From<BoxedJob> for ReleasedJob {
    fn from(held: BoxedJob) -> Self {
        let last_error = held.last_error();
        let LeasedJob { delivery, attempts: tries, slot: place, .. } = *held;
        Self { delivery, attempts: tries, last_error, slot: Some(place) }
    }
}

impl From<Delivery> for ReleasedJob {
    fn from(delivery: Delivery) -> Self {
        let (tries, last_error) =
            (delivery.job.history.attempts, delivery.job.history.last_error.clone());
        Self { delivery, attempts: tries, last_error, slot: None }
    }
}

/// Releases jobs. Those that the queue does not take come again when their locks expire.
pub(super) async fn release_all(queue: &dyn Queue, back: Vec<ReleasedJob>, max_deliveries: u32) {
    if back.is_empty() {
        return;
    }
    let jobs = back.len();
    let ReleasePlan { to_abandon: abandoned, to_defer: postponed, slots: places } =
        plan_release(back, max_deliveries);
    let ends = async {
        queue.abandon(&abandoned).await?;
        if postponed.is_empty() { Ok(()) } else { queue.defer(postponed).await }
    };
    match ends.await {
        Ok(()) => info!(jobs, "released jobs that have no outcome yet"),
        Err(error) => warn!(%error, jobs, "could not release jobs; their locks will expire"),
    }
    drop(places);
}

#[derive(Default)]
struct ReleasePlan {
    /// Deliveries that may count.
    to_abandon: Vec<LockToken>,
    /// Deliveries that must not count.
    to_defer: Vec<DeferOrder>,
    slots: Vec<LeaseSlot>,
}

fn plan_release(back: Vec<ReleasedJob>, max_deliveries: u32) -> ReleasePlan {
    let now = Timestamp::now();
    let ReleasePlan { to_abandon: mut abandoned, to_defer: mut postponed, slots: mut places } =
        ReleasePlan::default();
    for ReleasedJob { delivery, attempts: tries, last_error, slot: place } in back {
        // A lost lock means that another worker may own the job: leave it alone.
        if place.as_ref().is_some_and(LeaseSlot::is_lost) {
            continue;
        }
        places.extend(place);
        if delivery.count.saturating_mul(2) < max_deliveries {
            abandoned.push(delivery.lock);
        } else {
            postponed.push(delivery.defer(now, tries, last_error.as_deref()));
        }
    }
    ReleasePlan { to_abandon: abandoned, to_defer: postponed, slots: places }
}
