//! One deployment's state: what it may take now, and what its answers taught us.
//!
//! Pure: every decision takes `now`. It joins the parts that each know one thing: the calls in flight,
//! the pause that a 429 asked for, and the breaker; its `quota` may be another's too, and is handed in.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Booking;
use super::breaker::{Breaker, Passage};
use super::calls::Calls;
pub use super::limits::{Limits, Service};
use super::quota::Quota;
use super::recent::Recent;
use super::snapshot::{BreakerState, Snapshot};
use super::usual::Usual;
use domain::headers::RateHeaders;

/// How long a deployment that is not found may stay so before it is out of the pool, if others can
/// do its work: right after its creation it takes some minutes (Azure docs: DeploymentNotFound), and
/// how often it is tried.
const MISSING_FOR: Duration = Duration::from_secs(300);
const MISSING_PAUSE: Duration = Duration::from_secs(15);

const MINUTE: Duration = Duration::from_secs(60);

/// The least pause of a flex lane without room: its 429 is about the service's capacity.
const FLEX_PAUSE: Duration = Duration::from_secs(5);

/// What a call taught about its deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feedback {
    /// It answered: an answer, or a refusal of the job.
    Responded,
    /// A passing fault of its own: 5xx, a time-out, a reset.
    Faulted { why: String },
    /// Nothing is known of it; perhaps no call was made.
    Unclear,
    /// It is full; nothing more until then.
    Throttled { until: Instant },
    /// No connection could be made: nothing was sent.
    Unreachable { why: String },
    /// There is no such deployment, or not yet.
    Missing { why: String },
    /// It will never answer as configured: wrong key, no permission, an unknown service tier.
    Misconfigured { why: String },
}

/// How a call ended, and what the response told.
pub struct End<'a> {
    pub booking: &'a Booking,
    pub feedback: Feedback,
    pub told: &'a RateHeaders,
    /// No other deployment can do its work.
    pub is_last: bool,
}

struct Refusal<'a> {
    booking: &'a Booking,
    until: Instant,
    told: &'a RateHeaders,
}

/// Whether a deployment takes calls at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Calls of at most this charge. Larger ones have to wait until then.
    Open {
        room: u64,
        until: Option<Instant>,
    },
    /// Nothing before then.
    Until(Instant),
    /// As soon as one of its calls ends.
    WhenACallEnds,
    Retired,
}

/// A deployment as admission sees it.
pub struct Deployment {
    name: Box<str>,
    limits: Limits,
    /// What was booked here.
    booked: Recent,
    calls: Calls,
    /// A quota that was unknown at first is paced now.
    is_freed: bool,
    in_flight: usize,
    paused_until: Option<Instant>,
    breaker: Breaker,
    missing_since: Option<Instant>,
    retired: Option<String>,
    latency: Option<Duration>,
    usual: Usual,
    utilisation: Option<f64>,
}

impl Deployment {
    pub fn new(name: &str, limits: Limits, is_paced: bool, now: Instant) -> Self {
        Self {
            name: name.into(),
            booked: Recent::new(now),
            calls: Calls::new(limits.concurrency, is_paced),
            is_freed: false,
            in_flight: 0,
            paused_until: None,
            breaker: Breaker::default(),
            missing_since: None,
            retired: None,
            latency: None,
            usual: Usual::default(),
            utilisation: None,
            limits,
        }
    }

    /// Whether it takes calls now, whatever their number of tokens a minute.
    pub fn gate(&mut self, quota: &mut Quota, now: Instant) -> Gate {
        quota.wait_no_more(now);
        if self.retired.is_some() {
            return Gate::Retired;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Gate::Until(until);
        }
        match self.breaker.passage(now) {
            Passage::Until(at) => return Gate::Until(at),
            Passage::AfterProbe => return Gate::WhenACallEnds,
            // The probe goes, whatever still hangs from before.
            Passage::Probe => {}
            Passage::All if !self.has_call_left() => return Gate::WhenACallEnds,
            Passage::All => {}
        }
        let (room, until) = quota.room(now);
        if quota.has_tokens() && !self.is_freed {
            self.is_freed = true;
            self.calls.free();
        }
        Gate::Open { room, until }
    }

    /// Books a call that the gate let through and whose charge is gathered.
    pub fn book(
        &mut self,
        quota: &mut Quota,
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
    pub fn observe(&mut self, quota: &mut Quota, end: End<'_>, now: Instant) {
        let End { booking, feedback, told, is_last } = end;
        let in_flight = self.in_flight;
        self.in_flight = in_flight.saturating_sub(1);
        quota.hear_requests(told, now);
        match feedback {
            Feedback::Responded => {
                self.missing_since = None;
                self.utilisation = told.utilisation.or(self.utilisation);
                quota.hear(booking, told, now);
                self.calls.succeed(told.utilisation);
                self.succeed(booking, now);
            }
            Feedback::Faulted { why } => {
                quota.hear(booking, told, now);
                if self.breaker.fail(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "keeps failing: calls go elsewhere");
                }
            }
            Feedback::Unclear => self.breaker.end_unclear(booking.is_probe),
            Feedback::Throttled { until } => {
                let refusal = Refusal { booking, until, told };
                self.throttle(quota, refusal, in_flight, now);
            }
            Feedback::Unreachable { why } => {
                if self.breaker.unreachable(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "can't be reached");
                }
            }
            Feedback::Missing { why } => {
                self.breaker.end_unclear(booking.is_probe);
                let since = *self.missing_since.get_or_insert(now);
                if is_last || now.saturating_duration_since(since) >= MISSING_FOR {
                    self.retire(why);
                } else {
                    self.pause(now + MISSING_PAUSE);
                }
            }
            Feedback::Misconfigured { why } => {
                self.breaker.end_unclear(booking.is_probe);
                self.retire(why);
            }
        }
    }

    fn succeed(&mut self, booking: &Booking, now: Instant) {
        let latency = now.saturating_duration_since(booking.at);
        self.usual.add(latency, booking.charge);
        self.latency = Some(self.latency.map_or(latency, |mean| mean * 7 / 8 + latency / 8));
        if self.breaker.why().is_some() {
            info!(deployment.name = %self.name, "answers again");
        }
        self.breaker.succeed(now);
    }

    fn throttle(
        &mut self,
        quota: &mut Quota,
        refusal: Refusal<'_>,
        in_flight: usize,
        now: Instant,
    ) {
        let Refusal { booking, until, told } = refusal;
        self.breaker.end_unclear(booking.is_probe);
        self.booked.take_back(booking.charge as f64, booking.at);
        self.utilisation = told.utilisation.or(self.utilisation);
        match self.limits.service {
            Service::Flex => {
                self.pause(until.max(now + FLEX_PAUSE));
                quota.take_back(booking);
            }
            Service::Provisioned => self.pause(until),
            Service::Standard => {
                self.pause(until);
                quota.refused(booking, until, told, now);
            }
        }
        if self.limits.service != Service::Standard || told.limit_tokens.is_none() {
            self.calls.refused(in_flight, booking.at, now);
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

    /// Lets this instance have only a part of the calls in flight.
    pub fn set_share(&mut self, share: f64) {
        self.calls.set_share(share);
    }

    /// When a call can be expected to end, if any is under way.
    pub fn next_end(&self, now: Instant) -> Instant {
        let each = u32::try_from(self.in_flight.max(1)).unwrap_or(u32::MAX);
        now + self.latency.unwrap_or_default() / each
    }

    /// Whether a job that another deployment failed should rather come here.
    pub fn is_well(&self, now: Instant) -> bool {
        let paused = self.paused_until.is_some_and(|until| until > now);
        self.retired.is_none() && !paused && self.breaker.passage(now) == Passage::All
    }

    /// Whether a pause of it is a want of room elsewhere, not to be waited for.
    pub fn is_flex(&self) -> bool {
        self.limits.service == Service::Flex
    }

    /// How much it can take beside the others: its quota, or its calls where it has none.
    pub fn size(&self, quota: &Quota) -> f64 {
        let calls = self.limits.concurrency as f64 * 1_000.0;
        quota.limit().unwrap_or(calls) * quota.share()
    }

    /// Since when no connection could be made, and why.
    pub fn outage(&self) -> Option<(Instant, &str)> {
        self.breaker.outage()
    }

    /// Why the deployment is out of the pool for good.
    pub fn retired(&self) -> Option<&str> {
        self.retired.as_deref()
    }

    /// Whether it is taken for not yet there.
    pub fn is_missing(&self) -> bool {
        self.missing_since.is_some()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Until when a refusal keeps calls off it.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// What its breaker lets through.
    pub fn passage(&self, now: Instant) -> Passage {
        self.breaker.passage(now)
    }

    /// The fault that opened the breaker, while it is open.
    pub fn trouble(&self) -> Option<&str> {
        self.breaker.why()
    }

    /// Whether another call may be in flight.
    pub fn has_call_left(&self) -> bool {
        self.in_flight < self.calls.allowed()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Its state for display; `place`: its tier, and the tokens in line for it.
    pub fn snapshot(&mut self, quota: &Quota, place: (u8, u64), now: Instant) -> Snapshot {
        let (tier, waiting) = place;
        let usual = self.usual.call();
        let left = |until: Instant| (until > now).then(|| (until - now).as_millis() as u64);
        Snapshot {
            name: self.name.to_string(),
            tier,
            service: self.limits.service,
            tpm_configured: self.limits.tpm,
            tpm_learnt: quota.learnt().map(|limit| limit as u64),
            rpm: quota.rpm(),
            charge_factor: quota.factor(),
            reserve: self.limits.reserve,
            share: quota.share(),
            used_last_minute: self.booked.since(now - MINUTE, now) as u64,
            waiting,
            in_flight: self.in_flight,
            calls_allowed: self.calls.allowed(),
            concurrency: self.limits.concurrency,
            call_seconds: usual.map(|(seconds, _)| seconds),
            call_tokens: usual.map(|(_, tokens)| tokens),
            utilisation: self.utilisation,
            paused_ms: self.paused_until.and_then(left),
            breaker: match self.breaker.passage(now) {
                Passage::All => BreakerState::Closed,
                Passage::Until(_) => BreakerState::Open,
                Passage::Probe | Passage::AfterProbe => BreakerState::HalfOpen,
            },
            breaker_why: self.breaker.why().map(Into::into),
            retired: self.retired.clone(),
        }
    }
}
