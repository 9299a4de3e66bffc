//! One deployment's state: what it may take now, and what its answers taught us.
//!
//! Pure: every decision takes `now`. It joins the parts that each know one thing: the pace of tokens
//! and requests, what was learnt of the quota, the calls in flight, the pause that a 429 asked for,
//! and the breaker.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Booking;
use super::breaker::{Breaker, Passage};
use super::calls::Calls;
use super::demand::Meter;
use super::learn::Learner;
pub use super::limits::{Limits, Service};
use super::pace::{Later, Pace};
use super::snapshot::{BreakerState, Snapshot};
use crate::model::headers::RateHeaders;

/// The part of the requests' quota that is paced out: the service judges them in slices as short as
/// one second.
const REQUESTS_USED: f64 = 0.98;

/// What may be caught up on after a late wake-up.
const TOKEN_SLACK: Duration = Duration::from_millis(250);
const REQUEST_SLACK: Duration = Duration::from_millis(50);

/// How often the pace is looked at, and how far off it may be meanwhile.
const LOOK: Duration = Duration::from_millis(100);
const RATE_STEP: f64 = 0.005;

/// How long a deployment that is not found may stay so before it is out of the pool, if others can
/// do its work: right after its creation it takes some minutes (Azure docs: DeploymentNotFound), and
/// how often it is tried.
const MISSING_FOR: Duration = Duration::from_secs(300);
const MISSING_PAUSE: Duration = Duration::from_secs(15);

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
    learner: Learner,
    meter: Meter,
    tokens: Option<Pace>,
    requests: Option<Pace>,
    looked_at: Option<Instant>,
    room: Option<RoomSeen>,
    calls: Calls,
    in_flight: usize,
    share: f64,
    paused_until: Option<Instant>,
    breaker: Breaker,
    missing_since: Option<Instant>,
    retired: Option<String>,
    latency: Option<Duration>,
    utilisation: Option<f64>,
}

/// The room of a window when it was last looked at.
#[derive(Clone, Copy)]
struct RoomSeen {
    /// The total up to which we may book.
    tokens: f64,
    /// The room of a whole window.
    whole: u64,
    until: Instant,
}

impl Deployment {
    pub fn new(name: &str, limits: Limits, now: Instant) -> Self {
        let is_paced = limits.tpm.is_some() || limits.rpm.is_some();
        let rpm = limits.rpm.map(|rpm| rpm as f64 * REQUESTS_USED * (1.0 - limits.reserve));
        let mut deployment = Self {
            name: name.into(),
            learner: Learner::new(name, limits.tpm, limits.reserve, now),
            meter: Meter::new(now),
            tokens: None,
            requests: rpm.map(|rate| Pace::new(rate, REQUEST_SLACK, now)),
            looked_at: None,
            room: None,
            calls: Calls::new(limits.concurrency, is_paced),
            in_flight: 0,
            share: 1.0,
            paused_until: None,
            breaker: Breaker::default(),
            missing_since: None,
            retired: None,
            latency: None,
            utilisation: None,
            limits,
        };
        deployment.adjust_pace(now);
        deployment
    }

    /// Whether it takes calls now, whatever their number of tokens a minute.
    pub fn gate(&mut self, now: Instant) -> Gate {
        self.meter.waits_no_more(now);
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
            Passage::All if self.in_flight >= self.calls.allowed() => return Gate::WhenACallEnds,
            Passage::All => {}
        }
        let room_is_over = self.room.is_some_and(|room| now >= room.until);
        if room_is_over || self.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK)
        {
            self.adjust_pace(now);
        }
        let Some(room) = self.room.filter(|room| now < room.until) else {
            return Gate::Open { room: self.learner.largest(), until: None };
        };
        // Since the look only our own bookings count: the next look is soon.
        let left = (room.tokens - self.learner.total()).max(0.0) as u64;
        if left >= room.whole {
            // What is larger than any window is the service's to judge.
            return Gate::Open { room: self.learner.largest(), until: None };
        }
        Gate::Open { room: left, until: Some(room.until) }
    }

    fn look_at_room(&mut self, now: Instant) {
        let whole = self.learner.whole_window().min(self.learner.largest());
        let total = self.learner.total();
        self.room = self.learner.room(now).map(|room| RoomSeen {
            tokens: room.tokens as f64 + total,
            whole,
            until: room.until,
        });
    }

    /// Gathers what a call of this charge needs.
    ///
    /// # Errors
    /// When to ask again, and when to expect it.
    pub fn gather(&mut self, charge: u64, now: Instant) -> Result<(), Later> {
        let tokens = self.tokens.as_mut().map_or(Ok(()), |tokens| tokens.gather(charge, now));
        let requests = self.requests.as_mut().map_or(Ok(()), |requests| requests.gather(1, now));
        let gathered = match (tokens, requests) {
            (Err(a), Err(b)) => {
                Err(Later { ask_at: a.ask_at.min(b.ask_at), expected: a.expected.max(b.expected) })
            }
            (tokens, requests) => tokens.and(requests),
        };
        if let Err(later) = &gathered {
            self.wait_for_quota(now, later.ask_at);
        }
        gathered
    }

    /// Notes that a job waits for quota, until then at the longest.
    pub fn wait_for_quota(&mut self, now: Instant, until: Instant) {
        self.meter.waits(now, until);
    }

    /// What could have been used since this was last asked, as a part of the whole quota.
    pub fn demand(&mut self, now: Instant) -> f64 {
        self.meter.demand(now)
    }

    /// How much of a minute's whole quota a call takes.
    fn minutes(&self, charge: u64) -> f64 {
        let tokens = self.learner.limit().map_or(0.0, |limit| charge as f64 / limit.max(1.0));
        let requests = self.limits.rpm.map_or(0.0, |rpm| 1.0 / rpm as f64);
        tokens.max(requests)
    }

    /// Books a call that the gate let through and whose charge is gathered.
    pub fn book(&mut self, index: super::DeploymentIndex, charge: u64, now: Instant) -> Booking {
        if let Some(tokens) = &mut self.tokens {
            tokens.spend(charge);
        }
        if let Some(requests) = &mut self.requests {
            requests.spend(1);
        }
        self.in_flight += 1;
        self.meter.used(self.minutes(charge));
        let total = self.learner.book(charge, now);
        Booking { deployment: index, charge, at: now, total, is_probe: self.breaker.begin() }
    }

    /// Ends a call that [`Self::book`] began. `is_last`: no other deployment can do its work.
    pub fn observe(
        &mut self,
        booking: &Booking,
        feedback: Feedback,
        told: &RateHeaders,
        is_last: bool,
        now: Instant,
    ) {
        let in_flight = self.in_flight;
        self.in_flight = in_flight.saturating_sub(1);
        self.hear_requests(told, now);
        match feedback {
            Feedback::Responded => {
                self.missing_since = None;
                self.utilisation = told.utilisation.or(self.utilisation);
                self.learner.hear(booking, told, now);
                self.calls.succeed(told.utilisation);
                self.succeed(booking, now);
            }
            Feedback::Faulted { why } => {
                self.learner.hear(booking, told, now);
                if self.breaker.fail(booking.is_probe, &why, now) {
                    warn!(deployment.name = %self.name, why, "keeps failing: calls go elsewhere");
                }
            }
            Feedback::Unclear => self.breaker.end_unclear(booking.is_probe),
            Feedback::Throttled { until } => self.throttle(booking, until, told, in_flight, now),
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
        if self.learner.limit().is_some() && self.tokens.is_none() {
            self.adjust_pace(now);
        }
    }

    fn succeed(&mut self, booking: &Booking, now: Instant) {
        let latency = now.saturating_duration_since(booking.at);
        self.latency = Some(self.latency.map_or(latency, |mean| mean * 7 / 8 + latency / 8));
        if self.breaker.why().is_some() {
            info!(deployment.name = %self.name, "answers again");
        }
        self.breaker.succeed(now);
    }

    fn throttle(
        &mut self,
        booking: &Booking,
        until: Instant,
        told: &RateHeaders,
        in_flight: usize,
        now: Instant,
    ) {
        self.breaker.end_unclear(booking.is_probe);
        self.utilisation = told.utilisation.or(self.utilisation);
        match self.limits.service {
            Service::Flex => self.pause(until.max(now + FLEX_PAUSE)),
            Service::Provisioned => self.pause(until),
            Service::Standard => {
                self.pause(until);
                if self.learner.may_be_full(booking, told) {
                    self.learner.refused(booking, until, told, now);
                }
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

    /// Requests a minute, as the service tells them.
    fn hear_requests(&mut self, told: &RateHeaders, now: Instant) {
        let Some(limit) = told.limit_requests.filter(|limit| Some(*limit) != self.limits.rpm)
        else {
            return;
        };
        info!(deployment.name = %self.name, "the service says {limit} requests a minute");
        self.limits.rpm = Some(limit);
        self.set_requests(now);
    }

    fn set_requests(&mut self, now: Instant) {
        let Some(rpm) = self.limits.rpm else { return };
        let rate = rpm as f64 * REQUESTS_USED * (1.0 - self.limits.reserve) * self.share;
        match &mut self.requests {
            Some(requests) => requests.set_rate(rate, now),
            none => *none = Some(Pace::new(rate, REQUEST_SLACK, now)),
        }
    }

    fn adjust_pace(&mut self, now: Instant) {
        self.looked_at = Some(now);
        self.look_at_room(now);
        let saved = self.tokens.as_ref().map_or(0, Pace::saved);
        let Some(rate) = self.learner.rate(saved, now).filter(|_| self.is_metered()) else {
            return;
        };
        match &mut self.tokens {
            Some(tokens) if (tokens.per_minute() / rate - 1.0).abs() > RATE_STEP => {
                tokens.set_rate(rate, now);
            }
            Some(_) => {}
            none => {
                *none = Some(Pace::new(rate, TOKEN_SLACK, now));
                self.calls.free();
            }
        }
    }

    /// Lets this instance use a part of the quota, or of the calls in flight where there is none.
    pub fn set_share(&mut self, share: f64, now: Instant) {
        self.share = share.clamp(1e-6, 1.0);
        self.learner.set_share(self.share);
        self.set_requests(now);
        self.adjust_pace(now);
        let is_paced = self.tokens.is_some() || self.requests.is_some();
        self.calls.set_share(if is_paced { 1.0 } else { self.share });
    }

    fn is_metered(&self) -> bool {
        self.limits.service != Service::Provisioned
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

    /// The largest charge it can ever take.
    pub fn largest(&self) -> u64 {
        self.learner.largest()
    }

    /// How much it can take beside the others: its quota, or its calls where it has none.
    pub fn size(&self) -> f64 {
        self.learner.limit().unwrap_or(self.limits.concurrency as f64 * 1_000.0) * self.share
    }

    /// Tokens booked in the last minute.
    pub fn used(&mut self, now: Instant) -> u64 {
        self.learner.used(now) as u64
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

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Its state for display; `waiting` is the tokens in line for it.
    pub fn snapshot(&mut self, tier: u8, waiting: u64, now: Instant) -> Snapshot {
        let left = |until: Instant| (until > now).then(|| (until - now).as_millis() as u64);
        Snapshot {
            name: self.name.to_string(),
            tier,
            service: self.limits.service,
            tpm_configured: self.limits.tpm,
            tpm_learnt: self.learner.learnt().map(|limit| limit as u64),
            rpm: self.limits.rpm,
            charge_factor: self.learner.factor(),
            reserve: self.limits.reserve,
            share: self.share,
            used_last_minute: self.used(now),
            waiting,
            in_flight: self.in_flight,
            calls_allowed: self.calls.allowed(),
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
