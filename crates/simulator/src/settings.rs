//! Simulator settings: quotas, latency, faults, triggers.
//!
//! A test sets fields on [`SimulatorSettings::default`]; the command line fills the same struct.
//! [`check`] runs before a port is bound, so that a running simulator never divides by a window of
//! zero. Neighbours: `profile` is the resulting behaviour of one deployment, `spec` parses its
//! settings.
//!
//! [`check`]: SimulatorSettings::check

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;

use super::duty_cycle::DutyCycle;
use super::error::{BadSimulatorSettings, MOST_OUTPUT};
use super::faults::{FaultRates, SimulatedLatency};
use super::meter::MeterRules;
use super::profile::{DeploymentProfile, ProfileSetting};
use super::quota_status::QuotaLimits;
use super::spec::{ScheduledChange, is_deployment_name};

/// Output tokens that the service books when a request sets no maximum. The service publishes no
/// number; promptmill's own admission assumes the same one.
pub const DEFAULT_MAX_OUTPUT: u32 = 4_096;

/// Default dimensions of an embedding, as in `text-embedding-3-small`.
pub const DEFAULT_DIMENSIONS: u32 = 1_536;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct SimulatorSettings {
    /// Seed of the random numbers for answers, their lengths, faults and latency.
    pub seed: u64,
    /// Tokens per minute of each deployment; `None` is unlimited.
    pub tpm: Option<u64>,
    /// Requests per minute of each deployment; `None` is unlimited.
    pub rpm: Option<u64>,
    /// Length of a quota window. Shorter ones keep the rate: their quota is `tpm` × window ÷ 60 s.
    pub window: Duration,
    /// Slice in which `rpm` is enforced: Azure uses 1 s or 10 s. Not scaled by `window`.
    pub request_slice: Duration,
    pub latency: SimulatedLatency,
    pub faults: FaultRates,
    /// Key that callers must send, as `api-key` or bearer token; `None` disables the check.
    pub api_key: Option<SecretString>,
    /// Deployment names. If they and `overrides` are empty, any name is a deployment.
    pub deployments: Vec<String>,
    /// Deployments with settings of their own.
    pub overrides: BTreeMap<String, Vec<ProfileSetting>>,
    /// Scheduled changes.
    pub changes: Vec<ScheduledChange>,
    /// Maximum sum of prompt and output tokens of a chat or Responses request. Embeddings are
    /// exempt.
    pub max_context: u32,
    /// Maximum answer length: 1 to this many tokens, or what the request allows, if less.
    /// Reasoning models add as much again for reasoning.
    pub typical_output: u32,
    /// Text that makes the content filter refuse a prompt; empty disables it.
    pub content_filter_trigger: String,
    /// Text that makes a prompt be refused as too long; empty disables it.
    pub context_trigger: String,
    /// Factor on the booked estimate: the real service's estimate is not published, so callers
    /// must cope with one that differs from theirs.
    pub charge_factor: f64,
    /// Share of structured-output answers that violate the requested format.
    pub misfits: f64,
    /// Keeps the first 80 characters of each distinct prompt in the ledger.
    pub ledger_samples: bool,
    /// Sends rate-limit headers of -1 and 0 on Responses calls, as seen in the wild.
    pub odd_rate_headers: bool,
    /// Rules of each deployment's token meter, and of the headers that report it.
    pub meter: MeterRules,
    /// Region sent in `x-ms-region`.
    pub region: String,
}

impl Default for SimulatorSettings {
    fn default() -> Self {
        Self {
            seed: 0,
            tpm: None,
            rpm: None,
            window: MINUTE,
            request_slice: Duration::from_secs(1),
            latency: SimulatedLatency::default(),
            faults: FaultRates::default(),
            api_key: None,
            deployments: Vec::new(),
            overrides: BTreeMap::new(),
            changes: Vec::new(),
            max_context: 128_000,
            typical_output: 64,
            content_filter_trigger: "[[content_filter]]".to_owned(),
            context_trigger: "[[context_length_exceeded]]".to_owned(),
            charge_factor: 1.0,
            misfits: 0.0,
            ledger_samples: true,
            odd_rate_headers: false,
            meter: MeterRules::DOCUMENTED,
            region: "Simulated".to_owned(),
        }
    }
}

impl SimulatorSettings {
    /// Returns the first error in these settings, if any.
    pub fn check(&self) -> Result<(), BadSimulatorSettings> {
        if self.window < Duration::from_millis(1) {
            return Err(BadSimulatorSettings::Window(self.window));
        }
        if self.request_slice < Duration::from_millis(1) || self.request_slice > MINUTE {
            return Err(BadSimulatorSettings::Slice(self.request_slice));
        }
        if !(0.0..=1.0).contains(&self.misfits) {
            return Err(BadSimulatorSettings::Misfits(self.misfits));
        }
        if !(self.charge_factor.is_finite() && self.charge_factor > 0.0) {
            return Err(BadSimulatorSettings::ChargeFactor(self.charge_factor));
        }
        if !(1..=MOST_OUTPUT).contains(&self.typical_output) {
            return Err(BadSimulatorSettings::TypicalOutput(self.typical_output));
        }
        if self.max_context == 0 {
            return Err(BadSimulatorSettings::NoContext);
        }
        let mut names = self.deployments.iter().chain(self.overrides.keys());
        if let Some(name) = names.find(|name| !is_deployment_name(name)) {
            return Err(BadSimulatorSettings::DeploymentName(name.clone()));
        }
        if !self.region.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(BadSimulatorSettings::Region(self.region.clone()));
        }
        self.check_profiles()
    }

    /// Returns true if every name is a deployment.
    pub fn takes_any_name(&self) -> bool {
        self.deployments.is_empty() && self.overrides.is_empty()
    }

    /// Returns the profile of a deployment without settings of its own.
    pub fn profile(&self) -> DeploymentProfile {
        DeploymentProfile {
            limits: QuotaLimits { tpm: self.tpm, rpm: self.rpm },
            ptu: None,
            latency: self.latency,
            faults: self.faults,
            flex: None,
            other_tpm: 0,
            other_bursts: DutyCycle::ALWAYS,
            meter: self.meter,
            outage: None,
        }
    }

    /// Checks the profile of every deployment through the whole schedule.
    fn check_profiles(&self) -> Result<(), BadSimulatorSettings> {
        let mut common = self.profile();
        common.check()?;
        let mut known = BTreeMap::new();
        for name in &self.deployments {
            known.insert(name, common);
        }
        for (name, own) in &self.overrides {
            known.insert(name, common.with(Duration::ZERO, own)?);
        }
        let mut changes: Vec<_> = self.changes.iter().collect();
        changes.sort_by_key(|change| change.after);
        for ScheduledChange { after, deployment, settings } in changes {
            if let Some(name) = deployment {
                if self.takes_any_name() && is_deployment_name(name) {
                    known.entry(name).or_insert(common);
                }
                let no_such = || BadSimulatorSettings::NoSuchDeployment(name.clone());
                let profile = known.get_mut(name).ok_or_else(no_such)?;
                *profile = profile.with(*after, settings)?;
                continue;
            }
            common = common.with(*after, settings)?;
            for profile in known.values_mut() {
                *profile = profile.with(*after, settings)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good() {
        assert_eq!(SimulatorSettings::default().check(), Ok(()));
    }

    #[test]
    fn settings_that_could_not_run_are_named() {
        let d = SimulatorSettings::default;
        let faults = FaultRates { rate_hang: 2.0, ..FaultRates::default() };
        let latency = SimulatedLatency { base_ms: -1.0, ..SimulatedLatency::default() };
        let bad = "a b".to_owned();
        let no_ptu = [("a".to_owned(), vec![ProfileSetting::Ptu(Some(0))])].into();
        let cases = [
            (
                SimulatorSettings { window: Duration::ZERO, ..d() },
                BadSimulatorSettings::Window(Duration::ZERO),
            ),
            (
                SimulatorSettings { request_slice: Duration::ZERO, ..d() },
                BadSimulatorSettings::Slice(Duration::ZERO),
            ),
            (SimulatorSettings { faults, ..d() }, BadSimulatorSettings::FaultRates),
            (SimulatorSettings { latency, ..d() }, BadSimulatorSettings::Latency),
            (
                SimulatorSettings { charge_factor: 0.0, ..d() },
                BadSimulatorSettings::ChargeFactor(0.0),
            ),
            (SimulatorSettings { misfits: 1.5, ..d() }, BadSimulatorSettings::Misfits(1.5)),
            (
                SimulatorSettings { typical_output: 0, ..d() },
                BadSimulatorSettings::TypicalOutput(0),
            ),
            (SimulatorSettings { max_context: 0, ..d() }, BadSimulatorSettings::NoContext),
            (
                SimulatorSettings { deployments: vec![bad.clone()], ..d() },
                BadSimulatorSettings::DeploymentName(bad),
            ),
            (
                SimulatorSettings { region: "é".to_owned(), ..d() },
                BadSimulatorSettings::Region("é".to_owned()),
            ),
            (SimulatorSettings { overrides: no_ptu, ..d() }, BadSimulatorSettings::NoPtu),
        ];
        for (settings, fault) in cases {
            assert_eq!(settings.check(), Err(fault));
        }
    }

    #[test]
    fn a_schedule_is_played_through_before_the_start() {
        let check = |deployments: &[&str], changes: &[&str]| {
            let deployments = deployments.iter().map(|name| name.to_string()).collect();
            let changes = changes.iter().map(|change| change.parse().unwrap()).collect();
            SimulatorSettings { deployments, changes, ..SimulatorSettings::default() }.check()
        };
        let no_such = BadSimulatorSettings::NoSuchDeployment("b".to_owned());
        assert_eq!(check(&["a"], &["1s:b,tpm=1"]), Err(no_such));
        assert_eq!(check(&[], &["1s:b,tpm=1"]), Ok(()), "any name is a deployment");
        assert_eq!(check(&["a"], &["1s:a,ptu=9", "2s:ptu=none", "3s:flex=on"]), Ok(()));
        assert_eq!(
            check(&["a"], &["1s:a,ptu=9", "3s:flex=on"]),
            Err(BadSimulatorSettings::FlexOnPtu),
            "by then it is provisioned"
        );
    }
}
