//! Service-side quota of one deployment: tokens by a meter, requests by slices.
//!
//! Pure: time is passed in as the span since the simulator started, so the tests need no clock. It
//! shares nothing with `admission/` on purpose: that side estimates what this side decides.
//! `capacity` calls it once per request; `ledger_snapshot` lists the windows it closed.
//!
//! The rules, after the published quota pages, unless `meter` says otherwise:
//! - Tokens: each admitted request books its charge on arrival, and the counter restarts at zero
//!   with each window. A refused request books no tokens.
//! - Requests: the rate is enforced in slices of 1 or 10 s. A call takes its slot in the slice
//!   before its tokens are checked and does not get it back, so that calls refused for tokens count
//!   against the requests too. Calls that find the slice full change nothing.
//! - A request whose charge exceeds a whole window can never pass: it gets a Retry-After of one
//!   day, as from the service.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::duty_cycle::ForeignTraffic;
use super::meter::{CountedTokens, HeaderStyle, MeterKind, MeterRules};
use super::quota_status::{NEVER_RETRY_AFTER, QuotaLimits, QuotaStatus, QuotaVerdict, QuotaWindow};
use super::rate_report::{RateReport, ReportedEnd, cut};
use super::request_slices::RequestSlices;
use super::spans::{per_span, span_times, whole_spans};
use super::token_counter::TokenCounter;

/// Closed windows that are kept for the ledger; the oldest is dropped first.
const MAX_CLOSED_WINDOWS: usize = 1_000;

/// Quota counters of one deployment.
#[derive(Debug)]
pub struct ServiceQuota {
    limits: QuotaLimits,
    window: Duration,
    rules: MeterRules,
    tokens: TokenCounter,
    gateway: Option<TokenCounter>,
    slices: RequestSlices,
    open: QuotaWindow,
    /// End of the open ledger window; `None` until a first request opens it.
    open_until: Option<Duration>,
    /// Request slots taken in the open window.
    slots_taken: u64,
    closed: VecDeque<QuotaWindow>,
    foreign_traffic: Option<ForeignTraffic>,
    /// Time up to which the foreign tokens are booked.
    foreign_booked_until: Duration,
    /// Latest time seen. Threads may arrive in another order than they read the clock: a late one
    /// counts at this time.
    latest: Duration,
    /// Tokens of requests that are still being answered, soonest end first.
    pending: BinaryHeap<Reverse<PendingUsage>>,
    /// Status that stale headers still report, and when it was read.
    stale: Option<(Duration, QuotaStatus)>,
}

/// Tokens used by a request that ends at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PendingUsage {
    at: Duration,
    booked_at: Duration,
    estimate: u64,
    used: u64,
}

impl ServiceQuota {
    /// Creates a quota with the documented meter.
    pub fn new(limits: QuotaLimits, window: Duration, slice: Duration) -> Self {
        let mut quota = Self {
            limits,
            window,
            rules: MeterRules::DOCUMENTED,
            tokens: TokenCounter::new(MeterKind::ClockWindow, window, None),
            gateway: None,
            slices: RequestSlices::new(slice),
            open: QuotaWindow::default(),
            open_until: Some(window),
            slots_taken: 0,
            closed: VecDeque::new(),
            foreign_traffic: None,
            foreign_booked_until: Duration::ZERO,
            latest: Duration::ZERO,
            pending: BinaryHeap::new(),
            stale: None,
        };
        quota.apply_limits();
        quota
    }

    /// Changes the meter's rules from now on. Another kind of meter starts empty.
    pub fn set_rules(&mut self, now: Duration, rules: MeterRules) {
        self.advance(now);
        if rules == self.rules {
            return;
        }
        let before = std::mem::replace(&mut self.rules, rules);
        if rules.kind != before.kind {
            self.tokens = TokenCounter::new(rules.kind, self.window, None);
            self.tokens.advance(self.latest);
            self.close_window(self.latest);
        }
        if rules.gateway_tpm.is_some() != before.gateway_tpm.is_some() {
            let gateway = TokenCounter::new(MeterKind::FirstRequestWindow, self.window, None);
            self.gateway = rules.gateway_tpm.map(|_| gateway);
        }
        self.stale = None;
        self.apply_limits();
    }

    /// Decides one request and books its cost.
    pub fn admit(&mut self, now: Duration, charge: u64) -> QuotaVerdict {
        self.advance(now);
        let now = self.latest;
        self.touch(now);
        let verdict = self.judge(now, charge);
        if matches!(verdict, QuotaVerdict::Admitted | QuotaVerdict::TokensFull { .. }) {
            self.slices.take_slot();
            self.slots_taken += 1;
        }
        if verdict != QuotaVerdict::Admitted {
            self.open.refused += 1;
            return verdict;
        }
        self.open.admitted += 1;
        if let Some(gateway) = &mut self.gateway {
            gateway.book(now, charge);
        }
        if self.rules.counted != CountedTokens::Billed {
            self.open.charged += charge;
            self.tokens.book(now, charge);
        }
        verdict
    }

    /// Tells the tokens that a request, admitted at `booked_at`, will have used at its end. Meters
    /// that count estimates ignore it.
    pub fn settle(&mut self, booked_at: Duration, at: Duration, estimate: u64, used: u64) {
        if self.rules.counted != CountedTokens::Estimate {
            let booked_at = booked_at.max(self.latest);
            self.pending.push(Reverse(PendingUsage { at, booked_at, estimate, used }));
        }
    }

    /// Changes the limits from now on; existing bookings stay.
    pub fn set_limits(&mut self, now: Duration, limits: QuotaLimits) {
        self.advance(now);
        self.limits = limits;
        self.apply_limits();
    }

    /// Counts a request that was refused for another reason than the quota.
    pub fn refuse(&mut self, now: Duration) {
        self.advance(now);
        self.open.refused += 1;
    }

    /// Changes the foreign traffic from now on. A full window refuses it like any request, and it
    /// takes no request slots.
    pub fn set_foreign_traffic(&mut self, now: Duration, others: Option<ForeignTraffic>) {
        self.advance(now);
        self.foreign_traffic = others;
        self.foreign_booked_until = self.foreign_booked_until.max(now);
    }

    pub fn status(&mut self, now: Duration) -> QuotaStatus {
        self.advance(now);
        let minute = |rpm| per_span(rpm, self.window);
        let whole = self.limits.tpm.map_or(0, |tpm| per_span(tpm, self.window));
        let hidden_cut = whole - cut(whole, self.rules.cut);
        QuotaStatus {
            limits: self.limits,
            remaining_tokens: self.tokens.room().map(|room| room + hidden_cut),
            remaining_requests: self.limits.rpm.map(|r| minute(r).saturating_sub(self.slots_taken)),
            reset_tokens: self.tokens.until_reset(self.latest),
            reset_requests: self.slices.until_end(self.latest),
        }
    }

    /// Returns the headers of a request that ended so.
    pub fn report(&mut self, now: Duration, end: ReportedEnd) -> RateReport {
        let mut status = self.status(now);
        if let HeaderStyle::Stale { every } = self.rules.headers {
            status = match self.stale {
                Some((read_at, old)) if self.latest < read_at + every => old,
                _ => {
                    self.stale = Some((self.latest, status));
                    status
                }
            };
        }
        RateReport::of(&self.rules, &status, end)
    }

    /// Returns the windows so far that had requests, the open one last.
    pub fn windows(&self) -> impl Iterator<Item = &QuotaWindow> {
        self.closed.iter().chain(Some(&self.open)).filter(|w| w.admitted + w.refused > 0)
    }

    pub fn clear_windows(&mut self) {
        self.closed.clear();
    }

    fn judge(&self, now: Duration, charge: u64) -> QuotaVerdict {
        if let Some(gateway) = &self.gateway
            && gateway.room().is_some_and(|room| charge > room)
        {
            return QuotaVerdict::GatewayFull { retry_after: gateway.until_room(now, charge) };
        }
        if let Some(rpm) = self.limits.rpm
            && self.slices.is_full(rpm)
        {
            let retry_after = self.slices.until_next_free(now, rpm);
            return QuotaVerdict::RequestsFull { retry_after };
        }
        if self.tokens.largest().is_some_and(|largest| charge > largest) {
            return QuotaVerdict::TokensFull { retry_after: NEVER_RETRY_AFTER };
        }
        // Where only used tokens count, nobody knows before what a request needs.
        let needed = if self.rules.counted == CountedTokens::Billed { 1 } else { charge };
        match self.tokens.room() {
            Some(room) if needed > room => {
                QuotaVerdict::TokensFull { retry_after: self.tokens.until_room(now, needed) }
            }
            _ => QuotaVerdict::Admitted,
        }
    }

    fn apply_limits(&mut self) {
        let whole = self.limits.tpm.map(|tpm| per_span(tpm, self.window));
        let quota = whole.map(|whole| cut(whole, self.rules.cut));
        self.tokens.set_limit(quota);
        self.open.quota = quota;
        if let (Some(gateway), Some(tpm)) = (&mut self.gateway, self.rules.gateway_tpm) {
            gateway.set_limit(Some(per_span(tpm, self.window)));
        }
    }

    /// Opens windows that begin with a request.
    fn touch(&mut self, now: Duration) {
        self.tokens.touch(now);
        self.open_until.get_or_insert(now + self.window);
    }

    /// Lets time pass: requests end, slices and windows end, others book.
    fn advance(&mut self, now: Duration) {
        while let Some(Reverse(due)) = self.pending.peek().copied()
            && due.at <= now
        {
            self.pending.pop();
            self.pass_until(due.at);
            self.count_usage(due);
        }
        self.pass_until(now);
    }

    fn pass_until(&mut self, now: Duration) {
        let now = now.max(self.latest);
        if let Some(end) = self.open_until.filter(|end| now >= *end) {
            self.book_foreign_tokens(end);
            self.tokens.advance(now);
            self.close_window(now);
        }
        self.latest = now;
        self.tokens.advance(now);
        self.slices.advance(now);
        if let Some(gateway) = &mut self.gateway {
            gateway.advance(now);
        }
        self.book_foreign_tokens(now);
    }

    /// Counts the tokens of a request that has ended.
    fn count_usage(&mut self, due: PendingUsage) {
        if self.rules.counted == CountedTokens::Billed {
            self.tokens.book(due.at.max(self.latest), due.used);
            self.open.charged += due.used;
        } else if due.used < due.estimate {
            let back = self.tokens.give_back(due.booked_at, due.estimate - due.used);
            self.open.charged = self.open.charged.saturating_sub(back);
        } else {
            let more = due.used - due.estimate;
            self.tokens.book(due.at.max(self.latest), more);
            self.open.charged += more;
        }
    }

    /// Closes the open ledger window and opens the one that `now` lies in.
    fn close_window(&mut self, now: Duration) {
        let by_first_request = self.rules.kind == MeterKind::FirstRequestWindow;
        let clock = whole_spans(now, self.window);
        let next = self.open.index + u64::from(self.open.admitted + self.open.refused > 0);
        let index = if by_first_request { next } else { clock };
        let (starts, ends) = (span_times(self.window, clock), span_times(self.window, clock + 1));
        self.open_until = (!by_first_request).then_some(ends);
        let fresh = QuotaWindow { index, quota: self.open.quota, ..QuotaWindow::default() };
        let over = std::mem::replace(&mut self.open, fresh);
        if over.admitted + over.refused > 0 {
            if self.closed.len() == MAX_CLOSED_WINDOWS {
                self.closed.pop_front();
            }
            self.closed.push_back(over);
        }
        self.slots_taken = 0;
        if !by_first_request {
            self.foreign_booked_until = self.foreign_booked_until.max(starts);
        }
    }

    fn book_foreign_tokens(&mut self, until: Duration) {
        let Some(others) = self.foreign_traffic else { return };
        let requested = others.tokens_between(self.foreign_booked_until, until);
        let booked = requested.min(self.tokens.room().unwrap_or(u64::MAX));
        if booked > 0 {
            self.touch(until);
            self.tokens.book(until, booked);
            self.open.others += booked;
        }
        self.foreign_booked_until = self.foreign_booked_until.max(until);
    }
}

#[cfg(test)]
mod tests {
    use super::super::duty_cycle::DutyCycle;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const SECOND: Duration = Duration::from_secs(1);

    fn quota(tpm: Option<u64>, rpm: Option<u64>) -> ServiceQuota {
        ServiceQuota::new(QuotaLimits { tpm, rpm }, MINUTE, SECOND)
    }

    #[test]
    fn tokens_are_booked_until_the_window_is_full_and_come_back_with_the_next() {
        let mut quota = quota(Some(1_000), None);
        let at = Duration::from_secs(15);
        assert_eq!(quota.admit(at, 600), QuotaVerdict::Admitted);
        let retry_after = Duration::from_secs(45);
        assert_eq!(quota.admit(at, 401), QuotaVerdict::TokensFull { retry_after });
        assert_eq!(
            quota.admit(at, 400),
            QuotaVerdict::Admitted,
            "the refused call booked no tokens"
        );
        assert_eq!(quota.status(at).remaining_tokens, Some(0));
        assert_eq!(quota.admit(MINUTE, 1_000), QuotaVerdict::Admitted);
    }

    #[test]
    fn a_short_window_keeps_the_rate() {
        let window = Duration::from_secs(6);
        let limits = QuotaLimits { tpm: Some(60_000), rpm: None };
        let mut quota = ServiceQuota::new(limits, window, SECOND);
        assert_eq!(quota.admit(Duration::ZERO, 6_000), QuotaVerdict::Admitted);
        assert_eq!(
            quota.admit(Duration::ZERO, 1),
            QuotaVerdict::TokensFull { retry_after: window },
            "a tenth of a minute has a tenth of the tokens"
        );
    }

    #[test]
    fn a_request_larger_than_the_window_is_sent_away_for_a_day() {
        let mut quota = quota(Some(1_000), None);
        let never = QuotaVerdict::TokensFull { retry_after: NEVER_RETRY_AFTER };
        assert_eq!(quota.admit(Duration::ZERO, 1_001), never);
    }

    #[test]
    fn requests_are_judged_in_slices() {
        let mut quota = quota(None, Some(600));
        let at = Duration::from_millis(2_250);
        for _ in 0..10 {
            assert_eq!(quota.admit(at, 1), QuotaVerdict::Admitted);
        }
        let retry_after = Duration::from_millis(750);
        assert_eq!(quota.admit(at, 1), QuotaVerdict::RequestsFull { retry_after });
        assert_eq!(quota.admit(at + retry_after, 1), QuotaVerdict::Admitted);
    }

    #[test]
    fn ten_second_slices_allow_ten_seconds_of_requests_at_once() {
        let limits = QuotaLimits { tpm: None, rpm: Some(60) };
        let mut quota = ServiceQuota::new(limits, MINUTE, Duration::from_secs(10));
        let admitted = (0..20).filter(|_| quota.admit(SECOND, 1) == QuotaVerdict::Admitted).count();
        assert_eq!(admitted, 10);
    }

    #[test]
    fn slow_rates_are_kept_over_many_slices() {
        for rpm in [1, 7, 30, 90, 601] {
            let mut quota = quota(None, Some(rpm));
            let asked = (0..60_000).step_by(50);
            let admitted = asked
                .filter(|ms| quota.admit(Duration::from_millis(*ms), 1) == QuotaVerdict::Admitted);
            assert_eq!(admitted.count() as u64, rpm, "{rpm} RPM over a minute");
        }
    }

    #[test]
    fn a_call_refused_for_requests_learns_when_the_next_slot_is() {
        let mut quota = quota(None, Some(6));
        assert_eq!(quota.admit(Duration::ZERO, 1), QuotaVerdict::Admitted);
        let retry_after = Duration::from_secs(10);
        assert_eq!(quota.admit(Duration::ZERO, 1), QuotaVerdict::RequestsFull { retry_after });
        assert_eq!(quota.admit(retry_after, 1), QuotaVerdict::Admitted);
    }

    #[test]
    fn calls_refused_for_tokens_use_up_request_slots() {
        let mut quota = quota(Some(10), Some(120));
        let never = QuotaVerdict::TokensFull { retry_after: NEVER_RETRY_AFTER };
        assert_eq!(quota.admit(Duration::ZERO, 11), never);
        assert_eq!(quota.admit(Duration::ZERO, 11), never);
        assert!(matches!(quota.admit(Duration::ZERO, 1), QuotaVerdict::RequestsFull { .. }));
        assert_eq!(quota.status(Duration::ZERO).remaining_requests, Some(118));
    }

    #[test]
    fn limits_change_at_once_and_bookings_stay() {
        let mut quota = quota(Some(1_000), None);
        assert_eq!(quota.admit(Duration::ZERO, 900), QuotaVerdict::Admitted);
        quota.set_limits(SECOND, QuotaLimits { tpm: Some(500), rpm: None });
        assert!(matches!(quota.admit(SECOND, 1), QuotaVerdict::TokensFull { .. }));
        quota.set_limits(SECOND, QuotaLimits { tpm: None, rpm: None });
        assert_eq!(quota.admit(SECOND, 1_000_000), QuotaVerdict::Admitted);
    }

    #[test]
    fn others_book_beside_us_and_are_told_apart() {
        let mut quota = quota(Some(1_000), None);
        quota.set_foreign_traffic(
            Duration::ZERO,
            Some(ForeignTraffic { tpm: 600, bursts: DutyCycle::ALWAYS }),
        );
        assert_eq!(quota.admit(SECOND * 30, 700), QuotaVerdict::Admitted);
        assert_eq!(quota.status(SECOND * 30).remaining_tokens, Some(0), "300 are the others'");
        assert!(matches!(quota.admit(SECOND * 31, 1), QuotaVerdict::TokensFull { .. }));
        assert_eq!(quota.admit(SECOND * 90, 500), QuotaVerdict::Admitted);
        let seen: Vec<_> = quota.windows().map(|w| (w.charged, w.others)).collect();
        assert_eq!(seen, [(700, 300), (500, 300)], "a full window refuses the others too");
        quota.set_foreign_traffic(SECOND * 90, None);
        assert_eq!(quota.status(SECOND * 100).remaining_tokens, Some(200));
    }

    #[test]
    fn who_comes_late_over_the_edge_of_a_window_does_not_open_the_old_one_again() {
        let mut quota = quota(Some(1_000), Some(60));
        assert_eq!(quota.admit(MINUTE, 600), QuotaVerdict::Admitted);
        let late = MINUTE - Duration::from_millis(1);
        assert!(matches!(quota.admit(late, 600), QuotaVerdict::RequestsFull { .. }));
        assert_eq!(quota.windows().count(), 1);
    }

    #[test]
    fn the_ledger_sees_windows_with_traffic_only_and_not_for_ever() {
        let mut quota = quota(Some(100), None);
        for minute in (0..4_000).step_by(2) {
            quota.admit(MINUTE * minute, 60);
            quota.admit(MINUTE * minute, 60);
        }
        let windows: Vec<_> = quota.windows().cloned().collect();
        assert_eq!(windows.len(), MAX_CLOSED_WINDOWS + 1, "the open one is extra");
        let last = QuotaWindow {
            index: 3_998,
            quota: Some(100),
            charged: 60,
            others: 0,
            admitted: 1,
            refused: 1,
        };
        assert_eq!(windows.last(), Some(&last));
    }
}
