//! Estimate of a deployment's token quota and of the rate to spend it at, from the configuration,
//! the headers and the 429s.
//!
//! - The **limit** is the one in the headers, else the inferred one, else the configured one.
//! - Without headers it is **inferred**: the tokens admitted in a window until its first 429. From
//!   there it grows while windows pass without a 429, and falls back at the next one.
//! - The **rate** is what is left of the window over the time that is left of it, so that whatever
//!   went wrong in a window is made up for in the same window.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::booking::Booking;
use super::charge_factor::estimate_factor;
use super::sliding_window::SlidingWindowSum;
use super::window::{CountingWindows, DrainRates, HeaderNews};
use domain::headers::RateHeaders;

/// Part of the quota that is paced out where the window is not known. The rest absorbs that
/// requests reach the service a little later and closer together than they left.
const PACED_PART: f64 = 0.995;

/// Part of a window that is left unused, at first and after 429s.
const MARGIN: f64 = 0.001;
const LARGEST_MARGIN: f64 = 0.01;

/// Bounds of the rate that catches up or slows down, as parts of the plain rate.
const CATCH_UP: f64 = 2.0;
const SLOW_DOWN: f64 = 0.05;

/// Shortest time, in seconds, over which the rest of a window is spread: the pace is adjusted as
/// often.
const SHORTEST_SPREAD: f64 = 0.1;

/// Growth of an inferred quota after a window without a 429, at first and at most.
const GROWTH: f64 = 0.02;
const GREATEST_GROWTH: f64 = 0.32;
/// Windows after a 429 in which it does not grow.
const REST_WINDOWS: u32 = 2;

/// Least tokens admitted, in charges of the throttled call, before a quota is inferred; and the
/// remaining time below which a 429 may be about a rate.
const LEAST_ADMITTED: f64 = 10.0;
const NEAR_END: Duration = Duration::from_secs(5);

/// Bounds of the factor; a value beyond them is no estimate but a misunderstanding.
const FACTORS: (f64, f64) = (0.1, 10.0);

/// Sample counts at which the factor is estimated within a window.
const ESTIMATE_AT: [usize; 3] = [32, 128, 500];

/// Learns the token quota of one deployment.
pub struct QuotaEstimator {
    name: Box<str>,
    configured: Option<f64>,
    reported: Option<f64>,
    inferred: Option<InferredQuota>,
    factor: Option<f64>,
    external_rate: f64,
    margin: f64,
    windows: CountingWindows,
    booked: SlidingWindowSum,
    /// Time of creation: nothing was booked before.
    first: Instant,
    /// All tokens booked and not throttled, by our measure.
    total: f64,
    share: f64,
    reserve: f64,
}

/// Quota inferred from 429s.
struct InferredQuota {
    per_minute: f64,
    growth: f64,
    /// End of the window in which it was inferred or last grew.
    until: Instant,
    rest: u32,
}

/// Tokens that may be booked before a window ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowRoom {
    /// Tokens by our measure.
    pub tokens: u64,
    /// Start of the next window.
    pub until: Instant,
}

impl QuotaEstimator {
    pub fn new(name: &str, tpm: Option<u64>, reserve: f64, now: Instant) -> Self {
        Self {
            name: name.into(),
            configured: tpm.map(|tpm| tpm as f64),
            reported: None,
            inferred: None,
            factor: None,
            external_rate: 0.0,
            margin: MARGIN,
            windows: CountingWindows::default(),
            booked: SlidingWindowSum::new(now),
            first: now,
            total: 0.0,
            share: 1.0,
            reserve,
        }
    }

    /// Returns the tokens a minute by the service's measure; `None` while no limit is known.
    pub fn limit(&self) -> Option<f64> {
        let found = self.inferred.as_ref().map(|found| found.per_minute);
        self.reported.or(found).or(self.configured)
    }

    /// Returns the limit where it is not the configured one.
    pub fn learnt(&self) -> Option<f64> {
        self.limit().filter(|limit| Some(*limit) != self.configured)
    }

    /// Returns the service's charge for one token of ours.
    pub fn factor(&self) -> f64 {
        self.factor.unwrap_or(1.0)
    }

    pub fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    /// Returns the largest charge of one request, by our measure.
    pub fn largest(&self) -> u64 {
        // A lowered limit, an inferred one or a factor a little off must not turn a job away: the
        // service says so itself if it never fits.
        let known = self.configured.into_iter().chain(self.reported).reduce(f64::max);
        known.map_or(u64::MAX, |limit| (limit / self.factor().min(1.0)) as u64)
    }

    /// Books a call of this charge; returns the total with it.
    pub fn book(&mut self, charge: u64, now: Instant) -> f64 {
        self.total += charge as f64;
        self.booked.add(charge as f64, now);
        self.total
    }

    /// Learns from the rate limits of a response.
    pub fn observe_headers(&mut self, booking: &Booking, rate_limits: &RateHeaders, now: Instant) {
        self.observe_limit(rate_limits);
        match self.windows.observe_headers(booking, rate_limits, now) {
            HeaderNews::Nothing => {}
            HeaderNews::CurrentWindow => {
                self.windows.add_sample(booking, rate_limits);
                if ESTIMATE_AT.contains(&self.windows.samples().len()) {
                    self.update_estimates();
                }
            }
            HeaderNews::NewWindow => {
                self.update_estimates();
                self.margin = (self.margin / 2.0).max(MARGIN);
                self.windows.samples().clear();
                self.windows.add_sample(booking, rate_limits);
            }
        }
    }

    fn observe_limit(&mut self, rate_limits: &RateHeaders) {
        let Some(limit) = rate_limits.limit_tokens.map(|limit| limit as f64) else { return };
        if self.reported == Some(limit) {
            return;
        }
        if self.limit() != Some(limit) {
            let before = self.limit().map_or_else(|| "unknown".to_owned(), |l| format!("{l:.0}"));
            info!(deployment.name = %self.name, "the service reports {limit:.0} tokens a minute (before: {before})");
        }
        self.reported = Some(limit);
        self.inferred = None;
        // The remaining tokens belonged to another quota.
        self.windows.forget();
    }

    /// Estimates the factor and the external rate.
    fn update_estimates(&mut self) {
        let course = self.windows.consumption();
        if let Some(seen) = estimate_factor(self.windows.samples()) {
            let seen = self.without_siblings(seen).clamp(FACTORS.0, FACTORS.1);
            let before = self.factor;
            let factor = before.map_or(seen, |factor| (factor + seen) / 2.0);
            self.factor = Some(factor);
            if (before.unwrap_or(1.0) / factor - 1.0).abs() > 0.1 {
                info!(deployment.name = %self.name, "the service charges {factor:.2} tokens for each that we count");
            }
        }
        let limit = self.limit().unwrap_or(0.0);
        if let Some((gone, booked, seconds)) = course.filter(|(_, _, seconds)| *seconds >= 1.0) {
            let external_rate = (gone - self.factor() * booked) / seconds;
            // Less than a hundredth of the quota is the noise of calls in flight.
            self.external_rate =
                if external_rate > limit / 60.0 / 100.0 { external_rate } else { 0.0 };
        }
    }

    /// Corrects for siblings: instances that share a quota evenly book so regularly that their part
    /// looks like a factor. Of the two readings the one nearer to the known factor is taken.
    fn without_siblings(&self, seen: f64) -> f64 {
        let off = |factor: f64| (factor / self.factor()).ln().abs();
        let alone = seen * self.share;
        if off(alone) < off(seen) { alone } else { seen }
    }

    /// Refunds a booking that the service did not charge.
    pub fn refund(&mut self, booking: &Booking) {
        let charge = booking.charge as f64;
        self.total = (self.total - charge).max(0.0);
        self.booked.subtract(charge, booking.at);
        self.windows.refund(booking);
    }

    /// Learns from a call that was throttled for tokens until then.
    pub fn observe_throttled(
        &mut self,
        booking: &Booking,
        until: Instant,
        rate_limits: &RateHeaders,
        now: Instant,
    ) {
        self.observe_limit(rate_limits);
        self.refund(booking);
        if self.reported.is_some() {
            self.windows.observe_throttled(booking, until, now);
            self.margin = (self.margin * 2.0).min(LARGEST_MARGIN);
        } else {
            self.infer_quota(booking.charge as f64, until, now);
        }
    }

    /// Returns whether a 429 can be for want of tokens: more may remain than the call needs.
    pub fn may_be_full(&self, booking: &Booking, rate_limits: &RateHeaders) -> bool {
        let needed = booking.charge as f64 * self.factor();
        rate_limits.remaining_tokens.is_none_or(|left| (left as f64) < 1.5 * needed)
    }

    /// Infers the quota where no headers report it: the tokens admitted in this window.
    fn infer_quota(&mut self, charge: f64, until: Instant, now: Instant) {
        if self
            .inferred
            .as_ref()
            .is_some_and(|found| now < found.until && found.rest == REST_WINDOWS)
        {
            // The 429s of one window count once.
            return;
        }
        let period = self.windows.period();
        let began = (until - period).max(self.first);
        let admitted = self.booked.sum_since(began, now);
        if admitted < LEAST_ADMITTED * charge {
            // So few calls are no quota: the 429 has another reason.
            return;
        }
        // An end that is near may be no window's end: then the rate counts.
        let is_rate = until.saturating_duration_since(now) < NEAR_END;
        let span = if is_rate { now.saturating_duration_since(began) } else { period };
        let per_minute = admitted * 60.0 / span.as_secs_f64().max(1.0);
        // A 429 for another reason must not wipe out the known limit.
        let mut per_minute = per_minute.max(self.limit().map_or(0.0, |limit| limit / 2.0));
        if let Some(configured) = self.configured {
            per_minute = per_minute.min(configured);
        }
        info!(deployment.name = %self.name, "throttled after {per_minute:.0} tokens in a minute: taken as its quota");
        self.inferred =
            Some(InferredQuota { per_minute, growth: GROWTH, until, rest: REST_WINDOWS });
    }

    /// Grows an inferred quota by the windows without a 429.
    fn grow(&mut self, now: Instant) {
        let period = self.windows.period();
        let Some(found) = self.inferred.as_mut().filter(|found| now >= found.until) else { return };
        let used = self.booked.sum_since(found.until.max(now - period), now);
        if now < found.until + period {
            return;
        }
        found.until += period;
        if found.rest > 0 {
            found.rest -= 1;
        } else if used >= 0.9 * found.per_minute * self.share * period.as_secs_f64() / 60.0 {
            found.per_minute *= 1.0 + found.growth;
            found.growth = (found.growth * 2.0).min(GREATEST_GROWTH);
        }
        if self.configured.is_some_and(|configured| found.per_minute >= configured) {
            self.inferred = None;
        }
    }

    /// Returns the tokens a minute to pace at, by our measure; `accrued` is there already.
    pub fn rate(&mut self, accrued: u64, now: Instant) -> Option<f64> {
        self.grow(now);
        let limit = self.limit()?;
        let factor = if self.reported.is_some() { self.factor() } else { 1.0 };
        let ours = self.share * (1.0 - self.reserve);
        let plain = limit * ours * PACED_PART / factor;
        let rates = DrainRates { factor, external_rate: self.external_rate };
        let view = self.windows.view(now, self.total, limit, rates).filter(|view| view.is_observed);
        let Some(view) = view.filter(|_| self.reported.is_some()) else { return Some(plain) };
        let kept = limit * view.minutes * (self.reserve + self.margin);
        let left = view.left - kept - factor * accrued as f64;
        let seconds = view.ends.0.saturating_duration_since(now).as_secs_f64().max(SHORTEST_SPREAD);
        // Siblings take their part of the rest; foreign clients go on at their rate.
        let siblings = (1.0 - self.share) * limit / 60.0;
        let foreign_rate = (self.external_rate - siblings).max(0.0);
        let rate = (left / seconds - foreign_rate) * self.share / factor * 60.0;
        Some(rate.clamp(plain * SLOW_DOWN, plain * CATCH_UP))
    }

    /// Returns the room in the open window; `None`: nothing is known to be full.
    pub fn room(&mut self, now: Instant) -> Option<WindowRoom> {
        let limit = self.reported?;
        let rates = DrainRates { factor: self.factor(), external_rate: 0.0 };
        let view = self.windows.view(now, self.total, limit, rates)?;
        let kept = limit * view.minutes * (self.reserve + self.margin);
        let tokens = ((view.left - kept).max(0.0) / self.factor()) as u64;
        // A job that fits no window is not held back by this one.
        Some(WindowRoom { tokens, until: view.ends.1 })
    }

    /// Returns all tokens booked and not throttled.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// Returns the tokens that a whole window lets us book, by our measure.
    pub fn whole_window(&self) -> u64 {
        let minutes = self.windows.period().as_secs_f64() / 60.0;
        let part = (1.0 - self.reserve - self.margin) * minutes;
        self.reported.map_or(u64::MAX, |limit| (limit * part / self.factor()) as u64)
    }
}
