//! One deployment's state: what it may take now, and what its answers taught us.
//!
//! Pure: every decision takes `now`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::demand::Meter;
use super::pace::Pace;

/// The part of the token quota that is paced out. The rest absorbs that requests reach the service
/// a little later and closer together than they left.
const TOKENS_USED: f64 = 0.995;

/// The same for requests, which the service judges in slices as short as one second.
const REQUESTS_USED: f64 = 0.98;

/// What may be caught up on after a late wake-up.
const TOKEN_SLACK: Duration = Duration::from_millis(250);
const REQUEST_SLACK: Duration = Duration::from_millis(50);

/// A share that differs by less is the same: each change forgets what accrued in the last blink.
const SAME_SHARE: f64 = 1e-4;

/// First and longest pause of a deployment that can't be connected to.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is known of a deployment's limits before it was ever asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Tokens a minute; `None`: no limit is known.
    pub tpm: Option<u64>,
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Calls in flight at a time.
    pub concurrency: usize,
}

/// What a call taught about its deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feedback {
    /// It answered: an answer, a refusal of the job, or a passing error of its own.
    Responded,
    /// It is full; nothing more until then.
    Throttled { until: Instant },
    /// No connection could be made: nothing was sent.
    Unreachable { why: String },
    /// It will never answer as configured: wrong key, no permission, no such deployment.
    Misconfigured { why: String },
}

/// Whether a deployment can take a charge.
#[derive(Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes, and it is booked.
    Taken,
    At(Instant),
    /// As soon as one of its calls ends.
    WhenACallEnds,
    /// The charge is larger than a whole minute's quota.
    NeverFits,
    Retired,
}

/// A deployment as admission sees it.
pub struct Deployment {
    limits: Limits,
    tokens: Option<Pace>,
    requests: Option<Pace>,
    /// The fraction of the limits that is ours to use.
    share: f64,
    meter: Meter,
    in_flight: usize,
    paused_until: Option<Instant>,
    unreachable: Option<Outage>,
    retired: Option<String>,
}

/// How a deployment stands, for its siblings and for people.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Standing {
    /// Fractions of the quota: what we may use, and what we could.
    pub share: f64,
    pub demand: f64,
    pub in_flight: usize,
    pub paused_ms: u64,
    pub unreachable: bool,
    pub retired: Option<String>,
}

/// A row of connections that could not be made.
struct Outage {
    since: Instant,
    failures: u32,
    why: String,
}

impl Deployment {
    pub fn new(limits: Limits, now: Instant) -> Self {
        let pace = |per_minute: Option<u64>, used: f64, slack: Duration| {
            per_minute.map(|n| Pace::new(n as f64 * used, slack, now))
        };
        Self {
            tokens: pace(limits.tpm, TOKENS_USED, TOKEN_SLACK),
            requests: pace(limits.rpm, REQUESTS_USED, REQUEST_SLACK),
            limits,
            share: 1.0,
            meter: Meter::new(now),
            in_flight: 0,
            paused_until: None,
            unreachable: None,
            retired: None,
        }
    }

    /// Books a call of this charge if it can go now.
    pub fn take(&mut self, charge: u64, now: Instant) -> Readiness {
        self.meter.waits_no_more(now);
        if self.retired.is_some() {
            return Readiness::Retired;
        }
        if self.limits.tpm.is_some_and(|tpm| charge > tpm) {
            return Readiness::NeverFits;
        }
        if let Some(until) = self.paused_until.filter(|until| *until > now) {
            return Readiness::At(until);
        }
        // After an outage one call goes first, to see.
        let room = if self.unreachable.is_some() { 1 } else { self.limits.concurrency };
        if self.in_flight >= room {
            return Readiness::WhenACallEnds;
        }
        if let Err(at) = self.book(charge, now) {
            self.meter.waits(now, at);
            return Readiness::At(at);
        }
        self.meter.used(self.minutes(charge));
        self.in_flight += 1;
        Readiness::Taken
    }

    fn book(&mut self, charge: u64, now: Instant) -> Result<(), Instant> {
        if let Some(tokens) = &mut self.tokens {
            tokens.spend(charge, now)?;
        }
        if let Some(at) = self.requests.as_mut().and_then(|r| r.spend(1, now).err()) {
            if let Some(tokens) = &mut self.tokens {
                tokens.put_back(charge);
            }
            return Err(at);
        }
        Ok(())
    }

    /// How much of a minute's whole quota a call takes.
    fn minutes(&self, charge: u64) -> f64 {
        let tokens = self.limits.tpm.map_or(0.0, |tpm| charge as f64 / tpm as f64);
        let requests = self.limits.rpm.map_or(0.0, |rpm| 1.0 / rpm as f64);
        tokens.max(requests)
    }

    /// Paces at this fraction of the limits from now on.
    pub fn set_share(&mut self, fraction: f64, now: Instant) {
        if (fraction - self.share).abs() < SAME_SHARE {
            return;
        }
        self.share = fraction;
        let rate = |per_minute: u64, used: f64| per_minute as f64 * used * fraction;
        if let Some((pace, tpm)) = self.tokens.as_mut().zip(self.limits.tpm) {
            pace.change(rate(tpm, TOKENS_USED), TOKEN_SLACK, now);
        }
        if let Some((pace, rpm)) = self.requests.as_mut().zip(self.limits.rpm) {
            pace.change(rate(rpm, REQUESTS_USED), REQUEST_SLACK, now);
        }
    }

    /// How it stands now; the demand is that since this was last asked.
    pub fn standing(&mut self, now: Instant) -> Standing {
        let paused = self.paused_until.map(|until| until.saturating_duration_since(now));
        Standing {
            share: self.share,
            demand: self.meter.demand(now),
            in_flight: self.in_flight,
            paused_ms: paused.unwrap_or_default().as_millis() as u64,
            unreachable: self.unreachable.is_some(),
            retired: self.retired.clone(),
        }
    }

    /// Ends a call that [`Self::take`] booked.
    pub fn observe(&mut self, feedback: Feedback, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        match feedback {
            Feedback::Responded => self.unreachable = None,
            Feedback::Throttled { until } => {
                self.unreachable = None;
                self.paused_until = self.paused_until.max(Some(until));
            }
            Feedback::Unreachable { why } => self.reconnect_later(why, now),
            Feedback::Misconfigured { why } => {
                self.retired.get_or_insert(why);
            }
        }
    }

    fn reconnect_later(&mut self, why: String, now: Instant) {
        let outage = self.unreachable.get_or_insert(Outage { since: now, failures: 0, why });
        // Calls that were under way together fail together: they are one failure.
        if self.paused_until.is_none_or(|until| until <= now) {
            let pause = FIRST_PAUSE * 2_u32.saturating_pow(outage.failures.min(16));
            outage.failures += 1;
            self.paused_until = Some(now + pause.min(LONGEST_PAUSE));
        }
    }

    /// Since when no connection could be made, and why.
    pub fn outage(&self) -> Option<(Instant, &str)> {
        self.unreachable.as_ref().map(|outage| (outage.since, outage.why.as_str()))
    }

    /// Why the deployment is out of the pool for good.
    pub fn retired(&self) -> Option<&str> {
        self.retired.as_deref()
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(tpm: Option<u64>, rpm: Option<u64>, concurrency: usize) -> Limits {
        Limits { tpm, rpm, concurrency }
    }

    #[tokio::test(start_paused = true)]
    async fn a_429_pauses_the_deployment_until_the_time_it_named() {
        let now = Instant::now();
        let mut d = Deployment::new(limits(None, None, 2), now);
        assert_eq!(d.take(1, now), Readiness::Taken);
        let until = now + Duration::from_secs(7);
        d.observe(Feedback::Throttled { until }, now);
        assert_eq!(d.take(1, now), Readiness::At(until));
        assert_eq!(d.take(1, until), Readiness::Taken);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_in_flight_are_capped() {
        let now = Instant::now();
        let mut d = Deployment::new(limits(None, None, 1), now);
        assert_eq!(d.take(1, now), Readiness::Taken);
        assert_eq!(d.take(1, now), Readiness::WhenACallEnds);
        d.observe(Feedback::Responded, now);
        assert_eq!(d.take(1, now), Readiness::Taken);
    }

    #[tokio::test(start_paused = true)]
    async fn a_charge_over_a_minutes_quota_never_fits() {
        let now = Instant::now();
        let mut d = Deployment::new(limits(Some(1_000), None, 1), now);
        assert_eq!(d.take(1_001, now), Readiness::NeverFits);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_requests_wastes_no_tokens() {
        let mut now = Instant::now();
        let start = now;
        let mut d = Deployment::new(limits(Some(60_000), Some(60), 10_000), now);
        let mut taken = 0;
        while now < start + Duration::from_secs(120) {
            match d.take(900, now) {
                Readiness::Taken => taken += 1,
                Readiness::At(at) => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert!((115..=120).contains(&taken), "requests are the limit, not tokens: {taken}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unreachable_deployment_is_probed_by_one_call_after_growing_pauses() {
        let mut now = Instant::now();
        let mut d = Deployment::new(limits(None, None, 8), now);
        for expected_ms in [250, 500, 1_000] {
            assert_eq!(d.take(1, now), Readiness::Taken);
            d.observe(Feedback::Unreachable { why: "refused".into() }, now);
            let until = now + Duration::from_millis(expected_ms);
            assert_eq!(d.take(1, now), Readiness::At(until));
            now = until;
        }
        assert_eq!(d.take(1, now), Readiness::Taken);
        assert_eq!(d.take(1, now), Readiness::WhenACallEnds);
        d.observe(Feedback::Responded, now);
        assert!(d.outage().is_none());
    }
}
