//! Keeps a batch's allowance in step with its budget: claims what calls need, returns the surplus,
//! and pauses the batch when nothing is left.
//!
//! A refusal is not the end: calls under way cost less than was reserved for them. So first our own
//! calls end and we return what they left; then we wait for the siblings', as long as the budget
//! still moves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::allowance::BudgetAllowance;
use super::batch_handle::{BatchDisposition, BatchHandle};
use super::command::DispatcherCommand;
use super::exit::WorkerError;
use domain::budget::{Budget, BudgetClaim};
use store::{BatchState, Store, StoreError};

/// Interval at which an allowance is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Checks between returns of the surplus.
const CHECKS_PER_SURPLUS: u32 = 4;

/// Divisor of the whole budget that limits one claim beside siblings.
const MAX_CLAIM_DIVISOR: u64 = 50;

/// Time to wait for the siblings while nothing moves. A killed one returns nothing.
const SIBLING_WAIT: Duration = Duration::from_secs(20);

/// Time that an unreachable store may delay our end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct BudgetSync {
    pub(super) store: Arc<dyn Store>,
    pub(super) batch: Arc<BatchHandle>,
    pub(super) allowance: Arc<BudgetAllowance>,
    pub(super) has_siblings: bool,
    pub(super) commands: mpsc::Sender<DispatcherCommand>,
    /// Cancelled when no call of the batch is left.
    pub(super) closed: CancellationToken,
}

/// Runs the budget syncs of all batches until the worker has no more calls; then all of them return
/// what is left.
pub(super) async fn run_all(
    mut started: mpsc::Receiver<BudgetSync>,
    closed: CancellationToken,
) -> Result<(), WorkerError> {
    let mut syncs = JoinSet::new();
    let mut result = Ok(());
    while result.is_ok() && !closed.is_cancelled() {
        tokio::select! {
            () = closed.cancelled() => {}
            Some(sync) = started.recv() => drop(syncs.spawn(sync.run())),
            Some(ended) = syncs.join_next() => result = ended,
        }
    }
    let joined = timeout(SHUTDOWN_TIMEOUT, async {
        while let (Ok(()), Some(ended)) = (&result, syncs.join_next().await) {
            result = ended;
        }
    });
    if joined.await.is_err() {
        warn!("the store can't be reached: the rest of budgets stays committed");
    }
    syncs.shutdown().await;
    result.map_err(|_| WorkerError::Panicked)
}

/// Budget as it was when it moved last.
struct BudgetStall {
    since: Instant,
    committed: u64,
    spent: u64,
}

impl BudgetSync {
    /// Keeps the allowance until it is closed; then returns everything.
    async fn run(self) {
        let mut looks = tokio::time::interval(CHECK_INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut count, mut still) = (0_u32, None);
        loop {
            let is_look = tokio::select! {
                () = self.closed.cancelled() => break,
                () = self.allowance.sync_needed.notified() => false,
                _ = looks.tick() => true,
            };
            if is_look {
                self.allowance.ledger().measure_rate();
                count += 1;
            }
            let done =
                self.step(is_look && count.is_multiple_of(CHECKS_PER_SURPLUS), &mut still).await;
            if let Err(error) = done {
                warn!(%error, batch.id = %self.batch.id(), "can't reach the budget; trying again");
                let _ = self.closed.run_until_cancelled(sleep(CHECK_INTERVAL)).await;
            }
        }
        if let Err(error) = self.return_all().await {
            warn!(%error, batch.id = %self.batch.id(), "could not return the rest of a budget");
        }
    }

    async fn step(
        &self,
        is_idle_look: bool,
        still: &mut Option<BudgetStall>,
    ) -> Result<(), StoreError> {
        self.pay_debts().await?;
        if self.batch.stored_disposition() != BatchDisposition::Run {
            // It is paused already, by whomever; its jobs are on their way back.
            let is_under_way = self.allowance.ledger().calls > 0;
            return if is_under_way { Ok(()) } else { self.return_all().await };
        }
        let broken = self.allowance.ledger().unusable_reason.clone();
        if let Some(why) = broken {
            return self.pause(&why).await;
        }
        if self.allowance.ledger().refused.is_some() {
            return self.retry_claim(still).await;
        }
        *still = None;
        let part = if self.has_siblings { MAX_CLAIM_DIVISOR } else { 1 };
        let shortage = self.allowance.ledger().shortage(part);
        if shortage > 0 {
            return self.replenish(shortage).await;
        }
        if is_idle_look {
            let surplus = self.allowance.ledger().surplus();
            self.return_surplus(surplus).await?;
        }
        Ok(())
    }

    /// Commits the amount spent beyond the reservations, granted in any case.
    async fn pay_debts(&self) -> Result<(), StoreError> {
        let debt = match self.allowance.ledger().balance {
            balance @ ..0 => balance.unsigned_abs(),
            0.. => return Ok(()),
        };
        self.claim(signed(debt), true).await.map(drop)
    }

    /// Claims so much, or what is left if that is enough for a call.
    async fn replenish(&self, shortage: u64) -> Result<(), StoreError> {
        if self.claim(signed(shortage), false).await? {
            return Ok(());
        }
        let Some(need) = self.allowance.ledger().next_need() else { return Ok(()) };
        if self.claim_remaining(need).await? {
            return Ok(());
        }
        self.allowance.ledger().refused = Some(need);
        self.allowance.sync_needed.notify_one();
        Ok(())
    }

    async fn claim_remaining(&self, need: u64) -> Result<bool, StoreError> {
        let (left, has) = {
            let book = self.allowance.ledger();
            (book.budget.unclaimed(), u64::try_from(book.balance).unwrap_or(0))
        };
        let missing = need.saturating_sub(has);
        if missing == 0 {
            self.allowance.wake_waiters();
            return Ok(true);
        }
        let all = if self.has_siblings { missing.max(left / 2) } else { left };
        Ok(left >= missing && self.claim(signed(all), false).await?)
    }

    /// Retries a refused claim, whenever something may have been returned.
    async fn retry_claim(&self, still: &mut Option<BudgetStall>) -> Result<(), StoreError> {
        let (need, is_under_way) = {
            let book = self.allowance.ledger();
            (book.refused.unwrap_or(0), book.calls > 0)
        };
        if !is_under_way {
            self.return_all().await?;
        } else if self.allowance.ledger().balance >= signed(need) {
            self.resume();
            return Ok(());
        }
        let Some(budget) = self.store.budget(self.batch.id()).await? else { return Ok(()) };
        self.allowance.ledger().budget = budget.clone();
        if self.claim_remaining(need).await? {
            self.resume();
            return Ok(());
        }
        if is_under_way {
            return Ok(());
        }
        self.mark_exhausted().await;
        let moved = still
            .as_ref()
            .is_none_or(|still| (still.committed, still.spent) != (budget.committed, budget.spent));
        if moved {
            let Budget { committed, spent, .. } = budget;
            *still = Some(BudgetStall { since: Instant::now(), committed, spent });
        }
        let others = budget.committed.saturating_sub(budget.spent);
        let is_over = need > budget.allowed
            || others == 0
            || still.as_ref().is_some_and(|still| still.since.elapsed() >= SIBLING_WAIT);
        if is_over { self.pause(&budget.exhausted_reason(need)).await } else { Ok(()) }
    }

    fn resume(&self) {
        let mut book = self.allowance.ledger();
        (book.refused, book.is_exhausted) = (None, false);
        drop(book);
        self.allowance.wake_waiters();
    }

    /// Sends jobs back to the queue, so that other batches get their slots.
    async fn mark_exhausted(&self) {
        let starved_before = std::mem::replace(&mut self.allowance.ledger().is_exhausted, true);
        if !starved_before {
            self.allowance.wake_waiters();
            let _ = self.commands.send(DispatcherCommand::Recheck).await;
        }
    }

    async fn pause(&self, why: &str) -> Result<(), StoreError> {
        let from = [BatchState::Enqueuing, BatchState::Running];
        let id = self.batch.id();
        self.store.change_state(id, &from, BatchState::Paused, Some(why)).await?;
        if self.batch.set_disposition(BatchDisposition::Park) {
            info!(batch.id = %id, why, "the batch is paused");
        }
        self.allowance.wake_waiters();
        let _ = self.commands.send(DispatcherCommand::Recheck).await;
        Ok(())
    }

    async fn return_surplus(&self, surplus: u64) -> Result<(), StoreError> {
        let has_news = self.allowance.ledger().spent > 0;
        if surplus > 0 || has_news {
            self.claim(-signed(surplus), false).await?;
        }
        Ok(())
    }

    async fn return_all(&self) -> Result<(), StoreError> {
        self.pay_debts().await?;
        let balance = self.allowance.ledger().balance;
        self.return_surplus(u64::try_from(balance).unwrap_or(0)).await
    }

    /// Claims; a returned amount leaves the allowance first, and stays out if the reply is lost.
    async fn claim(&self, take: i64, is_debt: bool) -> Result<bool, StoreError> {
        let (take, spent) = {
            let mut book = self.allowance.ledger();
            let take = if take < 0 { -book.withdraw(take.unsigned_abs()) } else { take };
            (take, std::mem::take(&mut book.spent))
        };
        let claim = BudgetClaim { take, spent, is_debt };
        let claimed = self.store.claim(self.batch.id(), &claim).await?;
        let mut book = self.allowance.ledger();
        let granted = match claimed {
            Some((granted, budget)) => {
                book.budget = budget;
                granted
            }
            // Somebody deleted it: there is no limit to keep.
            None => true,
        };
        if granted {
            book.balance += take.max(0);
        } else {
            book.spent += spent;
        }
        drop(book);
        if granted && take > 0 {
            self.allowance.wake_waiters();
        }
        Ok(granted)
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
