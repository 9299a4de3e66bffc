//! Behaviour of one deployment: limits, latency, faults, tiers, and foreign traffic.
//!
//! A [`DeploymentProfile`] is the state, a [`ProfileSetting`] one change to it; the same settings
//! apply to a deployment before the start, by schedule, and while it runs. Neighbours: `spec`
//! parses settings, `capacity` applies the profile's limits, `judge` its faults and latency.

use std::time::Duration;

use super::duty_cycle::{DutyCycle, ForeignTraffic};
use super::error::BadSimulatorSettings;
use super::faults::{FaultRates, InjectedFault, SimulatedLatency};
use super::meter::{CountedTokens, HeaderStyle, MeterKind, MeterRules};
use super::quota_status::QuotaLimits;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeploymentProfile {
    /// Quota limits; they apply unless `ptu` is set.
    pub limits: QuotaLimits,
    /// Tokens a minute that a provisioned deployment drains; `None` is a standard deployment.
    pub ptu: Option<u64>,
    pub latency: SimulatedLatency,
    pub faults: FaultRates,
    /// Duty cycle in which the flex tier has room; `None` without a flex tier.
    pub flex: Option<DutyCycle>,
    pub other_tpm: u64,
    pub other_bursts: DutyCycle,
    /// Rules of the token meter. A provisioned deployment has none, and reports its utilisation
    /// unless the headers are off.
    pub meter: MeterRules,
    pub outage: Option<Outage>,
}

/// Outage of a whole deployment: every call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    pub kind: OutageKind,
    /// End, as time since the simulator started; `None` lasts until a setting ends it.
    pub until: Option<Duration>,
}

/// Failure that every call meets during an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageKind {
    /// The connection is reset.
    Reset,
    /// 500
    Internal,
    /// 503
    Unavailable,
}

/// One change to a deployment's behaviour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ProfileSetting {
    /// Tokens a minute; `None` is unlimited.
    Tpm(Option<u64>),
    /// Requests a minute; `None` is unlimited.
    Rpm(Option<u64>),
    /// Makes it provisioned, draining this many tokens a minute, in place of `Tpm` and `Rpm`.
    Ptu(Option<u64>),
    Latency(SimulatedLatency),
    /// Milliseconds to the first token.
    LatencyMs(f64),
    /// Milliseconds for each token of the answer.
    TokenMs(f64),
    /// Sigma of the log-normal latency factor.
    Spread(f64),
    Faults(FaultRates),
    /// Share of calls that meet this fault.
    Rate(InjectedFault, f64),
    /// Duty cycle in which the flex tier has room; `None` without a flex tier.
    Flex(Option<DutyCycle>),
    /// Tokens a minute that other callers book during a burst.
    OtherTpm(u64),
    /// Duty cycle of the other callers' bursts.
    OtherBursts(DutyCycle),
    RateHeaders(HeaderStyle),
    Meter(MeterKind),
    Counts(CountedTokens),
    /// Tokens a minute that a gateway before the service lets through.
    GatewayTpm(Option<u64>),
    /// Part of the quota in force, which the limit in the headers alone shows.
    Cut(f64),
    /// Starts an outage of this duration (unlimited if `None`); an outer `None` ends it.
    Down(Option<(OutageKind, Option<Duration>)>),
}

impl DeploymentProfile {
    /// Returns the profile with these changes applied at `now`.
    pub fn with(
        mut self,
        now: Duration,
        settings: &[ProfileSetting],
    ) -> Result<Self, BadSimulatorSettings> {
        for setting in settings {
            self.set(now, *setting);
        }
        self.check()?;
        Ok(self)
    }

    pub fn check(&self) -> Result<(), BadSimulatorSettings> {
        if !self.faults.are_valid() {
            return Err(BadSimulatorSettings::FaultRates);
        }
        let SimulatedLatency { base_ms, per_token_ms, sigma } = self.latency;
        if [base_ms, per_token_ms, sigma].iter().any(|ms| !(0.0..f64::INFINITY).contains(ms)) {
            return Err(BadSimulatorSettings::Latency);
        }
        if self.ptu == Some(0) {
            return Err(BadSimulatorSettings::NoPtu);
        }
        if self.ptu.is_some() && self.flex.is_some() {
            return Err(BadSimulatorSettings::FlexOnPtu);
        }
        if !self.flex.iter().chain([&self.other_bursts]).all(DutyCycle::is_sound) {
            return Err(BadSimulatorSettings::DutyCycle);
        }
        if !self.meter.is_sound() {
            return Err(BadSimulatorSettings::Meter);
        }
        Ok(())
    }

    /// Returns the limits in force: none for a provisioned deployment.
    pub fn limits(&self) -> QuotaLimits {
        if self.ptu.is_some() { QuotaLimits { tpm: None, rpm: None } } else { self.limits }
    }

    pub fn foreign_traffic(&self) -> Option<ForeignTraffic> {
        (self.other_tpm > 0)
            .then_some(ForeignTraffic { tpm: self.other_tpm, bursts: self.other_bursts })
    }

    pub fn outage_kind(&self, now: Duration) -> Option<OutageKind> {
        let outage = self.outage.as_ref()?;
        outage.until.is_none_or(|until| now < until).then_some(outage.kind)
    }

    fn set(&mut self, now: Duration, setting: ProfileSetting) {
        match setting {
            ProfileSetting::Tpm(tpm) => self.limits.tpm = tpm,
            ProfileSetting::Rpm(rpm) => self.limits.rpm = rpm,
            ProfileSetting::Ptu(ptu) => self.ptu = ptu,
            ProfileSetting::Latency(latency) => self.latency = latency,
            ProfileSetting::LatencyMs(ms) => self.latency.base_ms = ms,
            ProfileSetting::TokenMs(ms) => self.latency.per_token_ms = ms,
            ProfileSetting::Spread(sigma) => self.latency.sigma = sigma,
            ProfileSetting::Faults(faults) => self.faults = faults,
            ProfileSetting::Rate(fault, rate) => *self.faults.rate_mut(fault) = rate,
            ProfileSetting::Flex(flex) => self.flex = flex,
            ProfileSetting::OtherTpm(tpm) => self.other_tpm = tpm,
            ProfileSetting::OtherBursts(bursts) => self.other_bursts = bursts,
            ProfileSetting::RateHeaders(style) => self.meter.headers = style,
            ProfileSetting::Meter(kind) => self.meter.kind = kind,
            ProfileSetting::Counts(counted) => self.meter.counted = counted,
            ProfileSetting::GatewayTpm(tpm) => self.meter.gateway_tpm = tpm,
            ProfileSetting::Cut(part) => self.meter.cut = part,
            ProfileSetting::Down(down) => {
                self.outage = down.map(|(down, lasts)| Outage {
                    kind: down,
                    until: lasts.map(|span| now.saturating_add(span)),
                });
            }
        }
    }
}

impl OutageKind {
    pub fn fault(self) -> InjectedFault {
        match self {
            Self::Reset => InjectedFault::ResetBefore,
            Self::Internal => InjectedFault::Internal,
            Self::Unavailable => InjectedFault::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::SimulatorSettings;
    use super::*;

    fn plain() -> DeploymentProfile {
        SimulatorSettings::default().profile()
    }

    #[test]
    fn settings_change_what_they_name_and_nothing_else() {
        let changed = plain()
            .with(Duration::ZERO, &[ProfileSetting::Tpm(Some(9)), ProfileSetting::TokenMs(2.0)])
            .unwrap();
        let latency = SimulatedLatency { per_token_ms: 2.0, ..SimulatedLatency::default() };
        let expected = DeploymentProfile {
            limits: QuotaLimits { tpm: Some(9), rpm: None },
            latency,
            ..plain()
        };
        assert_eq!(changed, expected);
    }

    #[test]
    fn an_outage_ends_by_itself_or_when_told() {
        let at = Duration::from_secs;
        let down = |lasts| [ProfileSetting::Down(Some((OutageKind::Reset, lasts)))];
        let short = plain().with(at(10), &down(Some(at(5)))).unwrap();
        assert_eq!(short.outage_kind(at(14)), Some(OutageKind::Reset));
        assert_eq!(short.outage_kind(at(15)), None);
        let long = plain().with(at(10), &down(None)).unwrap();
        assert_eq!(long.outage_kind(at(9_999)), Some(OutageKind::Reset));
        let up = long.with(at(20), &[ProfileSetting::Down(None)]).unwrap();
        assert_eq!(up.outage_kind(at(20)), None);
    }

    #[test]
    fn profiles_that_no_deployment_has_are_refused() {
        let never = DutyCycle { on: Duration::ZERO, period: Duration::ZERO };
        for (settings, fault) in [
            (&[ProfileSetting::Ptu(Some(0))][..], BadSimulatorSettings::NoPtu),
            (
                &[ProfileSetting::Ptu(Some(1)), ProfileSetting::Flex(Some(DutyCycle::ALWAYS))],
                BadSimulatorSettings::FlexOnPtu,
            ),
            (&[ProfileSetting::Flex(Some(never))], BadSimulatorSettings::DutyCycle),
            (&[ProfileSetting::OtherBursts(never)], BadSimulatorSettings::DutyCycle),
            (&[ProfileSetting::Rate(InjectedFault::Hang, 1.5)], BadSimulatorSettings::FaultRates),
            (&[ProfileSetting::Cut(0.0)], BadSimulatorSettings::Meter),
            (&[ProfileSetting::GatewayTpm(Some(0))], BadSimulatorSettings::Meter),
            (&[ProfileSetting::Spread(f64::NAN)], BadSimulatorSettings::Latency),
        ] {
            assert_eq!(plain().with(Duration::ZERO, settings), Err(fault), "{settings:?}");
        }
    }

    #[test]
    fn a_provisioned_deployment_has_no_quota_of_tokens() {
        let settings = [ProfileSetting::Tpm(Some(10)), ProfileSetting::Ptu(Some(100))];
        let profile = plain().with(Duration::ZERO, &settings).unwrap();
        assert_eq!(profile.limits(), QuotaLimits { tpm: None, rpm: None });
        let back = profile.with(Duration::ZERO, &[ProfileSetting::Ptu(None)]).unwrap();
        assert_eq!(back.limits().tpm, Some(10));
    }
}
