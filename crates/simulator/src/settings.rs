//! What the simulator is told to be: quotas, latency, faults, triggers.
//!
//! A test sets fields on [`Settings::default`]; the command line fills the same struct. [`check`]
//! runs before a port is bound, so that a simulator which runs is one that can divide by its
//! window. Neighbours: `profile` is how one deployment behaves by them, `spec` reads
//! its settings as text.
//!
//! [`check`]: Settings::check

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;

use super::duty::Duty;
use super::faults::{Faults, Latency};
use super::profile::{Profile, Setting};
use super::quota::Limits;
use super::spec::Change;

/// Output tokens that the service books when a request does not say how many it wants at most.
/// The service publishes no number; this is the one that promptmill's own admission assumes too.
pub const DEFAULT_MAX_OUTPUT: u32 = 4_096;

/// Numbers in an embedding when the request does not say, as in `text-embedding-3-small`.
pub const DEFAULT_DIMENSIONS: u32 = 1_536;

/// Longer answers than any model gives. It bounds what a simulated answer takes in memory.
const MOST_OUTPUT: u32 = 1_000_000;

const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub struct Settings {
    /// Decides answers, their lengths, faults and latency.
    pub seed: u64,
    /// Tokens per minute of each deployment; `None` is unlimited.
    pub tpm: Option<u64>,
    /// Requests per minute of each deployment; `None` is unlimited.
    pub rpm: Option<u64>,
    /// The simulator's minute. Shorter ones keep the rate: their quota is `tpm` × window ÷ 60 s.
    pub window: Duration,
    /// The slice in which `rpm` is judged: Azure uses 1 s or 10 s. Not scaled by `window`.
    pub request_slice: Duration,
    pub latency: Latency,
    pub faults: Faults,
    /// The key that callers must bring, as `api-key` or bearer token; `None` lets everybody in.
    pub api_key: Option<SecretString>,
    /// The deployments there are. Any name is one if there are none here nor in `overrides`.
    pub deployments: Vec<String>,
    /// Deployments that differ from these settings, and how.
    pub overrides: BTreeMap<String, Vec<Setting>>,
    /// Changes by schedule.
    pub changes: Vec<Change>,
    /// Prompt and output tokens that fit a chat or Responses request together. Embeddings are not
    /// measured by it.
    pub max_context: u32,
    /// Answers are 1 to this many tokens long (or what the request allows, if that is less);
    /// reasoning models add as much again for their thoughts.
    pub typical_output: u32,
    /// A prompt with this text is refused by the content filter; empty switches it off.
    pub content_filter_trigger: String,
    /// A prompt with this text is refused as too long; empty switches it off.
    pub context_trigger: String,
    /// What the booked estimate is multiplied with: the real service's estimate is not published,
    /// so callers must get along with one that differs from theirs.
    pub charge_factor: f64,
    /// The share of answers in a JSON schema's form that do not keep to it.
    pub misfits: f64,
    /// Keep the first 80 characters of each distinct prompt in the ledger.
    pub ledger_samples: bool,
    /// Rate-limit headers of Responses calls say -1 and 0, as has been seen in the wild.
    pub odd_rate_headers: bool,
    /// Answers tell the standing of the quota, or the utilisation. Some gateways strip it.
    pub rate_headers: bool,
    /// The region named in `x-ms-region`.
    pub region: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            tpm: None,
            rpm: None,
            window: MINUTE,
            request_slice: Duration::from_secs(1),
            latency: Latency::default(),
            faults: Faults::default(),
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
            rate_headers: true,
            region: "Simulated".to_owned(),
        }
    }
}

/// Settings that no simulator can run with.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BadSettings {
    #[error("window is {0:?}: give it at least 1 ms, since quotas are counted per window")]
    Window(Duration),
    #[error("request_slice is {0:?}: Azure judges requests in slices of 1 s or 10 s")]
    Slice(Duration),
    #[error("fault rates are shares from 0 to 1 that add up to 1 at most")]
    FaultRates,
    #[error("latency is in milliseconds, not negative and finite")]
    Latency,
    #[error("ptu must be at least 1 token a minute, or none for a standard deployment")]
    NoPtu,
    #[error("a provisioned deployment has no flex tier: leave out flex or ptu")]
    FlexOnPtu,
    #[error("what comes and goes must be on for some time and no longer than its period")]
    Duty,
    #[error("there is no deployment '{0}': name one of those that were set up")]
    NoSuchDeployment(String),
    #[error("charge_factor is {0}: it must be above 0 and finite")]
    ChargeFactor(f64),
    #[error("misfits is {0}: it must be a share from 0 to 1")]
    Misfits(f64),
    #[error("typical_output is {0}: it must be from 1 to {MOST_OUTPUT} tokens")]
    TypicalOutput(u32),
    #[error("max_context must be at least 1")]
    NoContext,
    #[error("'{0}' is no deployment name: use 1 to 64 letters, digits, '-', '_' or '.'")]
    DeploymentName(String),
    #[error("region '{0}' does not fit a header: use visible ASCII")]
    Region(String),
}

impl Settings {
    /// The first thing that is wrong with these settings, if any is.
    pub fn check(&self) -> Result<(), BadSettings> {
        if self.window < Duration::from_millis(1) {
            return Err(BadSettings::Window(self.window));
        }
        if self.request_slice < Duration::from_millis(1) || self.request_slice > MINUTE {
            return Err(BadSettings::Slice(self.request_slice));
        }
        if !(0.0..=1.0).contains(&self.misfits) {
            return Err(BadSettings::Misfits(self.misfits));
        }
        if !(self.charge_factor.is_finite() && self.charge_factor > 0.0) {
            return Err(BadSettings::ChargeFactor(self.charge_factor));
        }
        if !(1..=MOST_OUTPUT).contains(&self.typical_output) {
            return Err(BadSettings::TypicalOutput(self.typical_output));
        }
        if self.max_context == 0 {
            return Err(BadSettings::NoContext);
        }
        let mut names = self.deployments.iter().chain(self.overrides.keys());
        if let Some(name) = names.find(|name| !is_deployment_name(name)) {
            return Err(BadSettings::DeploymentName(name.clone()));
        }
        if !self.region.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(BadSettings::Region(self.region.clone()));
        }
        self.check_profiles()
    }

    /// Whether every name is a deployment.
    pub fn takes_any_name(&self) -> bool {
        self.deployments.is_empty() && self.overrides.is_empty()
    }

    /// How a deployment behaves of which nothing else is said.
    pub fn profile(&self) -> Profile {
        Profile {
            limits: Limits { tpm: self.tpm, rpm: self.rpm },
            ptu: None,
            latency: self.latency,
            faults: self.faults,
            flex: None,
            other_tpm: 0,
            other_bursts: Duty::ALWAYS,
            rate_headers: self.rate_headers,
            outage: None,
        }
    }

    /// Plays the schedule through on every deployment.
    fn check_profiles(&self) -> Result<(), BadSettings> {
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
        for Change { after, deployment, settings } in changes {
            if let Some(name) = deployment {
                if self.takes_any_name() && is_deployment_name(name) {
                    known.entry(name).or_insert(common);
                }
                let no_such = || BadSettings::NoSuchDeployment(name.clone());
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

/// The names that can be deployed. They are also safe in JSON and headers without escaping.
pub fn is_deployment_name(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    #[test]
    fn settings_that_could_not_run_are_named() {
        let d = Settings::default;
        let faults = Faults { rate_hang: 2.0, ..Faults::default() };
        let latency = Latency { base_ms: -1.0, ..Latency::default() };
        let bad = "a b".to_owned();
        let no_ptu = [("a".to_owned(), vec![Setting::Ptu(Some(0))])].into();
        let cases = [
            (Settings { window: Duration::ZERO, ..d() }, BadSettings::Window(Duration::ZERO)),
            (Settings { request_slice: Duration::ZERO, ..d() }, BadSettings::Slice(Duration::ZERO)),
            (Settings { faults, ..d() }, BadSettings::FaultRates),
            (Settings { latency, ..d() }, BadSettings::Latency),
            (Settings { charge_factor: 0.0, ..d() }, BadSettings::ChargeFactor(0.0)),
            (Settings { misfits: 1.5, ..d() }, BadSettings::Misfits(1.5)),
            (Settings { typical_output: 0, ..d() }, BadSettings::TypicalOutput(0)),
            (Settings { max_context: 0, ..d() }, BadSettings::NoContext),
            (Settings { deployments: vec![bad.clone()], ..d() }, BadSettings::DeploymentName(bad)),
            (Settings { region: "é".to_owned(), ..d() }, BadSettings::Region("é".to_owned())),
            (Settings { overrides: no_ptu, ..d() }, BadSettings::NoPtu),
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
            Settings { deployments, changes, ..Settings::default() }.check()
        };
        let no_such = BadSettings::NoSuchDeployment("b".to_owned());
        assert_eq!(check(&["a"], &["1s:b,tpm=1"]), Err(no_such));
        assert_eq!(check(&[], &["1s:b,tpm=1"]), Ok(()), "any name is a deployment");
        assert_eq!(check(&["a"], &["1s:a,ptu=9", "2s:ptu=none", "3s:flex=on"]), Ok(()));
        assert_eq!(
            check(&["a"], &["1s:a,ptu=9", "3s:flex=on"]),
            Err(BadSettings::FlexOnPtu),
            "by then it is provisioned"
        );
    }
}
