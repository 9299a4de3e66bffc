//! Keeps the purses: claims what calls need from a batch's budget, gives back what they do not, and
//! pauses the batch when nothing is left.
//!
//! A refusal is not the end: calls under way cost less than was set aside for them. So first our own
//! end and what they left is given back; then the siblings' are waited for, as long as the budget
//! still moves.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::purse::Purse;
use super::shares::Order;
use super::states::{Course, Known};
use domain::budget::{Budget, Claim};
use store::{BatchState, Store, StoreError};

/// How often a purse is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Looks between those at what lies idle.
const IDLE_LOOKS: u32 = 4;

/// Of the whole budget, the part that one claim may have beside siblings.
const PART: u64 = 50;

/// How long the siblings are waited for while nothing moves. A killed one gives nothing back.
const OTHERS: Duration = Duration::from_secs(20);

pub(super) struct Treasury {
    pub(super) store: Arc<dyn Store>,
    pub(super) known: Arc<Known>,
    pub(super) purse: Arc<Purse>,
    pub(super) has_siblings: bool,
    pub(super) orders: mpsc::Sender<Order>,
}

/// The budget did not move since then.
struct Still {
    since: Instant,
    committed: u64,
    spent: u64,
}

impl Treasury {
    /// Keeps the purse until it is closed; then everything is given back.
    pub(super) async fn keep(self, closed: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut count, mut still) = (0_u32, None);
        loop {
            let is_look = tokio::select! {
                () = closed.cancelled() => break,
                () = self.purse.wanted.notified() => false,
                _ = looks.tick() => true,
            };
            if is_look {
                self.purse.book().look();
                count += 1;
            }
            let done = self.step(is_look && count.is_multiple_of(IDLE_LOOKS), &mut still).await;
            if let Err(error) = done {
                warn!(%error, batch.id = %self.known.id(), "can't reach the budget; trying again");
                tokio::time::sleep(LOOK).await;
            }
        }
        if let Err(error) = self.give_all_back().await {
            warn!(%error, batch.id = %self.known.id(), "could not give the rest of a budget back");
        }
    }

    async fn step(&self, is_idle_look: bool, still: &mut Option<Still>) -> Result<(), StoreError> {
        self.pay_debts().await?;
        if self.known.stored_course() != Course::Go {
            // It is paused already, by whomever; its jobs are on their way back.
            let is_under_way = self.purse.book().calls > 0;
            return if is_under_way { Ok(()) } else { self.give_all_back().await };
        }
        let broken = self.purse.book().broken.clone();
        if let Some(why) = broken {
            return self.pause(&why).await;
        }
        if self.purse.book().refused.is_some() {
            return self.beg(still).await;
        }
        *still = None;
        let part = if self.has_siblings { PART } else { 1 };
        let shortage = self.purse.book().shortage(part);
        if shortage > 0 {
            return self.fill(shortage).await;
        }
        if is_idle_look {
            let surplus = self.purse.book().surplus();
            self.give_back(surplus).await?;
        }
        Ok(())
    }

    /// What was spent beyond what was set aside is committed in any case.
    async fn pay_debts(&self) -> Result<(), StoreError> {
        let debt = match self.purse.book().balance {
            balance @ ..0 => balance.unsigned_abs(),
            0.. => return Ok(()),
        };
        self.claim(signed(debt), true).await.map(drop)
    }

    /// Claims so much, or what is left if that is enough for a call.
    async fn fill(&self, shortage: u64) -> Result<(), StoreError> {
        if self.claim(signed(shortage), false).await? {
            return Ok(());
        }
        let Some(need) = self.purse.book().next_need() else { return Ok(()) };
        if self.claim_what_is_left(need).await? {
            return Ok(());
        }
        self.purse.book().refused = Some(need);
        self.purse.wanted.notify_one();
        Ok(())
    }

    async fn claim_what_is_left(&self, need: u64) -> Result<bool, StoreError> {
        let (left, has) = {
            let book = self.purse.book();
            (book.budget.left(), u64::try_from(book.balance).unwrap_or(0))
        };
        let missing = need.saturating_sub(has);
        if missing == 0 {
            self.purse.tell();
            return Ok(true);
        }
        let all = if self.has_siblings { missing.max(left / 2) } else { left };
        Ok(left >= missing && self.claim(signed(all), false).await?)
    }

    /// What to do after a refusal: whenever something may have come back, to ask again.
    async fn beg(&self, still: &mut Option<Still>) -> Result<(), StoreError> {
        let (need, is_under_way) = {
            let book = self.purse.book();
            (book.refused.unwrap_or(0), book.calls > 0)
        };
        if !is_under_way {
            self.give_all_back().await?;
        } else if self.purse.book().balance >= signed(need) {
            self.go_on();
            return Ok(());
        }
        let Some(budget) = self.store.budget(self.known.id()).await? else { return Ok(()) };
        self.purse.book().budget = budget.clone();
        if self.claim_what_is_left(need).await? {
            self.go_on();
            return Ok(());
        }
        if is_under_way {
            return Ok(());
        }
        self.starve().await;
        let moved = still
            .as_ref()
            .is_none_or(|still| (still.committed, still.spent) != (budget.committed, budget.spent));
        if moved {
            let Budget { committed, spent, .. } = budget;
            *still = Some(Still { since: Instant::now(), committed, spent });
        }
        let others = budget.committed.saturating_sub(budget.spent);
        let is_over = need > budget.allowed
            || others == 0
            || still.as_ref().is_some_and(|still| still.since.elapsed() >= OTHERS);
        if is_over { self.pause(&budget.exhausted(need)).await } else { Ok(()) }
    }

    fn go_on(&self) {
        let mut book = self.purse.book();
        (book.refused, book.is_starved) = (None, false);
        drop(book);
        self.purse.tell();
    }

    /// Jobs go back to the queue, so that other batches get their places.
    async fn starve(&self) {
        let starved_before = std::mem::replace(&mut self.purse.book().is_starved, true);
        if !starved_before {
            self.purse.tell();
            let _ = self.orders.send(Order::Recheck).await;
        }
    }

    async fn pause(&self, why: &str) -> Result<(), StoreError> {
        let from = [BatchState::Enqueuing, BatchState::Running];
        let id = self.known.id();
        self.store.change_state(id, &from, BatchState::Paused, Some(why)).await?;
        if self.known.set(Course::Wait) {
            info!(batch.id = %id, why, "the batch is paused");
        }
        self.purse.tell();
        let _ = self.orders.send(Order::Recheck).await;
        Ok(())
    }

    async fn give_back(&self, surplus: u64) -> Result<(), StoreError> {
        let has_news = self.purse.book().spent > 0;
        if surplus > 0 || has_news {
            self.claim(-signed(surplus), false).await?;
        }
        Ok(())
    }

    async fn give_all_back(&self) -> Result<(), StoreError> {
        self.pay_debts().await?;
        let balance = self.purse.book().balance;
        self.give_back(u64::try_from(balance).unwrap_or(0)).await
    }

    /// Claims; what is given back is out of the purse before, and stays so if the answer is lost.
    async fn claim(&self, take: i64, is_debt: bool) -> Result<bool, StoreError> {
        let (take, spent) = {
            let mut book = self.purse.book();
            let take = if take < 0 { -book.give(take.unsigned_abs()) } else { take };
            (take, std::mem::take(&mut book.spent))
        };
        let claim = Claim { take, spent, is_debt };
        let claimed = self.store.claim(self.known.id(), &claim).await?;
        let mut book = self.purse.book();
        let granted = match claimed {
            Some((granted, budget)) => {
                book.budget = budget;
                granted
            }
            // Somebody deleted it: there is nothing to keep to.
            None => true,
        };
        if granted {
            book.balance += take.max(0);
        } else {
            book.spent += spent;
        }
        drop(book);
        if granted && take > 0 {
            self.purse.tell();
        }
        Ok(granted)
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}
