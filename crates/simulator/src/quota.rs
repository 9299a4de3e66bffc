//! Service-side quota of one deployment: tokens per window, requests per slice.
//!
//! Pure: time is passed in as the span since the simulator started, so the tests need no clock. It
//! shares nothing with `admission/` on purpose: that side estimates what this side decides.
//! `capacity` calls it once per request; `ledger_snapshot` lists the windows it closed.
//!
//! The rules, after the published quota pages:
//! - Tokens: each admitted request books its charge on arrival, and the counter restarts at zero
//!   with each window. A refused request books no tokens.
//! - Requests: the rate is enforced in slices of 1 or 10 s. A call takes its slot in the slice
//!   before its tokens are checked and does not get it back, so that calls refused for tokens count
//!   against the requests too. Calls that find the slice full change nothing.
//! - A request whose charge exceeds a whole window can never pass: it gets a Retry-After of one
//!   day, as from the service.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use super::duty_cycle::ForeignTraffic;

/// Retry-After of the service for a request that is larger than its whole quota.
pub const NEVER_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// Closed windows that are kept for the ledger; the oldest is dropped first.
const MAX_CLOSED_WINDOWS: usize = 1_000;

const MINUTE_MS: u128 = 60_000;

/// Quota limits of a deployment; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    pub tpm: Option<u64>,
    pub rpm: Option<u64>,
}

/// Bookings of one window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QuotaWindow {
    /// Number of the window since the simulator started, from 0.
    pub index: u64,
    /// Tokens that may be booked in this window; absent when unlimited.
    pub quota: Option<u64>,
    /// Tokens that were booked.
    pub charged: u64,
    /// Tokens that other callers booked.
    pub others: u64,
    /// Requests that were admitted.
    pub admitted: u64,
    /// Requests that were refused, for tokens or for requests.
    pub refused: u64,
}

/// Decision of the quota on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaVerdict {
    Admitted,
    TokensFull { retry_after: Duration },
    RequestsFull { retry_after: Duration },
}

/// Quota status that the rate-limit headers report after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaStatus {
    pub limits: QuotaLimits,
    /// Tokens that can still be booked before the window ends; present when there is a limit.
    pub remaining_tokens: Option<u64>,
    pub remaining_requests: Option<u64>,
    pub reset_tokens: Duration,
    pub reset_requests: Duration,
}

/// Quota counters of one deployment.
#[derive(Debug)]
pub struct ServiceQuota {
    limits: QuotaLimits,
    window: Duration,
    slice: Duration,
    open: QuotaWindow,
    /// Request slots taken in the open window.
    slots_taken: u64,
    slice_index: u64,
    slice_used: u64,
    closed: VecDeque<QuotaWindow>,
    foreign_traffic: Option<ForeignTraffic>,
    /// Time up to which the foreign tokens are booked.
    foreign_booked_until: Duration,
}

impl ServiceQuota {
    pub fn new(limits: QuotaLimits, window: Duration, slice: Duration) -> Self {
        let quota = limits.tpm.map(|tpm| per_span(tpm, window));
        let open = QuotaWindow { quota, ..QuotaWindow::default() };
        Self {
            limits,
            window,
            slice,
            open,
            slots_taken: 0,
            slice_index: 0,
            slice_used: 0,
            closed: VecDeque::new(),
            foreign_traffic: None,
            foreign_booked_until: Duration::ZERO,
        }
    }

    /// Decides one request and books its cost.
    pub fn admit(&mut self, now: Duration, charge: u64) -> QuotaVerdict {
        self.advance(now);
        let verdict = self.judge(now, charge);
        if !matches!(verdict, QuotaVerdict::RequestsFull { .. }) {
            self.slice_used += 1;
            self.slots_taken += 1;
        }
        match verdict {
            QuotaVerdict::Admitted => {
                self.open.charged += charge;
                self.open.admitted += 1;
            }
            QuotaVerdict::TokensFull { .. } | QuotaVerdict::RequestsFull { .. } => {
                self.open.refused += 1
            }
        }
        verdict
    }

    /// Changes the limits from now on; existing bookings stay.
    pub fn set_limits(&mut self, now: Duration, limits: QuotaLimits) {
        self.advance(now);
        self.limits = limits;
        self.open.quota = limits.tpm.map(|tpm| per_span(tpm, self.window));
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
        QuotaStatus {
            limits: self.limits,
            remaining_tokens: self.open.room(),
            remaining_requests: self.limits.rpm.map(|r| minute(r).saturating_sub(self.slots_taken)),
            reset_tokens: until_next(now, self.window),
            reset_requests: until_next(now, self.slice),
        }
    }

    /// Returns the windows so far that had requests, the open one last.
    pub fn windows(&self) -> impl Iterator<Item = &QuotaWindow> {
        self.closed.iter().chain(Some(&self.open)).filter(|w| w.admitted + w.refused > 0)
    }

    pub fn clear_windows(&mut self) {
        self.closed.clear();
    }

    fn judge(&self, now: Duration, charge: u64) -> QuotaVerdict {
        if let Some(rpm) = self.limits.rpm
            && self.slice_used >= self.slice_allowance(rpm, self.slice_index)
        {
            return QuotaVerdict::RequestsFull {
                retry_after: self.until_next_free_slice(now, rpm),
            };
        }
        match self.open.quota {
            Some(quota) if charge > quota => {
                QuotaVerdict::TokensFull { retry_after: NEVER_RETRY_AFTER }
            }
            Some(_) if self.open.room().is_some_and(|room| charge > room) => {
                QuotaVerdict::TokensFull { retry_after: until_next(now, self.window) }
            }
            _ => QuotaVerdict::Admitted,
        }
    }

    /// Returns the requests that slice number `index` may take: integers whose sum follows the
    /// rate, so that 90 RPM are 2, 1, 2, 1 … in slices of a second and not 2 each.
    fn slice_allowance(&self, rpm: u64, index: u64) -> u64 {
        let until = |slices: u64| {
            let span_ms = self.slice.as_millis() * u128::from(slices);
            (u128::from(rpm) * span_ms).div_ceil(MINUTE_MS) as u64
        };
        until(index + 1) - until(index)
    }

    /// Returns the time until a slice begins that takes any request at all.
    fn until_next_free_slice(&self, now: Duration, rpm: u64) -> Duration {
        if rpm == 0 {
            return NEVER_RETRY_AFTER;
        }
        // At less than one request per slice, some slices take none at all.
        let mut index = self.slice_index + 1;
        while self.slice_allowance(rpm, index) == 0 {
            index += 1;
        }
        span_times(self.slice, index).saturating_sub(now)
    }

    /// Closes the slice and the window that have ended, and books the foreign tokens.
    fn advance(&mut self, now: Duration) {
        let slice_index = whole_spans(now, self.slice);
        // Threads may arrive in another order than they read the clock: a late one counts at the
        // latest time seen.
        if slice_index > self.slice_index {
            self.slice_index = slice_index;
            self.slice_used = 0;
        }
        let index = whole_spans(now, self.window);
        if index > self.open.index {
            self.book_foreign_tokens(span_times(self.window, self.open.index + 1));
            let quota = self.limits.tpm.map(|tpm| per_span(tpm, self.window));
            let fresh = QuotaWindow { index, quota, ..QuotaWindow::default() };
            let over = std::mem::replace(&mut self.open, fresh);
            if over.admitted + over.refused > 0 {
                if self.closed.len() == MAX_CLOSED_WINDOWS {
                    self.closed.pop_front();
                }
                self.closed.push_back(over);
            }
            self.slots_taken = 0;
            self.foreign_booked_until = span_times(self.window, index);
        }
        self.book_foreign_tokens(now);
    }

    fn book_foreign_tokens(&mut self, until: Duration) {
        let Some(others) = self.foreign_traffic else { return };
        let requested = others.tokens_between(self.foreign_booked_until, until);
        self.open.others += requested.min(self.open.room().unwrap_or(u64::MAX));
        self.foreign_booked_until = self.foreign_booked_until.max(until);
    }
}

impl QuotaWindow {
    /// Returns the tokens that can still be booked.
    fn room(&self) -> Option<u64> {
        self.quota.map(|quota| quota.saturating_sub(self.charged + self.others))
    }
}

/// Returns the share of a per-minute rate that falls into `span`.
fn per_span(per_minute: u64, span: Duration) -> u64 {
    (u128::from(per_minute) * span.as_millis() / MINUTE_MS) as u64
}

fn whole_spans(now: Duration, span: Duration) -> u64 {
    (now.as_nanos() / span.as_nanos()) as u64
}

fn span_times(span: Duration, count: u64) -> Duration {
    Duration::from_nanos_u128(span.as_nanos() * u128::from(count))
}

fn until_next(now: Duration, span: Duration) -> Duration {
    span_times(span, whole_spans(now, span) + 1) - now
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
