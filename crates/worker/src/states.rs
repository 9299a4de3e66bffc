//! Which batches may go: paused ones wait in the queue, cancelled ones end.
//!
//! Every job that is held has a share in a [`Known`], so that the way of a call asks one atomic number
//! and never the store. The store is asked when a batch is seen for the first time, and then every
//! [`LOOK`] for all batches of which something is held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::purse::Purse;
use super::shares::Order;
use super::treasury::Treasury;
use super::{Settings, record};
use domain::job::BatchId;
use domain::prices::Prices;
use store::{Batch, BatchState, Store, StoreError};

/// How often the states are looked at: what is paused or cancelled goes on for so long at the most.
const LOOK: Duration = Duration::from_secs(2);

/// How long a batch is remembered of which nothing is held.
const REMEMBER: Duration = Duration::from_secs(60);

/// When the first job of a paused batch is looked at again, and how far apart the others are: soon
/// enough that a resumed batch goes on within seconds, and seldom enough that a paused one costs
/// little, however large it is.
const AGAIN: Duration = Duration::from_secs(5);
const APART: Duration = Duration::from_millis(1);

/// How long a store that is away may keep us from ending.
const GOODBYE: Duration = Duration::from_secs(5);

/// What becomes of a batch's jobs that are not in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Course {
    Go,
    /// Back to the queue.
    Wait,
    /// They end as cancelled.
    End,
}

impl Course {
    fn of(batch: Option<&Batch>) -> Self {
        match batch.map(|batch| batch.state) {
            Some(BatchState::Paused) => Self::Wait,
            Some(BatchState::Cancelled) => Self::End,
            // Jobs can also be sent by programs that announce no batch.
            Some(BatchState::Enqueuing | BatchState::Running | BatchState::Done) | None => Self::Go,
        }
    }
}

/// A batch as this worker knows it.
pub(super) struct Known {
    id: BatchId,
    course: AtomicU8,
    /// None: it may cost whatever it costs.
    purse: Option<Arc<Purse>>,
    closed: CancellationToken,
}

impl Known {
    fn new(id: BatchId, course: Course, purse: Option<Arc<Purse>>) -> Self {
        let closed = CancellationToken::new();
        Self { id, course: AtomicU8::new(course as u8), purse, closed }
    }

    pub(super) fn id(&self) -> &BatchId {
        &self.id
    }

    pub(super) fn purse(&self) -> Option<&Arc<Purse>> {
        self.purse.as_ref()
    }

    /// What becomes of its jobs now.
    pub(super) fn course(&self) -> Course {
        match self.stored_course() {
            Course::Go if self.purse.as_ref().is_some_and(|purse| purse.is_shut()) => Course::Wait,
            course => course,
        }
    }

    /// What the store said last.
    pub(super) fn stored_course(&self) -> Course {
        match self.course.load(Ordering::Relaxed) {
            0 => Course::Go,
            1 => Course::Wait,
            _ => Course::End,
        }
    }

    /// Returns whether that is another one.
    pub(super) fn set(&self, course: Course) -> bool {
        let before = self.course.swap(course as u8, Ordering::Relaxed);
        if before != course as u8 && course == Course::Go {
            self.purse.iter().for_each(|purse| purse.reopen());
        }
        before != course as u8
    }
}

/// The batches of which this worker holds or lately held jobs.
pub(super) struct States {
    store: Arc<dyn Store>,
    prices: Option<Arc<Prices>>,
    has_siblings: bool,
    orders: mpsc::Sender<Order>,
    treasuries: Mutex<JoinSet<()>>,
    known: Mutex<HashMap<BatchId, Entry>>,
    spread: Mutex<Spread>,
    failing: AtomicBool,
}

struct Entry {
    known: Arc<Known>,
    held_at: Instant,
}

impl States {
    pub(super) fn new(
        store: Arc<dyn Store>,
        settings: &Settings,
        orders: mpsc::Sender<Order>,
    ) -> Self {
        Self {
            store,
            prices: settings.prices.clone(),
            has_siblings: settings.shared,
            orders,
            treasuries: Mutex::default(),
            known: Mutex::default(),
            spread: Mutex::default(),
            failing: AtomicBool::new(false),
        }
    }

    /// What is known of these batches; of those that are new here, the store is asked.
    pub(super) async fn of(
        &self,
        batches: impl Iterator<Item = &BatchId>,
    ) -> Result<HashMap<BatchId, Arc<Known>>, StoreError> {
        let mut all = HashMap::new();
        let mut new = Vec::new();
        self.with(|entries| {
            for id in batches {
                match entries.get(id) {
                    _ if all.contains_key(id) => {}
                    Some(entry) => drop(all.insert(id.clone(), entry.known.clone())),
                    None if new.contains(id) => {}
                    None => new.push(id.clone()),
                }
            }
        });
        let look = |id: BatchId| async move {
            let batch = record::until_reached(|| self.store.batch(&id)).await?;
            let budget = record::until_reached(|| self.store.budget(&id)).await?;
            let purse = budget.map(|budget| Arc::new(Purse::new(budget, self.prices.clone())));
            Ok::<_, StoreError>(Arc::new(Known::new(id, Course::of(batch.as_ref()), purse)))
        };
        for known in try_join_all(new.into_iter().map(look)).await? {
            self.keep(&known);
            let held_at = Instant::now();
            let entry = Entry { known: known.clone(), held_at };
            self.with(|entries| entries.insert(known.id.clone(), entry));
            all.insert(known.id.clone(), known);
        }
        Ok(all)
    }

    fn keep(&self, known: &Arc<Known>) {
        let Some(purse) = known.purse() else { return };
        let treasury = Treasury {
            store: self.store.clone(),
            known: known.clone(),
            purse: purse.clone(),
            has_siblings: self.has_siblings,
            orders: self.orders.clone(),
        };
        let mut treasuries = self.treasuries.lock().unwrap_or_else(PoisonError::into_inner);
        while treasuries.try_join_next().is_some() {}
        treasuries.spawn(treasury.keep(known.closed.clone()));
    }

    /// To be called when all calls have ended: what is left of budgets is given back.
    pub(super) async fn close(&self) {
        self.with(|entries| entries.drain().for_each(|(_, entry)| entry.known.closed.cancel()));
        let treasuries = {
            let mut treasuries = self.treasuries.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *treasuries)
        };
        // Nobody is left who could order; a full channel must not keep them.
        if tokio::time::timeout(GOODBYE, treasuries.join_all()).await.is_err() {
            warn!("the store is away: what is left of budgets stays committed");
        }
    }

    /// Looks at the states until stopped, and tells the conductor when one is another.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let watching = async {
            loop {
                look.tick().await;
                if self.look().await && self.orders.send(Order::Recheck).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = watching => {}
        }
    }

    /// Returns whether any batch has another course than before.
    async fn look(&self) -> bool {
        let now = Instant::now();
        let known: Vec<_> = self.with(|entries| {
            entries.retain(|_, entry| {
                // Its treasury has a share in it too.
                let own = if entry.known.purse.is_some() { 2 } else { 1 };
                if Arc::strong_count(&entry.known) > own {
                    entry.held_at = now;
                }
                let stays = now.saturating_duration_since(entry.held_at) < REMEMBER;
                if !stays {
                    entry.known.closed.cancel();
                }
                stays
            });
            entries.values().map(|entry| entry.known.clone()).collect()
        });
        let look = |known: Arc<Known>| async move {
            Ok(match Course::of(self.store.batch(&known.id).await?.as_ref()) {
                course if known.set(course) => {
                    info!(batch.id = %known.id, ?course, "the batch takes another course");
                    true
                }
                _ => false,
            })
        };
        let mut changed = false;
        let mut failed = None;
        for looked in join_all(known.into_iter().map(look)).await {
            match looked {
                Ok(another) => changed |= another,
                Err(error) => failed = Some::<StoreError>(error),
            }
        }
        let failed_before = self.failing.swap(failed.is_some(), Ordering::Relaxed);
        if let (Some(error), false) = (failed, failed_before) {
            warn!(%error, "can't see whether batches were paused or cancelled; they go on");
        }
        changed
    }

    /// When a job that waits is to be looked at again.
    pub(super) fn again(&self) -> Timestamp {
        let mut spread = self.spread.lock().unwrap_or_else(PoisonError::into_inner);
        spread.next(Timestamp::now())
    }

    /// Whether jobs of a paused batch have come by lately.
    pub(super) fn any_waits(&self) -> bool {
        self.with(|entries| entries.values().any(|e| e.known.course() == Course::Wait))
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<BatchId, Entry>) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Gives out the times at which waiting jobs come back, one after the other.
#[derive(Default)]
struct Spread(Timestamp);

impl Spread {
    fn next(&mut self, now: Timestamp) -> Timestamp {
        self.0 = (self.0 + APART).max(now + AGAIN);
        self.0
    }
}

/// The batches that are paused, if nothing else is left to do: every other batch's jobs have all ended.
pub(super) async fn only_paused(store: &dyn Store) -> Result<Option<Vec<BatchId>>, StoreError> {
    let mut open = store.batches().await?;
    open.retain(|batch| batch.state != BatchState::Done);
    // Those that could say no come first: counting may cost much.
    open.sort_by_key(|batch| batch.state == BatchState::Paused);
    let mut left = Vec::new();
    for batch in open {
        if store.totals(&batch.id).await?.ended() >= batch.jobs {
            continue;
        }
        if batch.state != BatchState::Paused {
            return Ok(None);
        }
        left.push(batch.id);
    }
    Ok(Some(left))
}

/// Those of them that are paused.
pub(super) fn paused(batches: Vec<Batch>) -> Vec<BatchId> {
    let paused = batches.into_iter().filter(|batch| batch.state == BatchState::Paused);
    paused.map(|batch| batch.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_jobs_come_back_soon_and_never_all_at_once() {
        let mut spread = Spread::default();
        let now: Timestamp = "2026-11-23T16:00:00Z".parse().unwrap();
        let times: Vec<_> = (0..100_000).map(|_| spread.next(now)).collect();
        assert_eq!(times[0], now + AGAIN);
        assert!(times.windows(2).all(|pair| pair[1] == pair[0] + APART));
        let later = now + Duration::from_secs(1_000);
        assert_eq!(spread.next(later), later + AGAIN, "what is past does not count");
    }
}
