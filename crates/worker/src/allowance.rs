//! This worker's allowance of one batch's budget: calls draw on it, and no call waits for the store
//! unless it is empty.
//!
//! `budget_sync` replenishes it and returns the surplus. A call's maximum cost is reserved before
//! it begins; at its end the reservation is settled for the actual cost. A call whose end was not
//! seen is taken to have cost its maximum.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use admission::PoolMember;
use domain::budget::{Budget, BudgetUnit};
use domain::job::TokenEstimate;
use domain::mutex::lock;
use domain::outcome::TokenUsage;
use domain::prices::Prices;
use model::verdict::Verdict;

/// Time that a call waits for earlier calls to end, when no more is granted; other batches may want
/// its slot.
const GRANT_WAIT: Duration = Duration::from_secs(1);

/// Seconds of spending for which the allowance is filled ahead.
const SECONDS_AHEAD: f64 = 2.0;

pub(super) struct BudgetAllowance {
    prices: Option<Arc<Prices>>,
    ledger: Mutex<AllowanceLedger>,
    /// There may be something to draw, or nothing will come any more.
    changed: Notify,
    /// There is something to do for the budget sync.
    pub(super) sync_needed: Notify,
}

/// Amounts are in the smallest parts of the budget's unit.
pub(super) struct AllowanceLedger {
    /// The budget as it was last read.
    pub(super) budget: Budget,
    /// Ours to draw; below 0 where calls have cost more than their maximum.
    pub(super) balance: i64,
    /// Calls under way, whose maximum is reserved.
    pub(super) calls: usize,
    /// Spent and not yet reported to the store.
    pub(super) spent: u64,
    /// Maximum costs of the calls that wait.
    waiting: Vec<u64>,
    /// Lowest balance since the last call of `surplus`.
    low_water: i64,
    /// Spending per second.
    spend_rate: f64,
    spent_since_measured: u64,
    /// Amount for the next call that the store refused.
    pub(super) refused: Option<u64>,
    /// Nothing is left, not even what calls under way could return: jobs go back to the queue.
    pub(super) is_exhausted: bool,
    /// Reason why nothing can be spent at all.
    pub(super) unusable_reason: Option<String>,
}

impl AllowanceLedger {
    fn new(budget: Budget) -> Self {
        Self {
            budget,
            balance: 0,
            calls: 0,
            spent: 0,
            waiting: Vec::new(),
            low_water: 0,
            spend_rate: 0.0,
            spent_since_measured: 0,
            refused: None,
            is_exhausted: false,
            unusable_reason: None,
        }
    }

    fn try_reserve(&mut self, worst: u64) -> bool {
        let worst = signed(worst);
        if self.balance < worst {
            return false;
        }
        self.balance -= worst;
        self.low_water = self.low_water.min(self.balance);
        self.calls += 1;
        true
    }

    fn settle(&mut self, worst: u64, cost: u64) {
        self.balance += signed(worst) - signed(cost);
        self.low_water = self.low_water.min(self.balance);
        self.calls -= 1;
        self.spent += cost;
        self.spent_since_measured += cost;
    }

    /// Measures the spending rate; call it every second.
    pub(super) fn measure_rate(&mut self) {
        let recent = std::mem::take(&mut self.spent_since_measured) as f64;
        self.spend_rate = (self.spend_rate + recent) / 2.0;
    }

    fn forecast(&self) -> i64 {
        (self.spend_rate * SECONDS_AHEAD) as i64
    }

    /// Returns the least amount that one of the waiting calls needs.
    pub(super) fn next_need(&self) -> Option<u64> {
        self.waiting.iter().min().copied()
    }

    /// Returns the amount to claim now, 0 if none: for all waiting calls and for the next seconds,
    /// at most a `part`th of the whole, so that siblings get theirs.
    pub(super) fn shortage(&self, part: u64) -> u64 {
        let waiting: i64 = self.waiting.iter().map(|worst| signed(*worst)).sum();
        if waiting == 0 && self.balance >= self.forecast() / 2 {
            return 0;
        }
        let short = waiting.saturating_add(self.forecast()) - self.balance;
        let least = self.next_need().map_or(0, |worst| signed(worst) - self.balance);
        let most = signed(self.budget.allowed / part).max(least);
        u64::try_from(short.min(most)).unwrap_or(0)
    }

    /// Takes so much out, or what is left of it: calls may have drawn on it meanwhile.
    pub(super) fn withdraw(&mut self, amount: u64) -> i64 {
        let given = signed(amount).min(self.balance.max(0));
        self.balance -= given;
        self.low_water = self.low_water.min(self.balance);
        given
    }

    /// Returns the amount not needed since the previous call (low-water mark minus forecast).
    pub(super) fn surplus(&mut self) -> u64 {
        let idle = self.low_water - self.forecast();
        self.low_water = self.balance;
        u64::try_from(idle).unwrap_or(0)
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Amount reserved for one call.
pub(super) struct SpendReservation {
    allowance: Arc<BudgetAllowance>,
    max_cost: u64,
    is_settled: bool,
}

impl SpendReservation {
    /// Settles the reservation: the call cost so much.
    pub(super) fn settle(mut self, cost: u64) {
        self.is_settled = true;
        self.allowance.settle(self.max_cost, cost);
    }
}

impl Drop for SpendReservation {
    fn drop(&mut self) {
        if !self.is_settled {
            self.allowance.settle(self.max_cost, self.max_cost);
        }
    }
}

impl BudgetAllowance {
    pub(super) fn new(budget: Budget, prices: Option<Arc<Prices>>) -> Self {
        let ledger = Mutex::new(AllowanceLedger::new(budget));
        Self { prices, ledger, changed: Notify::new(), sync_needed: Notify::new() }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, AllowanceLedger> {
        lock(&self.ledger)
    }

    /// Reserves a call's maximum cost; `None` if that is not to be had.
    pub(super) async fn reserve(self: &Arc<Self>, worst: u64) -> Option<SpendReservation> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut book = self.ledger();
                if book.is_exhausted || book.unusable_reason.is_some() {
                    return None;
                }
                if book.try_reserve(worst) {
                    let is_low = book.balance < book.forecast() / 2;
                    drop(book);
                    if is_low {
                        self.sync_needed.notify_one();
                    }
                    let purse = self.clone();
                    return Some(SpendReservation {
                        allowance: purse,
                        max_cost: worst,
                        is_settled: false,
                    });
                }
                book.waiting.push(worst);
            }
            self.sync_needed.notify_one();
            let in_time = timeout(GRANT_WAIT, changed).await.is_ok();
            let mut book = self.ledger();
            if let Some(at) = book.waiting.iter().position(|other| *other == worst) {
                book.waiting.swap_remove(at);
            }
            if !in_time && book.refused.is_some() {
                return None;
            }
        }
    }

    fn settle(&self, worst: u64, cost: u64) {
        let mut book = self.ledger();
        book.settle(worst, cost);
        let (waits, is_last) = (!book.waiting.is_empty(), book.calls == 0);
        let is_wanted = book.balance < 0 || (is_last && book.refused.is_some());
        drop(book);
        if waits {
            self.changed.notify_waiters();
        }
        if is_wanted {
            self.sync_needed.notify_one();
        }
    }

    /// Wakes the calls that wait.
    pub(super) fn wake_waiters(&self) {
        self.changed.notify_waiters();
    }

    /// Marks that nothing can be spent; the budget sync pauses the batch with the reason.
    pub(super) fn mark_unusable(&self, why: String) {
        self.ledger().unusable_reason.get_or_insert(why);
        self.wake_waiters();
        self.sync_needed.notify_one();
    }

    /// Clears refusals: a resumed batch tries again.
    pub(super) fn reopen(&self) {
        let mut book = self.ledger();
        (book.refused, book.is_exhausted, book.unusable_reason) = (None, false, None);
    }

    pub(super) fn is_blocked(&self) -> bool {
        let book = self.ledger();
        book.is_exhausted || book.unusable_reason.is_some()
    }

    /// Returns whether a job had better wait for what other calls leave.
    pub(super) fn is_short(&self) -> bool {
        let book = self.ledger();
        book.refused.is_some_and(|need| book.balance < signed(need))
    }

    /// Returns a call's maximum cost.
    ///
    /// # Errors
    /// Says why it can't be known.
    pub(super) fn max_cost(
        &self,
        model: &str,
        estimate: TokenEstimate,
        at: &PoolMember,
    ) -> Result<u64, String> {
        let (prompt, completion) = (u64::from(estimate.prompt), u64::from(estimate.max_output));
        let usage = TokenUsage { prompt, completion, ..TokenUsage::default() };
        self.price(model, usage, false, at)
    }

    /// Returns a call's cost as far as its end tells, its maximum where it does not. Azure bills
    /// whatever it worked on, also where the answer is an error or never arrives (Azure docs: "Plan
    /// to manage costs for Azure OpenAI", HTTP error response code and billing status).
    pub(super) fn cost(
        &self,
        model: &str,
        estimate: TokenEstimate,
        at: &PoolMember,
        end: &Verdict,
    ) -> u64 {
        let all = || self.max_cost(model, estimate, at).unwrap_or(u64::MAX);
        match end {
            Verdict::Answered(reply) if is_whole(reply.usage) => {
                let is_flex = reply.service_tier.as_deref() == Some("flex");
                self.price(model, reply.usage, is_flex, at).unwrap_or_else(|_| all())
            }
            Verdict::Answered(_) => all(),
            // A filtered prompt may have been answered before it was filtered (Azure docs: "Content
            // filtering": a charge for prompt and completion).
            Verdict::Refused(error) if error.failure.code == "content_filter" => all(),
            // The prompt may have been read; there was no answer.
            Verdict::Refused(_) => {
                let estimate = TokenEstimate { max_output: 0, ..estimate };
                self.max_cost(model, estimate, at).unwrap_or_else(|_| all())
            }
            // Rejected before any work.
            Verdict::Transient { error, .. } if matches!(error.status, Some(409 | 425 | 503)) => 0,
            Verdict::NoAnswer(error) if is_whole(error.usage) => {
                self.price(model, error.usage, false, at).unwrap_or_else(|_| all())
            }
            Verdict::Transient { .. } | Verdict::NoAnswer(_) => all(),
            Verdict::RefusedHere(_)
            | Verdict::Denied { .. }
            | Verdict::Throttled { .. }
            | Verdict::Unreachable { .. }
            | Verdict::Misconfigured { .. } => 0,
        }
    }

    fn price(
        &self,
        model: &str,
        usage: TokenUsage,
        flex: bool,
        at: &PoolMember,
    ) -> Result<u64, String> {
        let book = self.ledger();
        let BudgetUnit::Money { currency } = &book.budget.unit else { return Ok(usage.total()) };
        let Some(prices) = &self.prices else {
            return Err("a worker has no price table".to_owned());
        };
        if prices.currency != *currency {
            return Err(format!(
                "the budget is in {currency}, and the price table {} in {}",
                prices.path.display(),
                prices.currency
            ));
        }
        let names = std::iter::once(model).chain(at.models.iter().map(String::as_str));
        let cost = names.into_iter().find_map(|name| prices.cost(name, usage, flex));
        cost.map(|cost| cost.nanos()).ok_or_else(|| prices.missing_price(model, Some(&at.name)))
    }
}

/// Returns whether an answer's tokens are all known.
fn is_whole(usage: TokenUsage) -> bool {
    usage.unreported == 0 && usage.total() > 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::budget::BudgetLimit;
    use domain::outcome::JobFailure;
    use model::verdict::ErrorReply;

    fn book(allowed: u64) -> AllowanceLedger {
        AllowanceLedger::new(Budget::with_limit(None, &BudgetLimit::tokens(allowed).unwrap()))
    }

    #[test]
    fn a_claim_covers_what_waits_and_never_takes_more_than_its_part() {
        let mut book = book(5_000);
        assert_eq!(book.shortage(1), 0);
        book.waiting = vec![40, 40, 40];
        assert_eq!(book.shortage(1), 120);
        assert_eq!(book.shortage(50), 100);
        assert_eq!(book.shortage(5_000), 40, "never below one call");
        book.balance = 30;
        assert_eq!((book.shortage(1), book.shortage(5_000)), (90, 10));
    }

    #[test]
    fn it_is_filled_ahead_of_the_pace_and_what_lies_idle_is_given_back() {
        let mut book = book(1 << 40);
        book.balance = 1_000_000;
        for _ in 0..20 {
            assert!(book.try_reserve(500));
            book.settle(500, 100);
            book.measure_rate();
        }
        assert_eq!((book.balance, book.spent), (1_000_000 - 2_000, 2_000));
        assert_eq!(book.forecast(), 199, "two seconds of 100 each");
        assert_eq!(book.surplus(), 0, "it was empty once");
        let surplus = book.surplus();
        assert_eq!(surplus, 998_000 - 199);
        assert_eq!(book.withdraw(surplus), 998_000 - 199);
        assert_eq!((book.balance, book.surplus()), (199, 0), "what is needed soon stays");
        book.balance = 90;
        assert_eq!(book.shortage(1), 199 - 90);
    }

    #[test]
    fn what_a_call_cost_beyond_its_worst_is_a_debt() {
        let mut book = book(1_000);
        book.balance = 100;
        assert!(book.try_reserve(100));
        assert!(!book.try_reserve(1));
        book.settle(100, 130);
        assert_eq!((book.balance, book.spent, book.calls), (-30, 130, 0));
        assert!(!book.try_reserve(0));
    }

    #[test]
    fn a_call_costs_what_its_end_tells_and_its_worst_where_nobody_knows() {
        let budget = Budget::with_limit(None, &BudgetLimit::money(1.0, "USD").unwrap());
        let purse = BudgetAllowance::new(budget, Some(Arc::new(Prices::load(None).unwrap())));
        let at = PoolMember { name: "sim".into(), ..PoolMember::default() };
        let alias = PoolMember { models: vec!["gpt-4.1".into()], ..at.clone() };
        let estimate = TokenEstimate { prompt: 1_000, max_output: 1_000 };
        let worst = |model, at| purse.max_cost(model, estimate, at);
        assert_eq!(worst("gpt-4.1", &at), Ok(10_000_000));
        assert_eq!(worst("ours", &alias), Ok(10_000_000), "by the deployment's model");
        let unknown = worst("ours", &at).unwrap_err();
        assert!(unknown.starts_with("deployment sim: the model 'ours' has no price"), "{unknown}");
        let error = |status, code: &str| ErrorReply {
            status,
            failure: JobFailure { code: code.into(), message: String::new() },
            ..ErrorReply::default()
        };
        let cost = |end: &Verdict| purse.cost("gpt-4.1", estimate, &at, end);
        let passing = |status| Verdict::Transient { error: error(status, "x"), retry_after: None };
        for (status, expected) in
            [(Some(503), 0), (Some(500), 10_000_000), (Some(408), 10_000_000), (None, 10_000_000)]
        {
            assert_eq!(cost(&passing(status)), expected, "{status:?}");
        }
        assert_eq!(cost(&Verdict::Throttled { error: error(Some(429), "429"), asked: None }), 0);
        let refused = |code| Verdict::Refused(error(Some(400), code));
        assert_eq!(cost(&refused("invalid_request_error")), 2_000_000);
        assert_eq!(cost(&refused("content_filter")), 10_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_what_others_leave_and_not_for_ever() {
        let budget = Budget::with_limit(None, &BudgetLimit::tokens(100).unwrap());
        let purse = Arc::new(BudgetAllowance::new(budget, None));
        purse.ledger().balance = 100;
        let first = purse.reserve(80).await.unwrap();
        let waiting = tokio::spawn({
            let purse = purse.clone();
            async move { purse.reserve(80).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert_eq!(purse.ledger().next_need(), Some(80));
        first.settle(10);
        assert!(waiting.await.unwrap(), "90 are left");
        assert_eq!(purse.ledger().balance, 10, "a call that nobody settled has cost its worst");
        purse.ledger().refused = Some(80);
        assert!(purse.reserve(80).await.is_none());
        assert!(purse.is_short());
        assert_eq!(purse.ledger().next_need(), None);
    }
}
