//! What a deployment's quota of tokens is, and how fast to spend it: from what was configured, what
//! the headers say, and what was refused.
//!
//! - The **limit** is what the headers say, else what was found out, else what was configured.
//! - Where nobody tells it, it is **found**: what was admitted in a window until the first refusal.
//!   From there it grows while windows pass without a refusal, and falls back at the next one.
//! - The **rate** is what is left of the window over the time that is left of it, so that whatever
//!   went wrong in a window is made up for in the same window.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::Booking;
use super::factor::estimate;
use super::recent::Recent;
use super::window::{News, Rates, Windows};
use domain::headers::RateHeaders;

/// The part of the quota that is paced out where the window is not known. The rest absorbs that
/// requests reach the service a little later and closer together than they left.
const USED: f64 = 0.995;

/// The part of a window that is left over, at first and after refusals.
const MARGIN: f64 = 0.001;
const LARGEST_MARGIN: f64 = 0.01;

/// The most that is made up for at a time, as part of the plain rate.
const CATCH_UP: f64 = 2.0;
const SLOWEST: f64 = 0.05;

/// What is left of a window is spread over at least so many seconds: the pace is looked at as often.
const SHORTEST: f64 = 0.1;

/// Growth of a quota that was found, after a window without a refusal, and its greatest.
const GROWTH: f64 = 0.02;
const GREATEST_GROWTH: f64 = 0.32;
/// Windows after a refusal in which it does not grow.
const REST: u32 = 2;

/// A quota is found out only after so many times the refused charge, and a refusal that ends sooner
/// than this may be about a rate.
const LEAST_ADMITTED: f64 = 10.0;
const NEAR_END: Duration = Duration::from_secs(5);

/// Bounds of the factor; what lies beyond is no estimate but a misunderstanding.
const FACTORS: (f64, f64) = (0.1, 10.0);

/// Samples at which the factor is looked at within a window.
const LOOK_AT: [usize; 3] = [32, 128, 500];

/// The tokens of one deployment, as learnt.
pub struct Learner {
    name: Box<str>,
    configured: Option<f64>,
    told: Option<f64>,
    found: Option<Found>,
    factor: Option<f64>,
    others: f64,
    margin: f64,
    windows: Windows,
    recent: Recent,
    /// When it was first known: nothing was booked before.
    first: Instant,
    /// All that was booked and not refused, by our measure.
    total: f64,
    share: f64,
    reserve: f64,
}

/// A quota that was found out.
struct Found {
    per_minute: f64,
    growth: f64,
    /// When the window ends that it was found or last looked at in.
    until: Instant,
    rest: u32,
}

/// What may be booked before a window ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// By our measure.
    pub tokens: u64,
    /// When there is a new window.
    pub until: Instant,
}

impl Learner {
    pub fn new(name: &str, tpm: Option<u64>, reserve: f64, now: Instant) -> Self {
        Self {
            name: name.into(),
            configured: tpm.map(|tpm| tpm as f64),
            told: None,
            found: None,
            factor: None,
            others: 0.0,
            margin: MARGIN,
            windows: Windows::default(),
            recent: Recent::new(now),
            first: now,
            total: 0.0,
            share: 1.0,
            reserve,
        }
    }

    /// Tokens a minute by the service's measure; `None` while no limit is known.
    pub fn limit(&self) -> Option<f64> {
        let found = self.found.as_ref().map(|found| found.per_minute);
        self.told.or(found).or(self.configured)
    }

    /// The limit where it is not the configured one.
    pub fn learnt(&self) -> Option<f64> {
        self.limit().filter(|limit| Some(*limit) != self.configured)
    }

    /// The service's charge for one token of ours.
    pub fn factor(&self) -> f64 {
        self.factor.unwrap_or(1.0)
    }

    pub fn set_share(&mut self, share: f64) {
        self.share = share;
    }

    /// The most that one request may be charged, by our measure.
    pub fn largest(&self) -> u64 {
        // Neither a lowered limit, nor one that was found, nor a factor a little off may turn a job
        // away: the service says so itself if it never fits.
        let known = self.configured.into_iter().chain(self.told).reduce(f64::max);
        known.map_or(u64::MAX, |limit| (limit / self.factor().min(1.0)) as u64)
    }

    /// A call of this charge begins; returns the total with it.
    pub fn book(&mut self, charge: u64, now: Instant) -> f64 {
        self.total += charge as f64;
        self.recent.add(charge as f64, now);
        self.total
    }

    /// Hears what a response told.
    pub fn hear(&mut self, booking: &Booking, told: &RateHeaders, now: Instant) {
        self.hear_limit(told);
        match self.windows.hear(booking, told, now) {
            News::Nothing => {}
            News::Told => {
                self.windows.keep(booking, told);
                if LOOK_AT.contains(&self.windows.samples().len()) {
                    self.look();
                }
            }
            News::Turned => {
                self.look();
                self.margin = (self.margin / 2.0).max(MARGIN);
                self.windows.samples().clear();
                self.windows.keep(booking, told);
            }
        }
    }

    fn hear_limit(&mut self, told: &RateHeaders) {
        let Some(limit) = told.limit_tokens.map(|limit| limit as f64) else { return };
        if self.told == Some(limit) {
            return;
        }
        if self.limit() != Some(limit) {
            let before = self.limit().map_or_else(|| "unknown".to_owned(), |l| format!("{l:.0}"));
            info!(deployment.name = %self.name, "the service says {limit:.0} tokens a minute; it was {before}");
        }
        self.told = Some(limit);
        self.found = None;
        // What remained was of another quota.
        self.windows.forget();
    }

    /// Estimates the factor and what others book.
    fn look(&mut self) {
        let course = self.windows.course();
        if let Some(seen) = estimate(self.windows.samples()) {
            let seen = self.without_siblings(seen).clamp(FACTORS.0, FACTORS.1);
            let before = self.factor;
            let factor = before.map_or(seen, |factor| (factor + seen) / 2.0);
            self.factor = Some(factor);
            if (before.unwrap_or(1.0) / factor - 1.0).abs() > 0.1 {
                info!(deployment.name = %self.name, "the service charges {factor:.2} of what we count");
            }
        }
        let limit = self.limit().unwrap_or(0.0);
        if let Some((gone, booked, seconds)) = course.filter(|(_, _, seconds)| *seconds >= 1.0) {
            let others = (gone - self.factor() * booked) / seconds;
            // Less than a hundredth of the quota is the noise of calls under way.
            self.others = if others > limit / 60.0 / 100.0 { others } else { 0.0 };
        }
    }

    /// Instances that share a quota evenly book in between so regularly that their part looks like
    /// a factor: of the two readings the one nearer to what is known is taken.
    fn without_siblings(&self, seen: f64) -> f64 {
        let off = |factor: f64| (factor / self.factor()).ln().abs();
        let alone = seen * self.share;
        if off(alone) < off(seen) { alone } else { seen }
    }

    /// Takes back what a call was booked with that the service did not charge.
    pub fn take_back(&mut self, booking: &Booking) {
        let charge = booking.charge as f64;
        self.total = (self.total - charge).max(0.0);
        self.recent.take_back(charge, booking.at);
        self.windows.take_back(booking);
    }

    /// Hears that a call was refused for tokens until then.
    pub fn refused(&mut self, booking: &Booking, until: Instant, told: &RateHeaders, now: Instant) {
        self.hear_limit(told);
        self.take_back(booking);
        if self.told.is_some() {
            self.windows.refused(booking, until, now);
            self.margin = (self.margin * 2.0).min(LARGEST_MARGIN);
        } else {
            self.find(booking.charge as f64, until, now);
        }
    }

    /// Whether a refusal can be for want of tokens: more may remain than it asked for.
    pub fn may_be_full(&self, booking: &Booking, told: &RateHeaders) -> bool {
        let needed = booking.charge as f64 * self.factor();
        told.remaining_tokens.is_none_or(|left| (left as f64) < 1.5 * needed)
    }

    /// Without headers: what was admitted in this window is the quota.
    fn find(&mut self, charge: f64, until: Instant, now: Instant) {
        if self.found.as_ref().is_some_and(|found| now < found.until && found.rest == REST) {
            // The same window's refusals are one.
            return;
        }
        let period = self.windows.period();
        let began = (until - period).max(self.first);
        let admitted = self.recent.since(began, now);
        if admitted < LEAST_ADMITTED * charge {
            // So few calls are no quota: it is full for another reason.
            return;
        }
        // A window's end that is near may be no window's end at all: then the rate counts.
        let is_rate = until.saturating_duration_since(now) < NEAR_END;
        let span = if is_rate { now.saturating_duration_since(began) } else { period };
        let per_minute = admitted * 60.0 / span.as_secs_f64().max(1.0);
        // A refusal for another reason must not make what is known vanish.
        let mut per_minute = per_minute.max(self.limit().map_or(0.0, |limit| limit / 2.0));
        if let Some(configured) = self.configured {
            per_minute = per_minute.min(configured);
        }
        info!(deployment.name = %self.name, "refused after {per_minute:.0} tokens in a minute: taken for its quota");
        self.found = Some(Found { per_minute, growth: GROWTH, until, rest: REST });
    }

    /// Lets a quota that was found grow by the windows that went well.
    fn grow(&mut self, now: Instant) {
        let period = self.windows.period();
        let Some(found) = self.found.as_mut().filter(|found| now >= found.until) else { return };
        let used = self.recent.since(found.until.max(now - period), now);
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
            self.found = None;
        }
    }

    /// Tokens a minute to pace at, by our measure; `saved` is what is gathered already.
    pub fn rate(&mut self, saved: u64, now: Instant) -> Option<f64> {
        self.grow(now);
        let limit = self.limit()?;
        let factor = if self.told.is_some() { self.factor() } else { 1.0 };
        let ours = self.share * (1.0 - self.reserve);
        let plain = limit * ours * USED / factor;
        let rates = Rates { factor, others: self.others };
        let view = self.windows.view(now, self.total, limit, rates).filter(|view| view.is_heard);
        let Some(view) = view.filter(|_| self.told.is_some()) else { return Some(plain) };
        let kept = limit * view.minutes * (self.reserve + self.margin);
        let left = view.left - kept - factor * saved as f64;
        let seconds = view.ends.0.saturating_duration_since(now).as_secs_f64().max(SHORTEST);
        // Siblings take their part of what is left; strangers take what they have been taking.
        let siblings = (1.0 - self.share) * limit / 60.0;
        let strangers = (self.others - siblings).max(0.0);
        let rate = (left / seconds - strangers) * self.share / factor * 60.0;
        Some(rate.clamp(plain * SLOWEST, plain * CATCH_UP))
    }

    /// What still goes into the open window, if it is known; `None`: nothing is known to be full.
    pub fn room(&mut self, now: Instant) -> Option<Room> {
        let limit = self.told?;
        let rates = Rates { factor: self.factor(), others: 0.0 };
        let view = self.windows.view(now, self.total, limit, rates)?;
        let kept = limit * view.minutes * (self.reserve + self.margin);
        let tokens = ((view.left - kept).max(0.0) / self.factor()) as u64;
        // What fits no window at all is not held back by this one.
        Some(Room { tokens, until: view.ends.1 })
    }

    /// All that was booked and not refused.
    pub fn total(&self) -> f64 {
        self.total
    }

    /// What a whole window lets us book, by our measure.
    pub fn whole_window(&self) -> u64 {
        let minutes = self.windows.period().as_secs_f64() / 60.0;
        let part = (1.0 - self.reserve - self.margin) * minutes;
        self.told.map_or(u64::MAX, |limit| (limit * part / self.factor()) as u64)
    }
}
