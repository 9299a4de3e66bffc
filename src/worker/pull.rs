//! Takes from the queue no more than there is room for, and looks redeliveries up before anybody
//! calls for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::random;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::held::{Held, Locks, until};
use super::hold::Hold;
use super::record::{self, Finished};
use super::{Settings, WorkerError, retry};
use crate::admission::charge;
use crate::job::BatchId;
use crate::queue::{Delivery, Queue, QueueError};
use crate::store::Store;

/// How long one receive waits; a stop does not wait for it.
const RECEIVE_WAIT: Duration = Duration::from_secs(10);

/// While draining, how soon we look again whether the queue is empty for good.
const DRAIN_WAIT: Duration = Duration::from_millis(100);

pub(super) struct Puller {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn Store>,
    pub(super) locks: Arc<Locks>,
    pub(super) hold: Hold,
    pub(super) settings: Settings,
    pub(super) to_admission: mpsc::Sender<Vec<Held>>,
    pub(super) to_record: mpsc::Sender<Finished>,
}

impl Puller {
    /// Pulls until stopped, or, when draining, until the queue is empty and all is settled.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), WorkerError> {
        let mut failures = 0;
        loop {
            let room = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                room = self.hold.places() => room,
            };
            let Some(room) = room else { return Ok(()) };
            let wait = if self.settings.drain { DRAIN_WAIT } else { RECEIVE_WAIT };
            let received = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                received = self.queue.receive(room.num_permits(), wait) => received,
            };
            match received {
                Ok(deliveries) if deliveries.is_empty() => {
                    drop(room);
                    if self.settings.drain && self.is_drained().await? {
                        return Ok(());
                    }
                }
                Ok(deliveries) => {
                    failures = 0;
                    let lock = deliveries.first().map(|delivery| until(delivery.locked_until));
                    self.hold.follow(lock.unwrap_or_default(), Instant::now());
                    self.pass_on(deliveries, room).await?;
                }
                Err(QueueError::Unavailable(error)) => {
                    failures += 1;
                    let pause = retry::delay(failures, None, random());
                    warn!(%error, ?pause, "the queue can't be reached; trying again");
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether nothing is left in the queue; first waits until all that we hold is settled.
    async fn is_drained(&self) -> Result<bool, WorkerError> {
        // Retries and scheduled jobs come due meanwhile, so the wait is short and asked again.
        match tokio::time::timeout(DRAIN_WAIT, self.hold.nothing()).await {
            Ok(()) => match self.queue.depth().await {
                Ok(depth) => Ok(depth.pending() == 0),
                Err(QueueError::Unavailable(error)) => {
                    warn!(%error, "can't tell whether the queue is empty; asking again");
                    Ok(false)
                }
                Err(error) => Err(error.into()),
            },
            Err(_) => Ok(false),
        }
    }

    async fn pass_on(
        &self,
        deliveries: Vec<Delivery>,
        mut room: OwnedSemaphorePermit,
    ) -> Result<(), WorkerError> {
        let hold = |delivery: Delivery| {
            let place = room.split(1).expect("no more is received than there is room for");
            let charge = charge_of(&delivery);
            self.locks.hold(delivery, charge, place)
        };
        let held: Vec<Held> = deliveries.into_iter().map(hold).collect();
        let (again, mut fresh): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|held| held.delivery.count > 1 || held.delivery.job.look_up);
        for held in self.settle_known(again).await? {
            if held.delivery.count >= self.settings.max_deliveries {
                self.give_up(held).await;
            } else {
                fresh.push(held);
            }
        }
        if !fresh.is_empty() {
            // A closed channel means that the worker is ending; the locks run out by themselves.
            let _ = self.to_admission.send(fresh).await;
        }
        Ok(())
    }

    /// Settles the redeliveries whose outcome is known; returns the others.
    async fn settle_known(&self, again: Vec<Held>) -> Result<Vec<Held>, WorkerError> {
        let mut by_batch: HashMap<BatchId, Vec<Held>> = HashMap::new();
        for held in again {
            by_batch.entry(held.delivery.job.batch_id.clone()).or_default().push(held);
        }
        let mut unknown = Vec::new();
        for (batch, held) in by_batch {
            let ids: Vec<_> = held.iter().map(|held| held.delivery.job.id).collect();
            let known = record::until_reached(|| self.store.look_up(&batch, &ids)).await?;
            let mut settlements = Vec::new();
            let mut done = Vec::new();
            let mut places = Vec::new();
            for (held, known) in held.into_iter().zip(known) {
                match known {
                    Some(proof) => {
                        done.extend(record::done_with(&held.delivery, proof));
                        settlements.push(record::settlement(held.delivery, proof, None));
                        places.push(held.place);
                    }
                    None => unknown.push(held),
                }
            }
            debug!(batch.id = %batch, known = settlements.len(), "looked redeliveries up");
            record::delete_payloads(self.store.as_ref(), done).await;
            if let Err(error) = self.queue.settle(settlements).await {
                // They come again, and are looked up again.
                warn!(%error, "could not settle redeliveries that have an outcome");
            }
        }
        Ok(unknown)
    }

    /// Ends a job that was handed out again and again: most likely it takes its workers down.
    async fn give_up(&self, held: Held) {
        let description = format!(
            "handed out {} times without an outcome: its workers died or lost their locks",
            held.delivery.count
        );
        let finished = Finished::dead(held, "MaxDeliveryCountExceeded", description);
        let _ = self.to_record.send(finished).await;
    }
}

fn charge_of(delivery: &Delivery) -> u64 {
    let job = &delivery.job;
    let estimate =
        job.estimate.unwrap_or_else(|| charge::estimate(job.api, &job.model, &job.amended_body()));
    estimate.charge()
}
