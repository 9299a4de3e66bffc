//! Deliveries in our hands: what is held, until when, and the room that bounds how many.
//!
//! A [`Held`] carries its place in the room and its entry in the register of locks, so that both
//! are given back wherever it ends.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::states::Known;
use admission::DeploymentIndex;
use domain::job::Estimate;
use model::verdict::ErrorReply;
use queue::{Delivery, LockToken, Queue};
use telemetry::Progress;

/// How often locks are looked at; Service Bus locks last 5 s at the least.
const LOOK: Duration = Duration::from_millis(250);

/// Locks that last less are judged by the queue alone.
const SHORTEST_LOCK: Duration = Duration::from_secs(2);

/// A delivery that waits, runs or is being recorded. It changes hands at every station, so it is a
/// pointer: tasks and channels move that instead of all that is known of a job.
pub(super) type Held = Box<InHand>;

pub(super) struct InHand {
    pub(super) delivery: Delivery,
    /// What it may take.
    pub(super) estimate: Estimate,
    /// What the service books for one call of it.
    pub(super) charge: u64,
    /// Calls so far that count as tries, those of earlier deliveries included.
    pub(super) attempts: u32,
    pub(super) last_error: Option<ErrorReply>,
    /// The deployment that failed it last.
    pub(super) failed_at: Option<DeploymentIndex>,
    /// Its batch.
    pub(super) batch: Arc<Known>,
    /// When it came.
    pub(super) since: Instant,
    pub(super) place: Place,
}

impl InHand {
    /// How its last try ended, in this delivery or an earlier one.
    pub(super) fn last_error(&self) -> Option<String> {
        let failure = self.last_error.as_ref().map(|error| &error.failure);
        let told = failure.map(|failure| format!("{}: {}", failure.code, failure.message));
        told.or_else(|| self.delivery.job.history.last_error.clone())
    }
}

/// Gives the room and the register's entry back when it is dropped.
pub(super) struct Place {
    lock: LockToken,
    locks: Arc<Locks>,
    _room: OwnedSemaphorePermit,
}

impl Place {
    /// Whether somebody else may hold the job by now.
    pub(super) fn is_lost(&self) -> bool {
        let now = Instant::now();
        self.locks.with(|held| held.get(&self.lock).is_none_or(|lock| lock.is_lost(now)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.locks.with(|held| held.remove(&self.lock));
        self.locks.progress.held.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The locks of everything we hold.
pub(super) struct Locks {
    held: Mutex<HashMap<LockToken, Lock>>,
    /// Is told how many there are.
    progress: Arc<Progress>,
}

struct Lock {
    expires: Instant,
    /// When this much is left, it is renewed.
    half_life: Duration,
    lost: bool,
}

impl Lock {
    /// Nobody may have told us: while a queue is away its locks run out unrenewed.
    fn is_lost(&self, now: Instant) -> bool {
        // What seems that short is a clock that goes ahead of the queue's; then only it can tell.
        let can_judge = self.half_life >= SHORTEST_LOCK / 2;
        self.lost || can_judge && self.expires <= now
    }
}

impl Locks {
    pub(super) fn new(progress: Arc<Progress>) -> Self {
        Self { held: Mutex::default(), progress }
    }

    pub(super) fn hold(
        self: &Arc<Self>,
        delivery: Delivery,
        batch: Arc<Known>,
        estimate: Estimate,
        room: OwnedSemaphorePermit,
    ) -> Held {
        let left = until(delivery.locked_until);
        let since = Instant::now();
        let lock = Lock { expires: since + left, half_life: left / 2, lost: false };
        self.with(|held| held.insert(delivery.lock, lock));
        self.progress.held.fetch_add(1, Ordering::Relaxed);
        let place = Place { lock: delivery.lock, locks: self.clone(), _room: room };
        let (attempts, charge) = (delivery.job.history.tries, estimate.charge());
        Box::new(InHand {
            delivery,
            estimate,
            charge,
            attempts,
            last_error: None,
            failed_at: None,
            batch,
            since,
            place,
        })
    }

    fn due(&self, now: Instant) -> Vec<LockToken> {
        self.with(|held| {
            let due =
                held.iter().filter(|(_, lock)| !lock.lost && lock.expires < now + lock.half_life);
            due.map(|(token, _)| *token).collect()
        })
    }

    fn renewed(&self, token: LockToken, until_at: Option<Timestamp>) {
        self.with(|held| {
            let Some(lock) = held.get_mut(&token) else { return };
            match until_at {
                Some(at) => lock.expires = Instant::now() + until(at),
                None => lock.lost = true,
            }
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<LockToken, Lock>) -> T) -> T {
        work(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// From now until then.
pub(super) fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

/// Renews every lock at half of its life, for as long as the task runs.
pub(super) async fn keep_locks(queue: Arc<dyn Queue>, locks: Arc<Locks>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        let due = locks.due(look.tick().await);
        if due.is_empty() {
            continue;
        }
        match queue.renew(&due).await {
            Ok(renewed) => {
                let lost = renewed.iter().filter(|until| until.is_none()).count();
                debug!(locks = due.len(), lost, "renewed locks");
                due.into_iter().zip(renewed).for_each(|(token, at)| locks.renewed(token, at));
            }
            // The next look tries again; a lock that expires meanwhile is settled by redelivery.
            Err(error) => warn!(%error, locks = due.len(), "could not renew locks"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_ran_out_unrenewed_is_lost() {
        let now = Instant::now();
        let lock = |seconds| {
            let left = Duration::from_secs(seconds);
            Lock { expires: now + left, half_life: left / 2, lost: false }
        };
        assert!(!lock(5).is_lost(now + Duration::from_secs(4)));
        assert!(lock(5).is_lost(now + Duration::from_secs(5)));
        assert!(Lock { lost: true, ..lock(5) }.is_lost(now));
        assert!(!lock(0).is_lost(now), "our clock goes ahead of the queue's");
    }
}
