//! Release of jobs to the queue when a worker ends.
//!
//! Abandoning is cheap, but Service Bus counts it as a delivery, and a job that was delivered too
//! often is taken for one that brings its workers down. Workers that come and go with the load must
//! never make it so. So a job with half of its allowed deliveries is deferred until now instead:
//! that costs a message, and its count begins anew.

use jiff::Timestamp;
use tracing::{info, warn};

use super::leases::{LeaseSlot, LeasedDelivery};
use queue::{DeferOrder, LockToken, Queue};

/// Releases jobs. Those that the queue does not take come again when their locks expire.
pub(super) async fn release_all(queue: &dyn Queue, jobs: Vec<LeasedDelivery>, max_deliveries: u32) {
    if jobs.is_empty() {
        return;
    }
    let count = jobs.len();
    let ReleasePlan { to_abandon, to_defer, slots } = plan_release(jobs, max_deliveries);
    let release = async {
        queue.abandon(&to_abandon).await?;
        if to_defer.is_empty() { Ok(()) } else { queue.defer(to_defer).await }
    };
    match release.await {
        Ok(()) => info!(jobs = count, "released jobs that have no outcome yet"),
        Err(error) => {
            warn!(%error, jobs = count, "could not release jobs; their locks will expire");
        }
    }
    // Until here their locks were renewed.
    drop(slots);
}

#[derive(Default)]
struct ReleasePlan {
    /// Deliveries that may count.
    to_abandon: Vec<LockToken>,
    /// Deliveries that must not count.
    to_defer: Vec<DeferOrder>,
    slots: Vec<LeaseSlot>,
}

fn plan_release(jobs: Vec<LeasedDelivery>, max_deliveries: u32) -> ReleasePlan {
    let now = Timestamp::now();
    let mut plan = ReleasePlan::default();
    // A lost lock means that another worker may own the job: leave it alone.
    for job in jobs.into_iter().filter(|job| !job.slot.is_lost()) {
        if job.delivery.count.saturating_mul(2) < max_deliveries {
            plan.to_abandon.push(job.delivery.lock);
            plan.slots.push(job.slot);
        } else {
            let (order, slot) = job.defer(now);
            plan.to_defer.push(order);
            plan.slots.push(slot);
        }
    }
    plan
}
