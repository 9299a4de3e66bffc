//! Quota of tokens and requests a minute: how fast it is spent, and what is left of it.
//!
//! Pure. The standard and the flex side of a deployment are two deployments here and share one
//! quota; all others have their own. It joins the learnt token quota, the pacers of tokens and
//! requests, and the demand meter.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::booking::Booking;
use super::demand::DemandMeter;
use super::limits::DeploymentLimits;
use super::pace::{AccrualWait, RatePacer};
use super::quota_estimator::QuotaEstimator;
use domain::deployment::ServiceKind;
use domain::headers::RateHeaders;

/// Part of the requests' quota that is paced out: the service judges them in slices as short as
/// one second.
const PACED_REQUESTS: f64 = 0.98;

/// Time whose accrual may be caught up on after a late wake-up.
const TOKEN_SLACK: Duration = Duration::from_millis(250);
const REQUEST_SLACK: Duration = Duration::from_millis(50);

/// Interval of adjusting the pace, and the relative error that is left alone.
const ADJUST_INTERVAL: Duration = Duration::from_millis(100);
const RATE_STEP: f64 = 0.005;

/// Quota as its deployments see it.
pub struct DeploymentQuota {
    name: Box<str>,
    estimator: QuotaEstimator,
    meter: DemandMeter,
    /// It is counted in tokens a minute at all.
    is_metered: bool,
    rpm: Option<u64>,
    reserve: f64,
    share: f64,
    tokens: Option<RatePacer>,
    requests: Option<RatePacer>,
    adjusted_at: Option<Instant>,
    remaining: Option<WindowRemainder>,
}

/// Limit that a call has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExhaustedLimit {
    Tokens,
    Requests,
}

/// Rest of a window when it was last looked at.
#[derive(Clone, Copy)]
struct WindowRemainder {
    /// Total up to which we may book.
    tokens: f64,
    /// Room of a whole window.
    whole: u64,
    until: Instant,
}

impl DeploymentQuota {
    pub fn new(name: &str, limits: &DeploymentLimits, now: Instant) -> Self {
        let mut quota = Self {
            name: name.into(),
            estimator: QuotaEstimator::new(name, limits.tpm, limits.reserve, now),
            meter: DemandMeter::new(now),
            is_metered: limits.service != ServiceKind::Provisioned,
            rpm: limits.rpm,
            reserve: limits.reserve,
            share: 1.0,
            tokens: None,
            requests: None,
            adjusted_at: None,
            remaining: None,
        };
        quota.set_requests(now);
        quota.adjust_pace(now);
        quota
    }

    /// Returns the largest call that the window has room for, and until when larger ones must wait.
    pub fn room(&mut self, now: Instant) -> (u64, Option<Instant>) {
        let is_over = self.remaining.is_some_and(|left| now >= left.until);
        if is_over
            || self
                .adjusted_at
                .is_none_or(|at| now.saturating_duration_since(at) >= ADJUST_INTERVAL)
        {
            self.adjust_pace(now);
        }
        let Some(seen) = self.remaining.filter(|left| now < left.until) else {
            return (self.estimator.largest(), None);
        };
        // Since then only our own bookings count: the next look is soon.
        let left = (seen.tokens - self.estimator.total()).max(0.0) as u64;
        if left >= seen.whole {
            // A call larger than any window is for the service to judge.
            return (self.estimator.largest(), None);
        }
        (left, Some(seen.until))
    }

    /// Accrues what a call of this charge needs.
    ///
    /// # Errors
    /// Returns when to ask again, and when to expect it.
    pub fn accrue(&mut self, charge: u64, now: Instant) -> Result<(), AccrualWait> {
        let tokens = self.tokens.as_mut().map_or(Ok(()), |tokens| tokens.accrue(charge, now));
        let requests = self.requests.as_mut().map_or(Ok(()), |requests| requests.accrue(1, now));
        let accrued = match (tokens, requests) {
            (Err(a), Err(b)) => Err(AccrualWait {
                retry_at: a.retry_at.min(b.retry_at),
                expected: a.expected.max(b.expected),
            }),
            (tokens, requests) => tokens.and(requests),
        };
        if let Err(later) = &accrued {
            self.start_waiting(now, later.retry_at);
        }
        accrued
    }

    /// Returns the limit that is short for a call of this charge, and for how long. Accrues
    /// nothing.
    pub fn shortage(&self, charge: u64, now: Instant) -> Option<(ExhaustedLimit, Duration)> {
        if let Some(left) = self.remaining.filter(|left| now < left.until) {
            let room = (left.tokens - self.estimator.total()).max(0.0) as u64;
            if room < left.whole && charge > room {
                return Some((ExhaustedLimit::Tokens, left.until - now));
            }
        }
        let missing =
            |pace: &Option<RatePacer>, cells| pace.as_ref().map(|pace| pace.time_until(cells));
        let tokens = missing(&self.tokens, charge).map(|over| (over, ExhaustedLimit::Tokens));
        let requests = missing(&self.requests, 1).map(|over| (over, ExhaustedLimit::Requests));
        let (over, lack) = tokens.into_iter().chain(requests).max_by_key(|(over, _)| *over)?;
        (!over.is_zero()).then_some((lack, over))
    }

    /// Returns the rate at which tokens are spent while there are calls to make.
    pub fn tokens_a_minute(&self) -> Option<f64> {
        self.tokens.as_ref().map(RatePacer::per_minute)
    }

    /// Returns the same as [`Self::tokens_a_minute`], of requests.
    pub fn requests_a_minute(&self) -> Option<f64> {
        self.requests.as_ref().map(RatePacer::per_minute)
    }

    /// Records that a job waits for it, until then at the longest.
    pub fn start_waiting(&mut self, now: Instant, until: Instant) {
        self.meter.start_waiting(now, until);
    }

    pub fn stop_waiting(&mut self, now: Instant) {
        self.meter.stop_waiting(now);
    }

    /// Returns what could have been used since the last call, as a part of the whole.
    pub fn demand(&mut self, now: Instant) -> f64 {
        self.meter.demand(now)
    }

    /// Books a call whose charge has accrued; returns the total with it.
    pub fn book(&mut self, charge: u64, now: Instant) -> f64 {
        if let Some(tokens) = &mut self.tokens {
            tokens.spend(charge);
        }
        if let Some(requests) = &mut self.requests {
            requests.spend(1);
        }
        let limit = self.estimator.limit();
        let by_tokens = limit.map_or(0.0, |limit| charge as f64 / limit.max(1.0));
        let by_requests = self.rpm.map_or(0.0, |rpm| 1.0 / rpm as f64);
        self.meter.add_usage(by_tokens.max(by_requests));
        self.estimator.book(charge, now)
    }

    /// Learns from the rate limits of a response that is no 429.
    pub fn observe_headers(&mut self, booking: &Booking, rate_limits: &RateHeaders, now: Instant) {
        self.estimator.observe_headers(booking, rate_limits, now);
        self.pace_if_new(now);
    }

    /// Learns from a 429 that lasts until then, perhaps for want of tokens.
    pub fn observe_throttled(
        &mut self,
        booking: &Booking,
        until: Instant,
        rate_limits: &RateHeaders,
        now: Instant,
    ) {
        if self.estimator.may_be_full(booking, rate_limits) {
            self.estimator.observe_throttled(booking, until, rate_limits, now);
        }
        self.pace_if_new(now);
    }

    /// Takes back the booking of a call that was never sent.
    pub fn cancel(&mut self, booking: &Booking) {
        self.estimator.refund(booking);
        if let Some(tokens) = &mut self.tokens {
            tokens.give_back(booking.charge);
        }
        if let Some(requests) = &mut self.requests {
            requests.give_back(1);
        }
    }

    /// Refunds the booking of a call that was throttled for another reason.
    pub fn refund(&mut self, booking: &Booking) {
        self.estimator.refund(booking);
    }

    /// Learns the requests a minute from the rate limits of a response.
    pub fn observe_request_limit(&mut self, rate_limits: &RateHeaders, now: Instant) {
        let Some(limit) = rate_limits.limit_requests.filter(|limit| Some(*limit) != self.rpm)
        else {
            return;
        };
        info!(deployment.name = %self.name, "the service reports {limit} requests a minute");
        self.rpm = Some(limit);
        self.set_requests(now);
    }

    /// Lets this instance use only a part of it.
    pub fn set_share(&mut self, share: f64, now: Instant) {
        self.share = share;
        self.estimator.set_share(share);
        self.set_requests(now);
        self.adjust_pace(now);
    }

    /// Returns whether it limits the calls, so that their number in flight need not.
    pub fn is_paced(&self) -> bool {
        self.tokens.is_some() || self.requests.is_some()
    }

    /// Returns whether tokens a minute are known and paced.
    pub fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Returns the tokens a minute by the service's measure; `None` while no limit is known.
    pub fn limit(&self) -> Option<f64> {
        self.estimator.limit()
    }

    /// Returns the limit where it is not the configured one.
    pub fn learnt(&self) -> Option<f64> {
        self.estimator.learnt()
    }

    /// Returns the service's charge for one token of ours.
    pub fn factor(&self) -> f64 {
        self.estimator.factor()
    }

    /// Returns the largest charge of one request.
    pub fn largest(&self) -> u64 {
        self.estimator.largest()
    }

    pub fn rpm(&self) -> Option<u64> {
        self.rpm
    }

    pub fn share(&self) -> f64 {
        self.share
    }

    fn pace_if_new(&mut self, now: Instant) {
        if self.tokens.is_none() && self.estimator.limit().is_some() {
            self.adjust_pace(now);
        }
    }

    fn set_requests(&mut self, now: Instant) {
        let Some(rpm) = self.rpm else { return };
        let rate = rpm as f64 * PACED_REQUESTS * (1.0 - self.reserve) * self.share;
        match &mut self.requests {
            Some(requests) => requests.set_rate(rate, now),
            none => *none = Some(RatePacer::new(rate, REQUEST_SLACK, now)),
        }
    }

    fn adjust_pace(&mut self, now: Instant) {
        self.adjusted_at = Some(now);
        self.refresh_window(now);
        if !self.is_metered {
            return;
        }
        let accrued = self.tokens.as_ref().map_or(0, RatePacer::accrued);
        let Some(rate) = self.estimator.rate(accrued, now) else { return };
        match &mut self.tokens {
            Some(tokens) if (tokens.per_minute() / rate - 1.0).abs() > RATE_STEP => {
                tokens.set_rate(rate, now);
            }
            Some(_) => {}
            none => *none = Some(RatePacer::new(rate, TOKEN_SLACK, now)),
        }
    }

    fn refresh_window(&mut self, now: Instant) {
        let whole = self.estimator.whole_window().min(self.estimator.largest());
        let total = self.estimator.total();
        self.remaining = self.estimator.room(now).map(|room| WindowRemainder {
            tokens: room.tokens as f64 + total,
            whole,
            until: room.until,
        });
    }
}
