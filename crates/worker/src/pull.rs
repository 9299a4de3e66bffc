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

use super::back::{self, Back};
use super::held::{Held, Locks, until};
use super::hold::Hold;
use super::postpone::Postponed;
use super::record::{self, Finished};
use super::states::{self, Course, Known, States};
use super::{Settings, WorkerError, retry};
use domain::job::{BatchId, Estimate};
use queue::{Delivery, Queue, QueueError};
use store::Store;

/// How long one receive waits; a stop does not wait for it.
const RECEIVE_WAIT: Duration = Duration::from_secs(10);

/// While draining, how soon we look again whether the queue is empty for good.
const DRAIN_WAIT: Duration = Duration::from_millis(100);

/// Where counting can't tell that only paused jobs are left: after so long without others, they are.
const QUIET: Duration = Duration::from_secs(60);

pub(super) struct Puller {
    pub(super) queue: Arc<dyn Queue>,
    pub(super) store: Arc<dyn Store>,
    pub(super) locks: Arc<Locks>,
    pub(super) states: Arc<States>,
    pub(super) hold: Hold,
    pub(super) settings: Settings,
    pub(super) to_admission: mpsc::Sender<Vec<Held>>,
    pub(super) to_postpone: mpsc::Sender<Postponed>,
    pub(super) to_record: mpsc::Sender<Box<Finished>>,
    /// Since when nothing has come but jobs of paused batches, and when to ask next whether there
    /// is anything else.
    pub(super) only_waits_since: Option<(Instant, Instant)>,
}

/// How pulling ended.
pub(super) enum Pulled {
    /// By a stop, or with an empty queue.
    Ended,
    /// Only jobs of these batches are left.
    Paused(Vec<BatchId>),
}

impl Puller {
    /// Pulls until stopped, or, when draining, until nothing is left to do and all is settled.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<Pulled, WorkerError> {
        let mut failures = 0;
        loop {
            let room = tokio::select! {
                () = stop.cancelled() => return Ok(Pulled::Ended),
                room = self.hold.places() => room,
            };
            let Some(room) = room else { return Ok(Pulled::Ended) };
            let is_draining = self.settings.drain.is_some();
            let wait = if is_draining { DRAIN_WAIT } else { RECEIVE_WAIT };
            let received = tokio::select! {
                () = stop.cancelled() => return Ok(Pulled::Ended),
                received = self.queue.receive(room.num_permits(), wait) => received,
            };
            match received {
                Ok(deliveries) => {
                    failures = 0;
                    let named = deliveries.iter().map(|delivery| &delivery.job.batch_id);
                    let batches = tokio::select! {
                        () = stop.cancelled() => None,
                        batches = self.states.of(named) => Some(batches?),
                    };
                    let Some(batches) = batches else {
                        let back = deliveries.into_iter().map(Back::from).collect();
                        let max_deliveries = self.settings.max_deliveries;
                        back::give_back(self.queue.as_ref(), back, max_deliveries).await;
                        return Ok(Pulled::Ended);
                    };
                    let found_work = self.pass_on(deliveries, &batches, room).await?;
                    if found_work {
                        self.only_waits_since = None;
                    } else if self.settings.drain.as_ref().is_some_and(|fed| fed.is_cancelled())
                        && let Some(end) = self.end().await?
                    {
                        return Ok(end);
                    }
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

    /// Whether nothing is left to do; first waits until all that we hold is settled.
    async fn end(&mut self) -> Result<Option<Pulled>, WorkerError> {
        // Retries and scheduled jobs come due meanwhile, so the wait is short and asked again.
        if tokio::time::timeout(DRAIN_WAIT, self.hold.nothing()).await.is_err() {
            return Ok(None);
        }
        match self.queue.depth().await {
            Ok(depth) if depth.pending() == 0 => Ok(Some(Pulled::Ended)),
            Ok(_) if self.states.any_waits() => self.only_paused().await,
            Ok(_) => Ok(None),
            Err(QueueError::Unavailable(error)) => {
                warn!(%error, "can't tell whether the queue is empty; asking again");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether only jobs of paused batches are left. Where the counts can't tell (an enqueue was
    /// interrupted), time does.
    async fn only_paused(&mut self) -> Result<Option<Pulled>, WorkerError> {
        let now = Instant::now();
        let (since, ask_at) = *self.only_waits_since.get_or_insert((now, now));
        if now < ask_at {
            return Ok(None);
        }
        let left = match &self.settings.only {
            Some(batch) => {
                let batch = record::until_reached(|| self.store.batch(batch)).await?;
                Some(states::paused(batch.into_iter().collect()))
            }
            None => {
                let all_else_ended = || states::only_paused(self.store.as_ref());
                match record::until_reached(all_else_ended).await? {
                    None if now >= since + QUIET => {
                        let batches = record::until_reached(|| self.store.batches()).await?;
                        Some(states::paused(batches))
                    }
                    left => left,
                }
            }
        };
        // Counting may cost much, and more the longer it takes.
        self.only_waits_since = Some((since, Instant::now() + now.elapsed() * 10 + DRAIN_WAIT));
        Ok(left.filter(|paused| !paused.is_empty()).map(Pulled::Paused))
    }

    /// Returns whether there was anything but jobs of paused batches.
    async fn pass_on(
        &mut self,
        deliveries: Vec<Delivery>,
        batches: &HashMap<BatchId, Arc<Known>>,
        mut room: OwnedSemaphorePermit,
    ) -> Result<bool, WorkerError> {
        let Some(first) = deliveries.first() else { return Ok(false) };
        self.hold.follow(until(first.locked_until), Instant::now());
        let hold = |delivery: Delivery| {
            let place = room.split(1).expect("no more is received than there is room for");
            let estimate = estimate_of(&delivery);
            let batch = batches[&delivery.job.batch_id].clone();
            self.locks.hold(delivery, batch, estimate, place)
        };
        let held: Vec<Held> = deliveries.into_iter().map(hold).collect();
        let received = held.len();
        let (go, stay): (Vec<_>, Vec<_>) =
            held.into_iter().partition(|held| held.batch.course() == Course::Go);
        let waiting = self.turn_back(stay).await;
        let (again, mut fresh): (Vec<_>, Vec<_>) =
            go.into_iter().partition(|held| held.delivery.count > 1 || held.delivery.job.look_up);
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
        Ok(waiting < received)
    }

    /// Sends away the jobs of batches that may not go; returns how many of them wait.
    async fn turn_back(&self, jobs: Vec<Held>) -> usize {
        let mut waiting = 0;
        for held in jobs {
            // Closed channels mean that the worker is ending; the locks run out by themselves.
            if held.batch.course() == Course::End {
                let _ = self.to_record.send(Finished::cancelled(held)).await;
            } else {
                waiting += 1;
                let postponed = Postponed::of_paused(held, self.states.again());
                let _ = self.to_postpone.send(postponed).await;
            }
        }
        waiting
    }

    /// Settles the redeliveries whose outcome is known; returns the others.
    async fn settle_known(&self, again: Vec<Held>) -> Result<Vec<Held>, WorkerError> {
        let mut by_batch: HashMap<BatchId, Vec<Held>> = HashMap::new();
        for held in again {
            by_batch.entry(held.delivery.job.batch_id.clone()).or_default().push(held);
        }
        let mut unknown = Vec::new();
        for (batch, held) in by_batch {
            let names: Vec<_> =
                held.iter().map(|held| held.delivery.job.custom_id.as_str()).collect();
            let known = record::until_reached(|| self.store.look_up(&batch, &names)).await?;
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

fn estimate_of(delivery: &Delivery) -> Estimate {
    let job = &delivery.job;
    job.estimate.unwrap_or_else(|| tokens::estimate(job.api, &job.model, &job.amended_body()))
}
