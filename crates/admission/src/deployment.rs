//! State of one deployment: what it may take now, and what its answers taught us.
//!
//! Pure: every decision takes `now`. It joins parts that each know one thing: the calls in flight,
//! the pauses after 429s, the refusals that may be its own fault, and the breaker. The quota is passed
//! in, since deployments may share one.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::booking::{Booking, DeploymentIndex, JobTag};
use super::breaker::{Breaker, BreakerDecision};
use super::call_averages::CallAverages;
use super::concurrency_limit::ConcurrencyLimit;
pub use super::limits::DeploymentLimits;
use super::quota::DeploymentQuota;
use super::refusals::{DeploymentDoubt, RefusalLedger, RefusalRuling, SuspectCall};
use super::silence::SilenceWatch;
use super::sliding_window::SlidingWindowSum;
use super::throttle::ThrottleWaves;
use domain::deployment::{BreakerState, DeploymentSnapshot, ServiceKind};
use domain::headers::RateHeaders;
use domain::suspect::Suspect;

/// Wait of a 429 which says that the request is larger than the whole quota ("retry after 86400
/// seconds"), or that a small one came too early (gpt-researcher#936); and the part of the quota
/// from which the first is believed. Our own count may be a little lower than the service's.
const NEVER_FITS_WAIT: Duration = Duration::from_secs(86_400);
const NEAR_THE_LIMIT: f64 = 0.8;

/// Characters kept of a refusal's words.
const KEPT_WORDS: usize = 300;

/// Words for a call that was given up.
const GIVEN_UP: &str = "a call was not answered and given up";

const MINUTE: Duration = Duration::from_secs(60);

/// Shortest pause of a flex deployment without room: its 429 is about the service's capacity.
const FLEX_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_FLEX_PAUSE: Duration = Duration::from_secs(60);

/// Result of a call, as far as it concerns the deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallFeedback {
    /// An answer.
    Responded,
    /// A refusal that is the job's own for certain.
    RefusedJob,
    /// Refusal that may be the job's or the deployment's fault.
    Denied { suspect: Suspect, why: String },
    /// Transient error of its own: 5xx, a time-out, a reset.
    Transient { why: String },
    /// The worker ended it: the deployment is silent ([`Deployment::close_if_silent`]).
    GivenUp,
    /// Nothing is known of it; perhaps no call was made.
    Unclear,
    /// No call was made: what was booked for it is free again.
    NotSent,
    /// 429: the wait that it asked for, and its words.
    Throttled { asked: Option<Duration>, why: String },
    /// No connection could be made: nothing was sent.
    Unreachable { why: String },
    /// It will not answer before somebody acts: no credit, an unknown service tier.
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
    asked: Option<Duration>,
    rate_limits: &'a RateHeaders,
}

/// Words of the last refusal, and until when the service asked to wait.
struct LastRefusal {
    words: String,
    asked_until: Option<Instant>,
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
    throttles: ThrottleWaves,
    refusals: RefusalLedger,
    /// Since its last answer.
    last_refusal: Option<LastRefusal>,
    breaker: Breaker,
    silence: SilenceWatch,
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
            concurrency: ConcurrencyLimit::new(&limits, is_paced, now),
            is_lifted: false,
            in_flight: 0,
            paused_until: None,
            throttles: ThrottleWaves::default(),
            refusals: RefusalLedger::default(),
            last_refusal: None,
            breaker: Breaker::default(),
            silence: SilenceWatch::default(),
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
        if let Some(until) = self.closed_until().filter(|until| *until > now) {
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
        (deployment, tag): (DeploymentIndex, JobTag),
        charge: u64,
        now: Instant,
    ) -> Booking {
        self.in_flight += 1;
        self.booked.add(charge as f64, now);
        self.throttles.begin_call(now);
        self.silence.begin(now);
        self.concurrency.begin();
        let total = quota.book(charge, now);
        Booking { deployment, charge, at: now, total, is_probe: self.breaker.begin(), tag }
    }

    /// Ends a call that [`Self::book`] began; returns the ruling on a refusal.
    pub fn observe(
        &mut self,
        quota: &mut DeploymentQuota,
        end: ObservedCall<'_>,
        now: Instant,
    ) -> Option<RefusalRuling> {
        let ObservedCall { booking, feedback, rate_limits, is_last } = end;
        let in_flight = self.in_flight;
        self.in_flight = in_flight.saturating_sub(1);
        let by_itself = !matches!(feedback, CallFeedback::GivenUp | CallFeedback::Unclear);
        self.silence.end(booking.at, by_itself, now);
        quota.observe_request_limit(rate_limits, now);
        match feedback {
            CallFeedback::Responded | CallFeedback::RefusedJob => {
                self.utilisation = rate_limits.utilisation.or(self.utilisation);
                quota.observe_headers(booking, rate_limits, now);
                self.concurrency.succeed(rate_limits.utilisation);
                match feedback {
                    CallFeedback::Responded => self.refusals.answered(booking.tag, booking.charge),
                    _ => self.refusals.alive(),
                }
                self.succeed(booking, now);
            }
            CallFeedback::Transient { why } => {
                quota.observe_headers(booking, rate_limits, now);
                if self.breaker.fail(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "keeps failing: calls go elsewhere");
                }
            }
            CallFeedback::GivenUp => {
                self.breaker.fail(booking.is_probe, GIVEN_UP, now);
            }
            CallFeedback::Unclear => self.breaker.end_unclear(booking.is_probe),
            CallFeedback::NotSent => {
                self.breaker.end_unclear(booking.is_probe);
                quota.cancel(booking);
            }
            CallFeedback::Throttled { asked, why } => {
                self.remember(&why, asked, now);
                let throttled = ThrottledCall { booking, asked, rate_limits };
                return self.throttle(quota, throttled, in_flight, now);
            }
            CallFeedback::Unreachable { why } => {
                if self.breaker.fail_unreachable(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "can't be reached");
                }
            }
            CallFeedback::Denied { suspect, why } => {
                let call = SuspectCall { tag: booking.tag, suspect, is_last };
                return Some(self.deny(booking, call, why, now));
            }
            CallFeedback::Misconfigured { why } => {
                self.breaker.end_unclear(booking.is_probe);
                self.retire(why);
            }
        }
        None
    }

    fn deny(
        &mut self,
        booking: &Booking,
        call: SuspectCall,
        why: String,
        now: Instant,
    ) -> RefusalRuling {
        let (ruling, doubt) = self.refusals.refused(call, now);
        if ruling != RefusalRuling::JobAtFault {
            self.remember(&why, None, now);
        }
        match doubt {
            DeploymentDoubt::None => self.breaker.end_unclear(booking.is_probe),
            DeploymentDoubt::Probe => {
                if self.breaker.doubt(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "refuses all calls: trying again");
                }
            }
            DeploymentDoubt::Retire => {
                self.breaker.end_unclear(booking.is_probe);
                self.retire(why);
            }
        }
        ruling
    }

    fn remember(&mut self, words: &str, asked: Option<Duration>, now: Instant) {
        let words = words.chars().take(KEPT_WORDS).collect();
        let asked_until = asked.and_then(|asked| now.checked_add(asked));
        self.last_refusal = Some(LastRefusal { words, asked_until });
    }

    fn succeed(&mut self, booking: &Booking, now: Instant) {
        let latency = now.saturating_duration_since(booking.at);
        self.throttles.answered(booking.at);
        self.last_refusal = None;
        self.averages.add(latency, booking.charge);
        self.silence.answered(latency);
        self.concurrency.answered(latency, self.in_flight, now);
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
    ) -> Option<RefusalRuling> {
        let ThrottledCall { booking, asked, rate_limits } = throttled;
        self.breaker.end_unclear(booking.is_probe);
        self.booked.subtract(booking.charge as f64, booking.at);
        self.utilisation = rate_limits.utilisation.or(self.utilisation);
        let never_fits = asked.is_some_and(|asked| asked >= NEVER_FITS_WAIT)
            && is_near_limit(booking.charge, quota, rate_limits);
        if never_fits || self.refusals.throttled(booking.tag, booking.charge) {
            // It says nothing about the others.
            quota.refund(booking);
            return Some(RefusalRuling::JobAtFault);
        }
        let until = now + self.throttles.refused(booking.at, asked, now);
        match self.limits.service {
            ServiceKind::Flex => {
                // Having no room is usual there, and it comes back at any time.
                let pause = asked.unwrap_or_default().clamp(FLEX_PAUSE, LONGEST_FLEX_PAUSE);
                self.pause(now + pause);
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
        None
    }

    /// Keeps calls off a deployment that is silent; returns the time after which its calls count as
    /// late. See `silence`.
    pub fn close_if_silent(&mut self, others: Option<Duration>, now: Instant) -> Option<Duration> {
        let is_probe = self.breaker.decision(now) == BreakerDecision::AfterProbe;
        let late = self.silence.silence(others, is_probe, now)?;
        let why = format!("its calls are not answered, for {} s by now", late.as_secs());
        if self.breaker.doubt(false, &why, now) {
            warn!(deployment.name = %self.name, why, "is silent: calls go elsewhere");
        }
        Some(late)
    }

    /// Returns the time of the slowest of its last answered calls.
    pub fn slowest_call(&self) -> Option<Duration> {
        self.silence.slowest()
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
        let paused = self.closed_until().is_some_and(|until| until > now);
        self.retired.is_none() && !paused && self.breaker.decision(now) == BreakerDecision::All
    }

    /// Returns whether a pause only means that the service lacks room: nobody waits for it.
    pub fn is_flex(&self) -> bool {
        self.limits.service == ServiceKind::Flex
    }

    /// Returns its weight among the others: its quota, or its calls where it has none.
    pub fn capacity(&self, quota: &DeploymentQuota) -> f64 {
        let calls = self.limits.unpaced_concurrency as f64 * 1_000.0;
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

    /// Returns whether it has refused everything since its last answer.
    pub fn is_in_doubt(&self) -> bool {
        self.refusals.is_in_doubt()
    }

    /// Returns whether it has answered any job.
    pub fn has_answered(&self) -> bool {
        self.refusals.has_answered()
    }

    /// Returns the words of its last refusal, if nothing was answered since.
    pub fn last_refusal(&self) -> Option<&str> {
        self.last_refusal.as_ref().map(|last| last.words.as_str())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns until when 429s keep calls off it.
    pub fn closed_until(&self) -> Option<Instant> {
        self.paused_until.max(self.throttles.next_call_at())
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

    /// Returns the calls in flight that the settings allow.
    pub fn configured_calls(&self) -> usize {
        self.concurrency.most()
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
            concurrency: self.concurrency.most(),
            call_seconds: usual.map(|(seconds, _)| seconds),
            call_tokens: usual.map(|(_, tokens)| tokens),
            utilisation: self.utilisation,
            paused_ms: self.closed_until().and_then(left),
            last_refusal: self.last_refusal().map(Into::into),
            asked_ms: self.last_refusal.as_ref().and_then(|last| last.asked_until).and_then(left),
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

/// Returns whether a call may be larger than what the deployment ever gives in a minute.
fn is_near_limit(charge: u64, quota: &DeploymentQuota, rate_limits: &RateHeaders) -> bool {
    let told = rate_limits.limit_tokens.map(|limit| limit as f64);
    let limit = told.into_iter().chain(quota.limit()).reduce(f64::min);
    limit.is_some_and(|limit| charge as f64 >= NEAR_THE_LIMIT * limit)
}
