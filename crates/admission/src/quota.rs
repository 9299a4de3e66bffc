//! One quota of tokens and requests a minute: how fast it is spent, and what is left of it.
//!
//! Pure. The standard and the flex lane of a deployment are two deployments here and use one quota;
//! all others have one of their own. It joins what was learnt of the tokens, the pace of tokens and
//! requests, and the meter of what could have been used.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::Booking;
use super::demand::Meter;
use super::learn::Learner;
use super::limits::{Limits, Service};
use super::pace::{Later, Pace};
use domain::headers::RateHeaders;

/// The part of the requests' quota that is paced out: the service judges them in slices as short as
/// one second.
const REQUESTS_USED: f64 = 0.98;

/// What may be caught up on after a late wake-up.
const TOKEN_SLACK: Duration = Duration::from_millis(250);
const REQUEST_SLACK: Duration = Duration::from_millis(50);

/// How often the pace is looked at, and how far off it may be meanwhile.
const LOOK: Duration = Duration::from_millis(100);
const RATE_STEP: f64 = 0.005;

/// A quota as its deployments see it.
pub struct Quota {
    name: Box<str>,
    learner: Learner,
    meter: Meter,
    /// Whether there are tokens a minute at all.
    is_metered: bool,
    rpm: Option<u64>,
    reserve: f64,
    share: f64,
    tokens: Option<Pace>,
    requests: Option<Pace>,
    looked_at: Option<Instant>,
    left: Option<Left>,
}

/// What a call has too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    Tokens,
    Requests,
}

/// What was left of a window when it was last looked at.
#[derive(Clone, Copy)]
struct Left {
    /// The total up to which we may book.
    tokens: f64,
    /// The room of a whole window.
    whole: u64,
    until: Instant,
}

impl Quota {
    pub fn new(name: &str, limits: &Limits, now: Instant) -> Self {
        let mut quota = Self {
            name: name.into(),
            learner: Learner::new(name, limits.tpm, limits.reserve, now),
            meter: Meter::new(now),
            is_metered: limits.service != Service::Provisioned,
            rpm: limits.rpm,
            reserve: limits.reserve,
            share: 1.0,
            tokens: None,
            requests: None,
            looked_at: None,
            left: None,
        };
        quota.set_requests(now);
        quota.adjust_pace(now);
        quota
    }

    /// The largest call that the window has room for, and until when larger ones have to wait.
    pub fn room(&mut self, now: Instant) -> (u64, Option<Instant>) {
        let is_over = self.left.is_some_and(|left| now >= left.until);
        if is_over || self.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= LOOK) {
            self.adjust_pace(now);
        }
        let Some(seen) = self.left.filter(|left| now < left.until) else {
            return (self.learner.largest(), None);
        };
        // Since the look only our own bookings count: the next look is soon.
        let left = (seen.tokens - self.learner.total()).max(0.0) as u64;
        if left >= seen.whole {
            // What is larger than any window is the service's to judge.
            return (self.learner.largest(), None);
        }
        (left, Some(seen.until))
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
            self.wait(now, later.ask_at);
        }
        gathered
    }

    /// What a call of this charge has too little of, and for about how long. Gathers nothing.
    pub fn lack(&self, charge: u64, now: Instant) -> Option<(Lack, Duration)> {
        if let Some(left) = self.left.filter(|left| now < left.until) {
            let room = (left.tokens - self.learner.total()).max(0.0) as u64;
            if room < left.whole && charge > room {
                return Some((Lack::Tokens, left.until - now));
            }
        }
        let missing = |pace: &Option<Pace>, cells| pace.as_ref().map(|pace| pace.missing(cells));
        let tokens = missing(&self.tokens, charge).map(|over| (over, Lack::Tokens));
        let requests = missing(&self.requests, 1).map(|over| (over, Lack::Requests));
        let (over, lack) = tokens.into_iter().chain(requests).max_by_key(|(over, _)| *over)?;
        (!over.is_zero()).then_some((lack, over))
    }

    /// How fast tokens are spent while there are calls to make.
    pub fn tokens_a_minute(&self) -> Option<f64> {
        self.tokens.as_ref().map(Pace::per_minute)
    }

    /// As [`Self::tokens_a_minute`], of requests.
    pub fn requests_a_minute(&self) -> Option<f64> {
        self.requests.as_ref().map(Pace::per_minute)
    }

    /// Notes that a job waits for it, until then at the longest.
    pub fn wait(&mut self, now: Instant, until: Instant) {
        self.meter.waits(now, until);
    }

    pub fn wait_no_more(&mut self, now: Instant) {
        self.meter.waits_no_more(now);
    }

    /// What could have been used since this was last asked, as a part of the whole.
    pub fn demand(&mut self, now: Instant) -> f64 {
        self.meter.demand(now)
    }

    /// Books a call whose charge is gathered; returns the total with it.
    pub fn book(&mut self, charge: u64, now: Instant) -> f64 {
        if let Some(tokens) = &mut self.tokens {
            tokens.spend(charge);
        }
        if let Some(requests) = &mut self.requests {
            requests.spend(1);
        }
        let limit = self.learner.limit();
        let by_tokens = limit.map_or(0.0, |limit| charge as f64 / limit.max(1.0));
        let by_requests = self.rpm.map_or(0.0, |rpm| 1.0 / rpm as f64);
        self.meter.used(by_tokens.max(by_requests));
        self.learner.book(charge, now)
    }

    /// Hears what a response that is no refusal told.
    pub fn hear(&mut self, booking: &Booking, told: &RateHeaders, now: Instant) {
        self.learner.hear(booking, told, now);
        self.pace_if_new(now);
    }

    /// Hears that a call was refused until then, perhaps for want of tokens.
    pub fn refused(&mut self, booking: &Booking, until: Instant, told: &RateHeaders, now: Instant) {
        if self.learner.may_be_full(booking, told) {
            self.learner.refused(booking, until, told, now);
        }
        self.pace_if_new(now);
    }

    /// Takes back what a call was booked with that was refused for another reason.
    pub fn take_back(&mut self, booking: &Booking) {
        self.learner.take_back(booking);
    }

    /// Requests a minute, as the service tells them.
    pub fn hear_requests(&mut self, told: &RateHeaders, now: Instant) {
        let Some(limit) = told.limit_requests.filter(|limit| Some(*limit) != self.rpm) else {
            return;
        };
        info!(deployment.name = %self.name, "the service says {limit} requests a minute");
        self.rpm = Some(limit);
        self.set_requests(now);
    }

    /// Lets this instance use a part of it.
    pub fn set_share(&mut self, share: f64, now: Instant) {
        self.share = share;
        self.learner.set_share(share);
        self.set_requests(now);
        self.adjust_pace(now);
    }

    /// Whether it limits what goes, so that the number of calls in flight need not.
    pub fn is_paced(&self) -> bool {
        self.tokens.is_some() || self.requests.is_some()
    }

    /// Whether tokens a minute are known and paced.
    pub fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    /// Tokens a minute by the service's measure; `None` while no limit is known.
    pub fn limit(&self) -> Option<f64> {
        self.learner.limit()
    }

    /// The limit where it is not the configured one.
    pub fn learnt(&self) -> Option<f64> {
        self.learner.learnt()
    }

    /// The service's charge for one token of ours.
    pub fn factor(&self) -> f64 {
        self.learner.factor()
    }

    /// The most that one request may be charged.
    pub fn largest(&self) -> u64 {
        self.learner.largest()
    }

    pub fn rpm(&self) -> Option<u64> {
        self.rpm
    }

    pub fn share(&self) -> f64 {
        self.share
    }

    fn pace_if_new(&mut self, now: Instant) {
        if self.tokens.is_none() && self.learner.limit().is_some() {
            self.adjust_pace(now);
        }
    }

    fn set_requests(&mut self, now: Instant) {
        let Some(rpm) = self.rpm else { return };
        let rate = rpm as f64 * REQUESTS_USED * (1.0 - self.reserve) * self.share;
        match &mut self.requests {
            Some(requests) => requests.set_rate(rate, now),
            none => *none = Some(Pace::new(rate, REQUEST_SLACK, now)),
        }
    }

    fn adjust_pace(&mut self, now: Instant) {
        self.looked_at = Some(now);
        self.look_at_window(now);
        if !self.is_metered {
            return;
        }
        let saved = self.tokens.as_ref().map_or(0, Pace::saved);
        let Some(rate) = self.learner.rate(saved, now) else { return };
        match &mut self.tokens {
            Some(tokens) if (tokens.per_minute() / rate - 1.0).abs() > RATE_STEP => {
                tokens.set_rate(rate, now);
            }
            Some(_) => {}
            none => *none = Some(Pace::new(rate, TOKEN_SLACK, now)),
        }
    }

    fn look_at_window(&mut self, now: Instant) {
        let whole = self.learner.whole_window().min(self.learner.largest());
        let total = self.learner.total();
        self.left = self.learner.room(now).map(|room| Left {
            tokens: room.tokens as f64 + total,
            whole,
            until: room.until,
        });
    }
}
