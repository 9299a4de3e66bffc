//! State of one deployment: what it may take now, and what its answers taught us.
//!
//! Pure: every decision takes `now`. It joins parts that each know one thing: the calls in flight,
//! the pause that a 429 asked for, and the breaker. The quota is passed in, since deployments may
//! share one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Booking;
use super::breaker::{Breaker, BreakerDecision};
use super::call_averages::CallAverages;
use super::concurrency_limit::ConcurrencyLimit;
pub use super::limits::DeploymentLimits;
use super::quota::DeploymentQuota;
use super::sliding_window::SlidingWindowSum;
use domain::deployment::{BreakerState, DeploymentSnapshot, ServiceKind};
use domain::headers::RateHeaders;

/// Time that a deployment may stay missing before it leaves the pool, if others can do its work:
/// right after its creation it takes some minutes (Azure docs: DeploymentNotFound). Then the pause
/// between two attempts.
const MISSING_FOR: Duration = Duration::from_secs(300);
const MISSING_PAUSE: Duration = Duration::from_secs(15);

const MINUTE: Duration = Duration::from_secs(60);

/// Shortest pause of a flex deployment without room: its 429 is about the service's capacity.
const FLEX_PAUSE: Duration = Duration::from_secs(5);

/// Result of a call, as far as it concerns the deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFeedback {
    /// An answer, or a refusal of the job itself.
    Responded,
    /// Transient error of its own: 5xx, a time-out, a reset.
    Transient { why: String },
    /// Nothing is known of it; perhaps no call was made.
    Unclear,
    /// 429: nothing more until then.
    Throttled { until: Instant },
    /// No connection could be made: nothing was sent.
    Unreachable { why: String },
    /// There is no such deployment, or not yet.
    Missing { why: String },
    /// It will never answer as configured: wrong key, no permission, an unknown service tier.
    Misconfigured { why: String },
}

/// End of a call: its booking, its result and the rate limits of the response.
pub struct ObservedCall<'a> {
    pub booking: &'a Booking,
    pub feedback: CallFeedback,
    pub rate_limits: &'a RateHeaders,
    /// No other deployment can do its work.
    pub is_last: bool,
}

struct ThrottledCall<'a> {
    booking: &'a Booking,
    until: Instant,
    rate_limits: &'a RateHeaders,
}

/// Readiness of a deployment to take calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentGate {
    /// Calls of at most this charge; larger ones wait until then.
    Open {
        room: u64,
        until: Option<Instant>,
    },
    /// Nothing before this time.
    Until(Instant),
    /// Nothing until one of its calls ends.
    WhenACallEnds,
    Retired,
}

/// A deployment as admission sees it.
pub struct Deployment {
    name: Box<str>,
    limits: DeploymentLimits,
    /// Tokens booked here.
    booked: SlidingWindowSum,
    concurrency: ConcurrencyLimit,
    /// The quota was unknown at first and is paced now.
    is_lifted: bool,
    in_flight: usize,
    paused_until: Option<Instant>,
    breaker: Breaker,
    missing_since: Option<Instant>,
    retired: Option<String>,
    latency: Option<Duration>,
    averages: CallAverages,
    utilisation: Option<f64>,
}

impl Deployment {
    pub fn new(name: &str, limits: DeploymentLimits, is_paced: bool, now: Instant) -> Self {
        Self {
            name: name.into(),
            booked: SlidingWindowSum::new(now),
            concurrency: ConcurrencyLimit::new(limits.concurrency, is_paced),
            is_lifted: false,
            in_flight: 0,
            paused_until: None,
            breaker: Breaker::default(),
            missing_since: None,
            retired: None,
            latency: None,
            averages: CallAverages::default(),
            utilisation: None,
            limits,
        }
    }

    /// Returns whether it takes calls now, apart from its token rate.
    pub fn gate(&mut self, quota: &mut DeploymentQuota, now: Instant) -> DeploymentGate {
        quota.stop_waiting(now);
        if self.retired.is_some() {
            return DeploymentGate::Retired;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return DeploymentGate::Until(until);
        }
        match self.breaker.decision(now) {
            BreakerDecision::Until(at) => return DeploymentGate::Until(at),
            BreakerDecision::AfterProbe => return DeploymentGate::WhenACallEnds,
            // The probe goes, whatever calls still hang from before.
            BreakerDecision::Probe => {}
            BreakerDecision::All if !self.may_start_call() => return DeploymentGate::WhenACallEnds,
            BreakerDecision::All => {}
        }
        let (room, until) = quota.room(now);
        if quota.has_tokens() && !self.is_lifted {
            self.is_lifted = true;
            self.concurrency.lift();
        }
        DeploymentGate::Open { room, until }
    }

    /// Books a call that the gate let through and whose charge has accrued.
    pub fn book(
        &mut self,
        quota: &mut DeploymentQuota,
        index: super::DeploymentIndex,
        charge: u64,
        now: Instant,
    ) -> Booking {
        self.in_flight += 1;
        self.booked.add(charge as f64, now);
        let total = quota.book(charge, now);
        Booking { deployment: index, charge, at: now, total, is_probe: self.breaker.begin() }
    }

    /// Ends a call that [`Self::book`] began.
    pub fn observe(&mut self, quota: &mut DeploymentQuota, end: ObservedCall<'_>, now: Instant) {
        let ObservedCall { booking, feedback, rate_limits, is_last } = end;
        let in_flight = self.in_flight;
        self.in_flight = in_flight.saturating_sub(1);
        quota.observe_request_limit(rate_limits, now);
        match feedback {
            CallFeedback::Responded => {
                self.missing_since = None;
                self.utilisation = rate_limits.utilisation.or(self.utilisation);
                quota.observe_headers(booking, rate_limits, now);
                self.concurrency.succeed(rate_limits.utilisation);
                self.succeed(booking, now);
            }
            CallFeedback::Transient { why } => {
                quota.observe_headers(booking, rate_limits, now);
                if self.breaker.fail(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "keeps failing: calls go elsewhere");
                }
            }
            CallFeedback::Unclear => self.breaker.end_unclear(booking.is_probe),
            CallFeedback::Throttled { until } => {
                let throttled = ThrottledCall { booking, until, rate_limits };
                self.throttle(quota, throttled, in_flight, now);
            }
            CallFeedback::Unreachable { why } => {
                if self.breaker.fail_unreachable(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "can't be reached");
                }
            }
            CallFeedback::Missing { why } => {
                self.breaker.end_unclear(booking.is_probe);
                let since = *self.missing_since.get_or_insert(now);
                if is_last || now.saturating_duration_since(since) >= MISSING_FOR {
                    self.retire(why);
                } else {
                    self.pause(now + MISSING_PAUSE);
                }
            }
            CallFeedback::Misconfigured { why } => {
                self.breaker.end_unclear(booking.is_probe);
                self.retire(why);
            }
        }
    }

    fn succeed(&mut self, booking: &Booking, now: Instant) {
        let latency = now.saturating_duration_since(booking.at);
        self.averages.add(latency, booking.charge);
        self.latency = Some(self.latency.map_or(latency, |mean| mean * 7 / 8 + latency / 8));
        if self.breaker.why().is_some() {
            info!(deployment.name = %self.name, "answers again");
        }
        self.breaker.succeed(now);
    }

    fn throttle(
        &mut self,
        quota: &mut DeploymentQuota,
        throttled: ThrottledCall<'_>,
        in_flight: usize,
        now: Instant,
    ) {
        let ThrottledCall { booking, until, rate_limits } = throttled;
        self.breaker.end_unclear(booking.is_probe);
        self.booked.subtract(booking.charge as f64, booking.at);
        self.utilisation = rate_limits.utilisation.or(self.utilisation);
        match self.limits.service {
            ServiceKind::Flex => {
                self.pause(until.max(now + FLEX_PAUSE));
                quota.refund(booking);
            }
            ServiceKind::Provisioned => self.pause(until),
            ServiceKind::Standard => {
                self.pause(until);
                quota.observe_throttled(booking, until, rate_limits, now);
            }
        }
        if self.limits.service != ServiceKind::Standard || rate_limits.limit_tokens.is_none() {
            self.concurrency.observe_throttled(in_flight, booking.at, now);
        }
    }

    fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    fn retire(&mut self, why: String) {
        if self.retired.is_none() {
            warn!(deployment.name = %self.name, why, "out of the pool");
            self.retired = Some(why);
        }
    }

    /// Allows this instance only a part of the calls in flight.
    pub fn set_share(&mut self, share: f64) {
        self.concurrency.set_share(share);
    }

    /// Returns when a call can be expected to end, if any is in flight.
    pub fn next_end(&self, now: Instant) -> Instant {
        let each = u32::try_from(self.in_flight.max(1)).unwrap_or(u32::MAX);
        now + self.latency.unwrap_or_default() / each
    }

    /// Returns whether a job that another deployment failed should rather come here.
    pub fn is_healthy(&self, now: Instant) -> bool {
        let paused = self.paused_until.is_some_and(|until| until > now);
        self.retired.is_none() && !paused && self.breaker.decision(now) == BreakerDecision::All
    }

    /// Returns whether a pause only means that the service lacks room: nobody waits for it.
    pub fn is_flex(&self) -> bool {
        self.limits.service == ServiceKind::Flex
    }

    /// Returns its weight among the others: its quota, or its calls where it has none.
    pub fn capacity(&self, quota: &DeploymentQuota) -> f64 {
        let calls = self.limits.concurrency as f64 * 1_000.0;
        quota.limit().unwrap_or(calls) * quota.share()
    }

    /// Returns since when no connection could be made, and why.
    pub fn outage(&self) -> Option<(Instant, &str)> {
        self.breaker.outage()
    }

    /// Returns why the deployment is out of the pool for good.
    pub fn retired(&self) -> Option<&str> {
        self.retired.as_deref()
    }

    /// Returns whether it counts as not yet created.
    pub fn is_missing(&self) -> bool {
        self.missing_since.is_some()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns until when a 429 keeps calls off it.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Returns what its breaker lets through.
    pub fn breaker_decision(&self, now: Instant) -> BreakerDecision {
        self.breaker.decision(now)
    }

    /// Returns the fault that opened the breaker, while it is open.
    pub fn breaker_error(&self) -> Option<&str> {
        self.breaker.why()
    }

    /// Returns whether another call may be in flight.
    pub fn may_start_call(&self) -> bool {
        self.in_flight < self.concurrency.allowed()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Returns its state for display; `place`: its tier, and the tokens queued for it.
    pub fn snapshot(
        &mut self,
        quota: &DeploymentQuota,
        place: (u8, u64),
        now: Instant,
    ) -> DeploymentSnapshot {
        let (tier, waiting) = place;
        let usual = self.averages.per_call();
        let left = |until: Instant| (until > now).then(|| (until - now).as_millis() as u64);
        DeploymentSnapshot {
            name: self.name.to_string(),
            tier,
            service: self.limits.service,
            tpm_configured: self.limits.tpm,
            tpm_learnt: quota.learnt().map(|limit| limit as u64),
            rpm: quota.rpm(),
            charge_factor: quota.factor(),
            reserve: self.limits.reserve,
            share: quota.share(),
            used_last_minute: self.booked.sum_since(now - MINUTE, now) as u64,
            waiting,
            in_flight: self.in_flight,
            calls_allowed: self.concurrency.allowed(),
            concurrency: self.limits.concurrency,
            call_seconds: usual.map(|(seconds, _)| seconds),
            call_tokens: usual.map(|(_, tokens)| tokens),
            utilisation: self.utilisation,
            paused_ms: self.paused_until.and_then(left),
            breaker: match self.breaker.decision(now) {
                BreakerDecision::All => BreakerState::Closed,
                BreakerDecision::Until(_) => BreakerState::Open,
                BreakerDecision::Probe | BreakerDecision::AfterProbe => BreakerState::HalfOpen,
            },
            breaker_why: self.breaker.why().map(Into::into),
            retired: self.retired.clone(),
        }
    }
}
