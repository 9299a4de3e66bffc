//! What this worker may spend of one batch's budget: calls draw on it, and no call waits for the
//! store unless it is empty.
//!
//! `treasury` fills it and gives back what is not needed. What a call may cost at the worst is set
//! aside before it begins; at its end it is settled for what it did cost. A call whose end nobody saw
//! is taken to have cost its worst.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use admission::Member;
use domain::budget::{Budget, Unit};
use domain::job::Estimate;
use domain::outcome::Usage;
use domain::prices::Prices;
use model::verdict::Verdict;

/// How long a call waits for the calls before it to end, when no more is granted; other batches may
/// want its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// For how long a purse is filled ahead, in seconds.
const AHEAD: f64 = 2.0;

pub(super) struct Purse {
    prices: Option<Arc<Prices>>,
    book: Mutex<Book>,
    /// There may be something to draw, or nothing will come any more.
    changed: Notify,
    /// There is something to do for the treasury.
    pub(super) wanted: Notify,
}

/// Amounts are in the smallest parts of the budget's unit.
pub(super) struct Book {
    /// The budget as it was last seen.
    pub(super) budget: Budget,
    /// Ours to be drawn; below 0 where calls have cost more than they could.
    pub(super) balance: i64,
    /// Calls under way, whose worst is set aside.
    pub(super) calls: usize,
    /// Spent and not yet told to the store.
    pub(super) spent: u64,
    /// What calls that can't begin wait for.
    waiting: Vec<u64>,
    /// The least balance since the last surplus was asked for.
    low: i64,
    /// What is spent in a second.
    pace: f64,
    spent_since_look: u64,
    /// What the next call needs that was refused to us.
    pub(super) refused: Option<u64>,
    /// Nothing is left, not even what calls under way could give back: jobs go back to the queue.
    pub(super) is_starved: bool,
    /// Why nothing can be spent at all.
    pub(super) broken: Option<String>,
}

impl Book {
    fn new(budget: Budget) -> Self {
        Self {
            budget,
            balance: 0,
            calls: 0,
            spent: 0,
            waiting: Vec::new(),
            low: 0,
            pace: 0.0,
            spent_since_look: 0,
            refused: None,
            is_starved: false,
            broken: None,
        }
    }

    fn draw(&mut self, worst: u64) -> bool {
        let worst = signed(worst);
        if self.balance < worst {
            return false;
        }
        self.balance -= worst;
        self.low = self.low.min(self.balance);
        self.calls += 1;
        true
    }

    fn settle(&mut self, worst: u64, cost: u64) {
        self.balance += signed(worst) - signed(cost);
        self.low = self.low.min(self.balance);
        self.calls -= 1;
        self.spent += cost;
        self.spent_since_look += cost;
    }

    /// Measures the pace; to be called every second.
    pub(super) fn look(&mut self) {
        let recent = std::mem::take(&mut self.spent_since_look) as f64;
        self.pace = (self.pace + recent) / 2.0;
    }

    fn ahead(&self) -> i64 {
        (self.pace * AHEAD) as i64
    }

    /// What the first of the calls that wait needs.
    pub(super) fn next_need(&self) -> Option<u64> {
        self.waiting.iter().min().copied()
    }

    /// What to claim now, 0 if nothing: for all that waits and for the next seconds, of a `part`th of
    /// the whole at the most, so that siblings get theirs.
    pub(super) fn shortage(&self, part: u64) -> u64 {
        let waiting: i64 = self.waiting.iter().map(|worst| signed(*worst)).sum();
        if waiting == 0 && self.balance >= self.ahead() / 2 {
            return 0;
        }
        let short = waiting.saturating_add(self.ahead()) - self.balance;
        let least = self.next_need().map_or(0, |worst| signed(worst) - self.balance);
        let most = signed(self.budget.allowed / part).max(least);
        u64::try_from(short.min(most)).unwrap_or(0)
    }

    /// Takes so much out, or what is left of it: calls may have drawn on it meanwhile.
    pub(super) fn give(&mut self, amount: u64) -> i64 {
        let given = signed(amount).min(self.balance.max(0));
        self.balance -= given;
        self.low = self.low.min(self.balance);
        given
    }

    /// What has lain idle since this was asked the last time.
    pub(super) fn surplus(&mut self) -> u64 {
        let idle = self.low - self.ahead();
        self.low = self.balance;
        u64::try_from(idle).unwrap_or(0)
    }
}

fn signed(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// What is set aside for one call.
pub(super) struct Reserve {
    purse: Arc<Purse>,
    worst: u64,
    is_settled: bool,
}

impl Reserve {
    /// The call has ended, and cost so much.
    pub(super) fn settle(mut self, cost: u64) {
        self.is_settled = true;
        self.purse.settle(self.worst, cost);
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if !self.is_settled {
            self.purse.settle(self.worst, self.worst);
        }
    }
}

impl Purse {
    pub(super) fn new(budget: Budget, prices: Option<Arc<Prices>>) -> Self {
        let book = Mutex::new(Book::new(budget));
        Self { prices, book, changed: Notify::new(), wanted: Notify::new() }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets aside what a call may cost at the worst; `None` if that is not to be had.
    pub(super) async fn draw(self: &Arc<Self>, worst: u64) -> Option<Reserve> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut book = self.book();
                if book.is_starved || book.broken.is_some() {
                    return None;
                }
                if book.draw(worst) {
                    let is_low = book.balance < book.ahead() / 2;
                    drop(book);
                    if is_low {
                        self.wanted.notify_one();
                    }
                    let purse = self.clone();
                    return Some(Reserve { purse, worst, is_settled: false });
                }
                book.waiting.push(worst);
            }
            self.wanted.notify_one();
            let in_time = timeout(PATIENCE, changed).await.is_ok();
            let mut book = self.book();
            if let Some(at) = book.waiting.iter().position(|other| *other == worst) {
                book.waiting.swap_remove(at);
            }
            if !in_time && book.refused.is_some() {
                return None;
            }
        }
    }

    fn settle(&self, worst: u64, cost: u64) {
        let mut book = self.book();
        book.settle(worst, cost);
        let (waits, is_last) = (!book.waiting.is_empty(), book.calls == 0);
        let is_wanted = book.balance < 0 || (is_last && book.refused.is_some());
        drop(book);
        if waits {
            self.changed.notify_waiters();
        }
        if is_wanted {
            self.wanted.notify_one();
        }
    }

    /// Calls that wait look again.
    pub(super) fn tell(&self) {
        self.changed.notify_waiters();
    }

    /// Nothing can be spent; the treasury pauses the batch and says why.
    pub(super) fn give_up(&self, why: String) {
        self.book().broken.get_or_insert(why);
        self.tell();
        self.wanted.notify_one();
    }

    /// A resumed batch tries again.
    pub(super) fn reopen(&self) {
        let mut book = self.book();
        (book.refused, book.is_starved, book.broken) = (None, false, None);
    }

    pub(super) fn is_shut(&self) -> bool {
        let book = self.book();
        book.is_starved || book.broken.is_some()
    }

    /// Whether a job had better wait for what other calls leave.
    pub(super) fn is_short(&self) -> bool {
        let book = self.book();
        book.refused.is_some_and(|need| book.balance < signed(need))
    }

    /// What a call may cost at the worst.
    ///
    /// # Errors
    /// Says why that can't be known.
    pub(super) fn worst(
        &self,
        model: &str,
        estimate: Estimate,
        at: &Member,
    ) -> Result<u64, String> {
        let (prompt, completion) = (u64::from(estimate.prompt), u64::from(estimate.max_output));
        let usage = Usage { prompt, completion, ..Usage::default() };
        self.price(model, usage, false, at)
    }

    /// What a call has cost, as far as its end tells; what it may have cost where it does not.
    /// Azure bills whatever it worked on, also where the answer is an error or never arrives (Azure
    /// docs: "Plan to manage costs for Azure OpenAI", HTTP error response code and billing status).
    pub(super) fn cost(&self, model: &str, estimate: Estimate, at: &Member, end: &Verdict) -> u64 {
        let all = || self.worst(model, estimate, at).unwrap_or(u64::MAX);
        match end {
            Verdict::Answered(reply) if reply.usage.total() > 0 => {
                let is_flex = reply.service_tier.as_deref() == Some("flex");
                self.price(model, reply.usage, is_flex, at).unwrap_or_else(|_| all())
            }
            Verdict::Answered(_) => all(),
            // A filtered prompt may have been answered before it was filtered (Azure docs: "Content
            // filtering": a charge for prompt and completion).
            Verdict::Refused(error) if error.failure.code == "content_filter" => all(),
            // The prompt may have been read; there was no answer.
            Verdict::Refused(_) => {
                let estimate = Estimate { max_output: 0, ..estimate };
                self.worst(model, estimate, at).unwrap_or_else(|_| all())
            }
            // Turned away at the door.
            Verdict::Transient { error, .. } if matches!(error.status, Some(409 | 425 | 503)) => 0,
            Verdict::Transient { .. } => all(),
            Verdict::Throttled { .. }
            | Verdict::Unreachable { .. }
            | Verdict::Missing { .. }
            | Verdict::Misconfigured { .. } => 0,
        }
    }

    fn price(&self, model: &str, usage: Usage, flex: bool, at: &Member) -> Result<u64, String> {
        let book = self.book();
        let Unit::Money { currency } = &book.budget.unit else { return Ok(usage.total()) };
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
        cost.map(|cost| cost.nanos()).ok_or_else(|| prices.lacks(model, Some(&at.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::budget::Limit;
    use domain::outcome::Failure;
    use model::verdict::ErrorReply;

    fn book(allowed: u64) -> Book {
        Book::new(Budget::renewed(None, &Limit::tokens(allowed).unwrap()))
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
            assert!(book.draw(500));
            book.settle(500, 100);
            book.look();
        }
        assert_eq!((book.balance, book.spent), (1_000_000 - 2_000, 2_000));
        assert_eq!(book.ahead(), 199, "two seconds of 100 each");
        assert_eq!(book.surplus(), 0, "it was empty once");
        let surplus = book.surplus();
        assert_eq!(surplus, 998_000 - 199);
        assert_eq!(book.give(surplus), 998_000 - 199);
        assert_eq!((book.balance, book.surplus()), (199, 0), "what is needed soon stays");
        book.balance = 90;
        assert_eq!(book.shortage(1), 199 - 90);
    }

    #[test]
    fn what_a_call_cost_beyond_its_worst_is_a_debt() {
        let mut book = book(1_000);
        book.balance = 100;
        assert!(book.draw(100));
        assert!(!book.draw(1));
        book.settle(100, 130);
        assert_eq!((book.balance, book.spent, book.calls), (-30, 130, 0));
        assert!(!book.draw(0));
    }

    #[test]
    fn a_call_costs_what_its_end_tells_and_its_worst_where_nobody_knows() {
        let budget = Budget::renewed(None, &Limit::money(1.0, "USD").unwrap());
        let purse = Purse::new(budget, Some(Arc::new(Prices::load(None).unwrap())));
        let at = Member { name: "sim".into(), ..Member::default() };
        let alias = Member { models: vec!["gpt-4.1".into()], ..at.clone() };
        let estimate = Estimate { prompt: 1_000, max_output: 1_000 };
        let worst = |model, at| purse.worst(model, estimate, at);
        assert_eq!(worst("gpt-4.1", &at), Ok(10_000_000));
        assert_eq!(worst("ours", &alias), Ok(10_000_000), "by the deployment's model");
        let unknown = worst("ours", &at).unwrap_err();
        assert!(unknown.starts_with("deployment sim: the model 'ours' has no price"), "{unknown}");
        let error = |status, code: &str| ErrorReply {
            status,
            request_id: None,
            body: None,
            failure: Failure { code: code.into(), message: String::new() },
        };
        let cost = |end: &Verdict| purse.cost("gpt-4.1", estimate, &at, end);
        let passing = |status| Verdict::Transient { error: error(status, "x"), retry_after: None };
        for (status, expected) in
            [(Some(503), 0), (Some(500), 10_000_000), (Some(408), 10_000_000), (None, 10_000_000)]
        {
            assert_eq!(cost(&passing(status)), expected, "{status:?}");
        }
        assert_eq!(cost(&Verdict::Throttled { pause: Duration::ZERO }), 0);
        let refused = |code| Verdict::Refused(error(Some(400), code));
        assert_eq!(cost(&refused("invalid_request_error")), 2_000_000);
        assert_eq!(cost(&refused("content_filter")), 10_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_for_what_others_leave_and_not_for_ever() {
        let budget = Budget::renewed(None, &Limit::tokens(100).unwrap());
        let purse = Arc::new(Purse::new(budget, None));
        purse.book().balance = 100;
        let first = purse.draw(80).await.unwrap();
        let waiting = tokio::spawn({
            let purse = purse.clone();
            async move { purse.draw(80).await.is_some() }
        });
        tokio::task::yield_now().await;
        assert_eq!(purse.book().next_need(), Some(80));
        first.settle(10);
        assert!(waiting.await.unwrap(), "90 are left");
        assert_eq!(purse.book().balance, 10, "a call that nobody settled has cost its worst");
        purse.book().refused = Some(80);
        assert!(purse.draw(80).await.is_none());
        assert!(purse.is_short());
        assert_eq!(purse.book().next_need(), None);
    }
}
