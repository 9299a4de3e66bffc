//! Registry of the batches whose jobs we hold: paused ones wait in the queue, cancelled ones end.
//!
//! Every job that is held shares a [`BatchHandle`], so that the path of a call reads memory and
//! never the store. The store is asked when a batch is seen for the first time, and then every
//! [`POLL_INTERVAL`] for all batches of which jobs are held.

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

use super::allowance::BudgetAllowance;
use super::budget_sync::BudgetSync;
use super::shares::DispatcherCommand;
use super::{WorkerSettings, record};
use domain::job::BatchId;
use domain::prices::Prices;
use store::{Batch, BatchState, Store, StoreError};

/// Interval of polling the states: paused or cancelled batches go on for so long at the most.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Time that a batch without held jobs is remembered.
const IDLE_RETENTION: Duration = Duration::from_secs(60);

/// Delay until the first job of a paused batch is looked at again, and the spacing of the others:
/// soon enough that a resumed batch goes on within seconds, and seldom enough that a paused one
/// costs little, however large it is.
const FIRST_RECHECK_DELAY: Duration = Duration::from_secs(5);
const RECHECK_SPACING: Duration = Duration::from_millis(1);

/// Time that an unreachable store may delay our end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Treatment of a batch's jobs that are not in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum BatchDisposition {
    Run,
    /// Back to the queue.
    Park,
    /// They end as cancelled.
    Cancel,
}

impl BatchDisposition {
    fn of(batch: Option<&Batch>) -> Self {
        match batch.map(|batch| batch.state) {
            Some(BatchState::Paused) => Self::Park,
            Some(BatchState::Cancelled) => Self::Cancel,
            // Jobs can also be sent by programs that announce no batch.
            Some(BatchState::Enqueuing | BatchState::Running | BatchState::Done) | None => {
                Self::Run
            }
        }
    }
}

/// A batch as this worker knows it.
pub(super) struct BatchHandle {
    id: BatchId,
    disposition: AtomicU8,
    /// `None`: no limit on its cost.
    allowance: Option<Arc<BudgetAllowance>>,
    closed: CancellationToken,
}

impl BatchHandle {
    fn new(id: BatchId, course: BatchDisposition, allowance: Option<Arc<BudgetAllowance>>) -> Self {
        let closed = CancellationToken::new();
        Self { id, disposition: AtomicU8::new(course as u8), allowance, closed }
    }

    pub(super) fn id(&self) -> &BatchId {
        &self.id
    }

    pub(super) fn allowance(&self) -> Option<&Arc<BudgetAllowance>> {
        self.allowance.as_ref()
    }

    /// Returns how its jobs are treated now.
    pub(super) fn disposition(&self) -> BatchDisposition {
        match self.stored_disposition() {
            BatchDisposition::Run
                if self.allowance.as_ref().is_some_and(|purse| purse.is_blocked()) =>
            {
                BatchDisposition::Park
            }
            course => course,
        }
    }

    /// Returns the disposition that the store gave last.
    pub(super) fn stored_disposition(&self) -> BatchDisposition {
        match self.disposition.load(Ordering::Relaxed) {
            0 => BatchDisposition::Run,
            1 => BatchDisposition::Park,
            _ => BatchDisposition::Cancel,
        }
    }

    /// Sets the disposition; returns whether it changed.
    pub(super) fn set_disposition(&self, course: BatchDisposition) -> bool {
        let before = self.disposition.swap(course as u8, Ordering::Relaxed);
        if before != course as u8 && course == BatchDisposition::Run {
            self.allowance.iter().for_each(|purse| purse.reopen());
        }
        before != course as u8
    }
}

/// The batches of which this worker holds or lately held jobs.
pub(super) struct BatchRegistry {
    store: Arc<dyn Store>,
    prices: Option<Arc<Prices>>,
    has_siblings: bool,
    commands: mpsc::Sender<DispatcherCommand>,
    budget_syncs: Mutex<JoinSet<()>>,
    entries: Mutex<HashMap<BatchId, RegistryEntry>>,
    spread: Mutex<RecheckSchedule>,
    failing: AtomicBool,
}

struct RegistryEntry {
    handle: Arc<BatchHandle>,
    held_at: Instant,
}

impl BatchRegistry {
    pub(super) fn new(
        store: Arc<dyn Store>,
        settings: &WorkerSettings,
        commands: mpsc::Sender<DispatcherCommand>,
    ) -> Self {
        Self {
            store,
            prices: settings.prices.clone(),
            has_siblings: settings.shared,
            commands,
            budget_syncs: Mutex::default(),
            entries: Mutex::default(),
            spread: Mutex::default(),
            failing: AtomicBool::new(false),
        }
    }

    /// Returns the handles of these batches; asks the store for those that are new here.
    pub(super) async fn handles_for(
        &self,
        batches: impl Iterator<Item = &BatchId>,
    ) -> Result<HashMap<BatchId, Arc<BatchHandle>>, StoreError> {
        let mut all = HashMap::new();
        let mut new = Vec::new();
        self.with(|entries| {
            for id in batches {
                match entries.get(id) {
                    _ if all.contains_key(id) => {}
                    Some(entry) => drop(all.insert(id.clone(), entry.handle.clone())),
                    None if new.contains(id) => {}
                    None => new.push(id.clone()),
                }
            }
        });
        let look = |id: BatchId| async move {
            let batch = record::retry_until_reachable(|| self.store.batch(&id)).await?;
            let budget = record::retry_until_reachable(|| self.store.budget(&id)).await?;
            let purse =
                budget.map(|budget| Arc::new(BudgetAllowance::new(budget, self.prices.clone())));
            Ok::<_, StoreError>(Arc::new(BatchHandle::new(
                id,
                BatchDisposition::of(batch.as_ref()),
                purse,
            )))
        };
        for known in try_join_all(new.into_iter().map(look)).await? {
            self.spawn_budget_sync(&known);
            let held_at = Instant::now();
            let entry = RegistryEntry { handle: known.clone(), held_at };
            self.with(|entries| entries.insert(known.id.clone(), entry));
            all.insert(known.id.clone(), known);
        }
        Ok(all)
    }

    fn spawn_budget_sync(&self, known: &Arc<BatchHandle>) {
        let Some(purse) = known.allowance() else { return };
        let treasury = BudgetSync {
            store: self.store.clone(),
            batch: known.clone(),
            allowance: purse.clone(),
            has_siblings: self.has_siblings,
            commands: self.commands.clone(),
        };
        let mut treasuries = self.budget_syncs.lock().unwrap_or_else(PoisonError::into_inner);
        while treasuries.try_join_next().is_some() {}
        treasuries.spawn(treasury.run(known.closed.clone()));
    }

    /// Returns the rest of all budgets. Call it when all calls have ended.
    pub(super) async fn close(&self) {
        self.with(|entries| entries.drain().for_each(|(_, entry)| entry.handle.closed.cancel()));
        let treasuries = {
            let mut treasuries = self.budget_syncs.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *treasuries)
        };
        // Nobody is left who could send commands; a full channel must not keep them.
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, treasuries.join_all()).await.is_err() {
            warn!("the store can't be reached: the rest of budgets stays committed");
        }
    }

    /// Polls the states until stopped, and notifies the dispatcher of changes.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut look = tokio::time::interval(POLL_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let watching = async {
            loop {
                look.tick().await;
                if self.refresh().await
                    && self.commands.send(DispatcherCommand::Recheck).await.is_err()
                {
                    return;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = watching => {}
        }
    }

    /// Returns whether the disposition of any batch changed.
    async fn refresh(&self) -> bool {
        let now = Instant::now();
        let known: Vec<_> = self.with(|entries| {
            entries.retain(|_, entry| {
                // Its budget sync shares it too.
                let own = if entry.handle.allowance.is_some() { 2 } else { 1 };
                if Arc::strong_count(&entry.handle) > own {
                    entry.held_at = now;
                }
                let stays = now.saturating_duration_since(entry.held_at) < IDLE_RETENTION;
                if !stays {
                    entry.handle.closed.cancel();
                }
                stays
            });
            entries.values().map(|entry| entry.handle.clone()).collect()
        });
        let look = |known: Arc<BatchHandle>| async move {
            Ok(match BatchDisposition::of(self.store.batch(&known.id).await?.as_ref()) {
                course if known.set_disposition(course) => {
                    info!(batch.id = %known.id, ?course, "the batch's disposition changed");
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

    /// Returns when to look at a waiting job again.
    pub(super) fn next_recheck_at(&self) -> Timestamp {
        let mut spread = self.spread.lock().unwrap_or_else(PoisonError::into_inner);
        spread.next(Timestamp::now())
    }

    /// Returns whether jobs of a paused batch have come by lately.
    pub(super) fn any_paused(&self) -> bool {
        self.with(|entries| {
            entries.values().any(|e| e.handle.disposition() == BatchDisposition::Park)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<BatchId, RegistryEntry>) -> T) -> T {
        work(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Spreads the times at which waiting jobs come back, one after the other.
#[derive(Default)]
struct RecheckSchedule(Timestamp);

impl RecheckSchedule {
    fn next(&mut self, now: Timestamp) -> Timestamp {
        self.0 = (self.0 + RECHECK_SPACING).max(now + FIRST_RECHECK_DELAY);
        self.0
    }
}

/// Returns the paused batches, if only they are left: every other batch's jobs have all ended.
pub(super) async fn only_paused(store: &dyn Store) -> Result<Option<Vec<BatchId>>, StoreError> {
    let mut open = store.batches().await?;
    open.retain(|batch| batch.state != BatchState::Done);
    // Batches that could say no come first: counting may cost much.
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

/// Returns those of them that are paused.
pub(super) fn paused_ids(batches: Vec<Batch>) -> Vec<BatchId> {
    let paused = batches.into_iter().filter(|batch| batch.state == BatchState::Paused);
    paused.map(|batch| batch.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_jobs_come_back_soon_and_never_all_at_once() {
        let mut spread = RecheckSchedule::default();
        let now: Timestamp = "2026-11-23T16:00:00Z".parse().unwrap();
        let times: Vec<_> = (0..100_000).map(|_| spread.next(now)).collect();
        assert_eq!(times[0], now + FIRST_RECHECK_DELAY);
        assert!(times.windows(2).all(|pair| pair[1] == pair[0] + RECHECK_SPACING));
        let later = now + Duration::from_secs(1_000);
        assert_eq!(spread.next(later), later + FIRST_RECHECK_DELAY, "what is past does not count");
    }
}
