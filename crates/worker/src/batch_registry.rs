//! Registry of the batches whose jobs we hold: paused ones wait in the queue, cancelled ones end.
//!
//! Every job that is held shares a [`BatchHandle`], so that the path of a call reads memory and
//! never the store. The store is asked when a batch is seen for the first time, and then every
//! [`POLL_INTERVAL`] for all batches of which jobs are held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::allowance::BudgetAllowance;
use super::batch_handle::{BatchDisposition, BatchHandle, POLL_INTERVAL};
use super::budget_sync::BudgetSync;
use super::channels::StageSenders;
use super::command::DispatcherCommand;
use super::failure_watch::FailureWatch;
use super::retry;
use super::settings::Worker;
use domain::job::BatchId;
use domain::mutex::lock;
use domain::prices::Prices;
use store::{Batch, BatchSenders, BatchState, Store, StoreError};

/// Time that a batch without held jobs is remembered.
const IDLE_RETENTION: Duration = Duration::from_secs(60);

/// Delay until the first job of a paused batch is looked at again, and the spacing of the others:
/// soon enough that a resumed batch goes on within seconds, and seldom enough that a paused one
/// costs little, however large it is.
const FIRST_RECHECK_DELAY: Duration = Duration::from_secs(5);
const RECHECK_SPACING: Duration = Duration::from_millis(1);

/// The batches of which this worker holds or lately held jobs.
pub(super) struct BatchRegistry {
    store: Arc<dyn Store>,
    prices: Option<Arc<Prices>>,
    has_siblings: bool,
    max_failure_rate: f64,
    commands: mpsc::Sender<DispatcherCommand>,
    budget_syncs: mpsc::Sender<BudgetSync>,
    /// Cancelled when all calls have ended.
    closed: CancellationToken,
    entries: Mutex<HashMap<BatchId, RegistryEntry>>,
    spread: Mutex<RecheckSchedule>,
    failing: AtomicBool,
}

struct RegistryEntry {
    handle: Arc<BatchHandle>,
    held_at: Instant,
}

impl BatchRegistry {
    pub(super) fn new(worker: &Worker, to: &StageSenders) -> Self {
        Self {
            store: worker.store.clone(),
            prices: worker.settings.prices.clone(),
            has_siblings: worker.settings.shared,
            max_failure_rate: worker.settings.max_failure_rate,
            commands: to.commands.clone(),
            budget_syncs: to.budget_syncs.clone(),
            closed: CancellationToken::new(),
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
        for handle in try_join_all(new.into_iter().map(|id| self.look_up(id))).await? {
            self.start_budget_sync(&handle).await;
            let held_at = Instant::now();
            let entry = RegistryEntry { handle: handle.clone(), held_at };
            self.with(|entries| entries.insert(handle.id().clone(), entry));
            all.insert(handle.id().clone(), handle);
        }
        Ok(all)
    }

    async fn look_up(&self, id: BatchId) -> Result<Arc<BatchHandle>, StoreError> {
        let batch = retry::until_reachable(|| self.announced(&id)).await?;
        let budget = retry::until_reachable(|| self.store.budget(&id)).await?;
        let allowance =
            budget.map(|budget| Arc::new(BudgetAllowance::new(budget, self.prices.clone())));
        let disposition = BatchDisposition::of(&batch);
        let closed = self.closed.child_token();
        let failures = FailureWatch::new(self.max_failure_rate);
        let handle = BatchHandle::new(id, disposition, allowance, closed, failures);
        handle.see_senders(batch.senders);
        Ok(Arc::new(handle))
    }

    /// Returns a batch; announces one that other programs sent without a word, so that all commands
    /// show it.
    async fn announced(&self, id: &BatchId) -> Result<Batch, StoreError> {
        loop {
            match self.store.batch(id).await? {
                Some(batch) if batch.is_counted() || batch.state != BatchState::Done => {
                    return Ok(batch);
                }
                Some(_) => {
                    let from = [BatchState::Done];
                    self.store.change_state(id, &from, BatchState::Running, None).await?;
                }
                None => {
                    let batch = Batch {
                        id: id.clone(),
                        state: BatchState::Running,
                        reason: None,
                        jobs: 0,
                        prompt_tokens: 0,
                        inputs: Vec::new(),
                        senders: BatchSenders::Unknown,
                        created_at: Timestamp::now(),
                    };
                    self.store.create_batch(&batch).await?;
                }
            }
        }
    }

    /// Records that a job of the batch was sent again, so that all workers look out for copies.
    pub(super) async fn add_sender(&self, batch: &BatchHandle) -> Result<(), StoreError> {
        let several = BatchSenders::Several;
        retry::until_reachable(|| self.store.add_senders(batch.id(), several)).await?;
        batch.see_senders(several);
        Ok(())
    }

    async fn start_budget_sync(&self, batch: &Arc<BatchHandle>) {
        let Some(allowance) = batch.allowance() else { return };
        let sync = BudgetSync {
            store: self.store.clone(),
            batch: batch.clone(),
            allowance: allowance.clone(),
            has_siblings: self.has_siblings,
            commands: self.commands.clone(),
            closed: batch.closed().clone(),
        };
        // A closed channel means that the worker is ending, and no call begins any more.
        let _ = self.budget_syncs.send(sync).await;
    }

    /// Has the rest of all budgets returned. Call it when all calls have ended.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// Returns the token that [`close`](Self::close) cancels.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
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
        let held: Vec<_> = self.with(|entries| {
            entries.retain(|_, entry| {
                // Its budget sync shares it too.
                let own = if entry.handle.allowance().is_some() { 2 } else { 1 };
                if Arc::strong_count(&entry.handle) > own {
                    entry.held_at = now;
                }
                let stays = now.saturating_duration_since(entry.held_at) < IDLE_RETENTION;
                if !stays {
                    entry.handle.closed().cancel();
                }
                stays
            });
            entries.values().map(|entry| entry.handle.clone()).collect()
        });
        let look = |batch: Arc<BatchHandle>| async move {
            let Some(document) = self.store.batch(batch.id()).await? else { return Ok(false) };
            batch.see_senders(document.senders);
            let disposition = BatchDisposition::of(&document);
            let changed = batch.set_disposition(disposition);
            if changed {
                info!(batch.id = %batch.id(), ?disposition, "the batch's disposition changed");
            }
            Ok(changed)
        };
        let mut changed = false;
        let mut failed = None;
        for looked in join_all(held.into_iter().map(look)).await {
            match looked {
                Ok(this_changed) => changed |= this_changed,
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
        let mut spread = lock(&self.spread);
        spread.next(Timestamp::now())
    }

    /// Returns whether jobs of a paused batch have come by lately.
    pub(super) fn any_paused(&self) -> bool {
        self.with(|entries| {
            entries.values().any(|e| e.handle.disposition() == BatchDisposition::Park)
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<BatchId, RegistryEntry>) -> T) -> T {
        work(&mut lock(&self.entries))
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
