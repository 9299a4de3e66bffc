//! How one deployment behaves: limits, latency, faults, tiers, and who else uses it.
//!
//! A [`Profile`] is the state, a [`Setting`] one change of it; the same settings make a deployment
//! differ from the others before the start, by schedule, and while it runs. Neighbours: `spec` reads
//! settings as text, `capacity` acts on the profile's limits, `judge` on its faults and latency.

use std::time::Duration;

use super::duty::{Duty, Others};
use super::faults::{Fault, Faults, Latency};
use super::quota::Limits;
use super::settings::BadSettings;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// In force unless `ptu` is set.
    pub limits: Limits,
    /// Tokens a minute that a provisioned deployment works off; `None` is a standard deployment.
    pub ptu: Option<u64>,
    pub latency: Latency,
    pub faults: Faults,
    /// When the flex tier has room; `None` where there is no flex tier.
    pub flex: Option<Duty>,
    pub other_tpm: u64,
    pub other_bursts: Duty,
    /// Whether answers tell the standing of the quota, or the utilisation.
    pub rate_headers: bool,
    pub outage: Option<Outage>,
}

/// A deployment that does not work at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    pub down: Down,
    /// Since the simulator started; `None` is until told otherwise.
    pub until: Option<Duration>,
}

/// What callers of a deployment that is down meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// The connection is reset.
    Reset,
    /// 500
    Internal,
    /// 503
    Unavailable,
}

/// One change of a deployment's behaviour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Setting {
    /// Tokens a minute; `None` is unlimited.
    Tpm(Option<u64>),
    /// Requests a minute; `None` is unlimited.
    Rpm(Option<u64>),
    /// Makes it provisioned, working off so many tokens a minute in place of `Tpm` and `Rpm`.
    Ptu(Option<u64>),
    Latency(Latency),
    /// Milliseconds to the first token.
    LatencyMs(f64),
    /// Milliseconds for each token of the answer.
    TokenMs(f64),
    /// Sigma of the latency's lognormal factor.
    Spread(f64),
    Faults(Faults),
    /// The share of calls that meet this fault.
    Rate(Fault, f64),
    /// When the flex tier has room; `None` where there is no flex tier.
    Flex(Option<Duty>),
    /// Tokens a minute that other callers book while they are there.
    OtherTpm(u64),
    /// When other callers are there.
    OtherBursts(Duty),
    RateHeaders(bool),
    /// `None` ends an outage; the span is how long it lasts, for ever without.
    Down(Option<(Down, Option<Duration>)>),
}

impl Profile {
    /// The profile with these changes, made `now`.
    pub fn with(mut self, now: Duration, settings: &[Setting]) -> Result<Self, BadSettings> {
        for setting in settings {
            self.set(now, *setting);
        }
        self.check()?;
        Ok(self)
    }

    pub fn check(&self) -> Result<(), BadSettings> {
        if !self.faults.are_rates() {
            return Err(BadSettings::FaultRates);
        }
        let Latency { base_ms, per_token_ms, sigma } = self.latency;
        if [base_ms, per_token_ms, sigma].iter().any(|ms| !(0.0..f64::INFINITY).contains(ms)) {
            return Err(BadSettings::Latency);
        }
        if self.ptu == Some(0) {
            return Err(BadSettings::NoPtu);
        }
        if self.ptu.is_some() && self.flex.is_some() {
            return Err(BadSettings::FlexOnPtu);
        }
        if !self.flex.iter().chain([&self.other_bursts]).all(Duty::is_sound) {
            return Err(BadSettings::Duty);
        }
        Ok(())
    }

    /// The limits in force: a provisioned deployment has none of this kind.
    pub fn limits(&self) -> Limits {
        if self.ptu.is_some() { Limits { tpm: None, rpm: None } } else { self.limits }
    }

    pub fn others(&self) -> Option<Others> {
        (self.other_tpm > 0).then_some(Others { tpm: self.other_tpm, bursts: self.other_bursts })
    }

    pub fn is_down(&self, now: Duration) -> Option<Down> {
        let outage = self.outage.as_ref()?;
        outage.until.is_none_or(|until| now < until).then_some(outage.down)
    }

    fn set(&mut self, now: Duration, setting: Setting) {
        match setting {
            Setting::Tpm(tpm) => self.limits.tpm = tpm,
            Setting::Rpm(rpm) => self.limits.rpm = rpm,
            Setting::Ptu(ptu) => self.ptu = ptu,
            Setting::Latency(latency) => self.latency = latency,
            Setting::LatencyMs(ms) => self.latency.base_ms = ms,
            Setting::TokenMs(ms) => self.latency.per_token_ms = ms,
            Setting::Spread(sigma) => self.latency.sigma = sigma,
            Setting::Faults(faults) => self.faults = faults,
            Setting::Rate(fault, rate) => *self.faults.rate_mut(fault) = rate,
            Setting::Flex(flex) => self.flex = flex,
            Setting::OtherTpm(tpm) => self.other_tpm = tpm,
            Setting::OtherBursts(bursts) => self.other_bursts = bursts,
            Setting::RateHeaders(on) => self.rate_headers = on,
            Setting::Down(down) => {
                self.outage = down.map(|(down, lasts)| Outage {
                    down,
                    until: lasts.map(|span| now.saturating_add(span)),
                });
            }
        }
    }
}

impl Down {
    pub fn fault(self) -> Fault {
        match self {
            Self::Reset => Fault::ResetBefore,
            Self::Internal => Fault::Internal,
            Self::Unavailable => Fault::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Settings;
    use super::*;

    fn plain() -> Profile {
        Settings::default().profile()
    }

    #[test]
    fn settings_change_what_they_name_and_nothing_else() {
        let changed =
            plain().with(Duration::ZERO, &[Setting::Tpm(Some(9)), Setting::TokenMs(2.0)]).unwrap();
        let latency = Latency { per_token_ms: 2.0, ..Latency::default() };
        let expected = Profile { limits: Limits { tpm: Some(9), rpm: None }, latency, ..plain() };
        assert_eq!(changed, expected);
    }

    #[test]
    fn an_outage_ends_by_itself_or_when_told() {
        let at = Duration::from_secs;
        let down = |lasts| [Setting::Down(Some((Down::Reset, lasts)))];
        let short = plain().with(at(10), &down(Some(at(5)))).unwrap();
        assert_eq!(short.is_down(at(14)), Some(Down::Reset));
        assert_eq!(short.is_down(at(15)), None);
        let long = plain().with(at(10), &down(None)).unwrap();
        assert_eq!(long.is_down(at(9_999)), Some(Down::Reset));
        let up = long.with(at(20), &[Setting::Down(None)]).unwrap();
        assert_eq!(up.is_down(at(20)), None);
    }

    #[test]
    fn profiles_that_no_deployment_has_are_refused() {
        let never = Duty { on: Duration::ZERO, period: Duration::ZERO };
        for (settings, fault) in [
            (&[Setting::Ptu(Some(0))][..], BadSettings::NoPtu),
            (&[Setting::Ptu(Some(1)), Setting::Flex(Some(Duty::ALWAYS))], BadSettings::FlexOnPtu),
            (&[Setting::Flex(Some(never))], BadSettings::Duty),
            (&[Setting::OtherBursts(never)], BadSettings::Duty),
            (&[Setting::Rate(Fault::Hang, 1.5)], BadSettings::FaultRates),
            (&[Setting::Spread(f64::NAN)], BadSettings::Latency),
        ] {
            assert_eq!(plain().with(Duration::ZERO, settings), Err(fault), "{settings:?}");
        }
    }

    #[test]
    fn a_provisioned_deployment_has_no_quota_of_tokens() {
        let settings = [Setting::Tpm(Some(10)), Setting::Ptu(Some(100))];
        let profile = plain().with(Duration::ZERO, &settings).unwrap();
        assert_eq!(profile.limits(), Limits { tpm: None, rpm: None });
        let back = profile.with(Duration::ZERO, &[Setting::Ptu(None)]).unwrap();
        assert_eq!(back.limits().tpm, Some(10));
    }
}
