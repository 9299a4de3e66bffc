//! Jobs that go back to the queue when a worker ends.
//!
//! Abandoning is cheap, but Service Bus counts it as a delivery, and a job that was delivered too often
//! is taken for one that brings its workers down. Workers that come and go with the load must never
//! make it so. So a job that was handed out half as often as it may be is postponed until now instead:
//! that costs a message, and its count begins anew.

use jiff::Timestamp;
use tracing::{info, warn};

use super::held::{Held, InHand, Place};
use queue::{Delivery, LockToken, Postponement, Queue};

/// A delivery without an end, and what is known of its job's tries.
pub(super) struct Back {
    delivery: Delivery,
    tries: u32,
    last_error: Option<String>,
    /// Its lock is renewed until it is given back.
    place: Option<Place>,
}

impl From<Held> for Back {
    fn from(held: Held) -> Self {
        let last_error = held.last_error();
        let InHand { delivery, attempts: tries, place, .. } = *held;
        Self { delivery, tries, last_error, place: Some(place) }
    }
}

impl From<Delivery> for Back {
    fn from(delivery: Delivery) -> Self {
        let (tries, last_error) =
            (delivery.job.history.tries, delivery.job.history.last_error.clone());
        Self { delivery, tries, last_error, place: None }
    }
}

/// Gives jobs back. What the queue does not take comes again when its lock runs out.
pub(super) async fn give_back(queue: &dyn Queue, back: Vec<Back>, max_deliveries: u32) {
    if back.is_empty() {
        return;
    }
    let jobs = back.len();
    let Parted { abandoned, postponed, places } = parted(back, max_deliveries);
    let ends = async {
        queue.abandon(&abandoned).await?;
        if postponed.is_empty() { Ok(()) } else { queue.postpone(postponed).await }
    };
    match ends.await {
        Ok(()) => info!(jobs, "gave jobs back that have no outcome yet"),
        Err(error) => warn!(%error, jobs, "could not give jobs back; their locks run out"),
    }
    drop(places);
}

#[derive(Default)]
struct Parted {
    /// Whose delivery may count.
    abandoned: Vec<LockToken>,
    /// Whose delivery must not.
    postponed: Vec<Postponement>,
    places: Vec<Place>,
}

fn parted(back: Vec<Back>, max_deliveries: u32) -> Parted {
    let now = Timestamp::now();
    let Parted { mut abandoned, mut postponed, mut places } = Parted::default();
    for Back { delivery, tries, last_error, place } in back {
        // Who has lost a lock has nothing to say about its job any more.
        if place.as_ref().is_some_and(Place::is_lost) {
            continue;
        }
        places.extend(place);
        if delivery.count.saturating_mul(2) < max_deliveries {
            abandoned.push(delivery.lock);
        } else {
            postponed.push(delivery.postpone(now, tries, last_error.as_deref()));
        }
    }
    Parted { abandoned, postponed, places }
}
