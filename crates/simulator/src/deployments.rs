//! Registry of deployments: opening them, finding them by name, changing them.
//!
//! If no names were configured, every name is a deployment, opened when it is first requested.
//! Neighbours: `deployment` is one entry; `service` calls this, also for the control endpoint.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Value, json};

use super::audit_ledger::locked;
use super::capacity::DeploymentCapacity;
use super::deployment::SimulatedDeployment;
use super::error::BadSimulatorSettings;
use super::profile::{DeploymentProfile, ProfileSetting};
use super::settings::SimulatorSettings;
use super::spec::format_profile;

/// Maximum number of deployments that unconfigured names can open.
const MAX_DEPLOYMENTS: usize = 1_000;

#[derive(Debug)]
pub struct DeploymentRegistry {
    /// Profile of deployments that are opened from now on.
    default_profile: Mutex<DeploymentProfile>,
    all: RwLock<HashMap<Box<str>, Arc<SimulatedDeployment>>>,
    accepts_any_name: bool,
    window: Duration,
    slice: Duration,
}

impl DeploymentRegistry {
    /// Builds the registry from settings that were checked.
    pub fn new(settings: &SimulatorSettings) -> Result<Self, BadSimulatorSettings> {
        let deployments = Self {
            default_profile: Mutex::new(settings.profile()),
            all: RwLock::default(),
            accepts_any_name: settings.takes_any_name(),
            window: settings.window,
            slice: settings.request_slice,
        };
        for name in settings.deployments.iter().chain(settings.overrides.keys()) {
            deployments.open(Duration::ZERO, name);
        }
        for (name, own) in &settings.overrides {
            deployments.change(Duration::ZERO, Some(name), own)?;
        }
        Ok(deployments)
    }

    pub fn find(&self, now: Duration, name: &str) -> Option<Arc<SimulatedDeployment>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(deployment) = all.get(name) {
            return Some(deployment.clone());
        }
        let is_room = all.len() < MAX_DEPLOYMENTS;
        drop(all);
        if self.accepts_any_name && is_room { self.open(now, name) } else { None }
    }

    /// Applies settings to one deployment, or to all present and future ones: all of the settings
    /// or none.
    pub fn change(
        &self,
        now: Duration,
        name: Option<&str>,
        settings: &[ProfileSetting],
    ) -> Result<(), BadSimulatorSettings> {
        let Some(name) = name else { return self.change_all(now, settings) };
        let no_such = || BadSimulatorSettings::NoSuchDeployment(name.to_owned());
        let deployment = self.find(now, name).ok_or_else(no_such)?;
        let mut capacity = locked(&deployment.capacity);
        let profile = capacity.profile().with(now, settings)?;
        capacity.change(now, profile);
        Ok(())
    }

    fn change_all(
        &self,
        now: Duration,
        settings: &[ProfileSetting],
    ) -> Result<(), BadSimulatorSettings> {
        // Locked to the end, so that no deployment is opened with the old profile meanwhile.
        let mut common = locked(&self.default_profile);
        let new = common.with(now, settings)?;
        let all = self.sorted();
        let mut capacities: Vec<_> =
            all.iter().map(|(_, deployment)| locked(&deployment.capacity)).collect();
        let profiles = capacities.iter().map(|capacity| capacity.profile().with(now, settings));
        let profiles = profiles.collect::<Result<Vec<_>, _>>()?;
        for (capacity, profile) in capacities.iter_mut().zip(profiles) {
            capacity.change(now, profile);
        }
        *common = new;
        Ok(())
    }

    /// Returns all deployments, sorted by name.
    pub fn sorted(&self) -> Vec<(Box<str>, Arc<SimulatedDeployment>)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all.iter().map(|(name, one)| (name.clone(), one.clone())).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Returns the body of `GET /deployments`: each with the settings text that recreates it.
    pub fn list_json(&self, now: Duration) -> Value {
        let one = |(name, deployment): &(Box<str>, Arc<SimulatedDeployment>)| {
            let mut capacity = locked(&deployment.capacity);
            let settings = format_profile(capacity.profile(), now);
            json!({"name": name, "settings": settings, "utilization": capacity.utilization(now)})
        };
        json!({"deployments": self.sorted().iter().map(one).collect::<Vec<_>>()})
    }

    fn open(&self, now: Duration, name: &str) -> Option<Arc<SimulatedDeployment>> {
        let common = locked(&self.default_profile);
        let fresh = SimulatedDeployment::new(
            name,
            DeploymentCapacity::new(now, *common, self.window, self.slice),
        )?;
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have opened it since the lookup.
        Some(all.entry(name.into()).or_insert_with(|| Arc::new(fresh)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::quota_status::QuotaLimits;
    use super::*;

    const START: Duration = Duration::ZERO;

    fn tpm(deployments: &DeploymentRegistry, name: &str) -> Option<u64> {
        let deployment = deployments.find(START, name).unwrap();
        locked(&deployment.capacity).profile().limits.tpm
    }

    #[test]
    fn what_is_told_of_one_is_its_own_and_the_rest_is_common() {
        let overrides = [("east".to_owned(), vec![ProfileSetting::Tpm(Some(5))])].into();
        let settings = SimulatorSettings {
            tpm: Some(9),
            rpm: Some(8),
            deployments: vec!["west".to_owned()],
            overrides,
            ..SimulatorSettings::default()
        };
        let deployments = DeploymentRegistry::new(&settings).unwrap();
        let east = deployments.find(START, "east").unwrap();
        let limits = locked(&east.capacity).profile().limits;
        assert_eq!(limits, QuotaLimits { tpm: Some(5), rpm: Some(8) });
        assert_eq!(tpm(&deployments, "west"), Some(9));
        assert!(deployments.find(START, "north").is_none(), "there are only those that were named");
    }

    #[test]
    fn a_change_of_all_reaches_those_to_come() {
        let deployments = DeploymentRegistry::new(&SimulatorSettings::default()).unwrap();
        deployments.find(START, "now").unwrap();
        deployments.change(START, None, &[ProfileSetting::Tpm(Some(7))]).unwrap();
        assert_eq!((tpm(&deployments, "now"), tpm(&deployments, "later")), (Some(7), Some(7)));
    }

    #[test]
    fn a_change_that_does_not_fit_all_changes_none() {
        let deployments = DeploymentRegistry::new(&SimulatorSettings::default()).unwrap();
        deployments.change(START, Some("a"), &[]).unwrap();
        deployments.change(START, Some("b"), &[ProfileSetting::Ptu(Some(60))]).unwrap();
        let flex = ProfileSetting::Flex(Some(super::super::duty_cycle::DutyCycle::ALWAYS));
        let refused = deployments.change(START, None, &[ProfileSetting::Tpm(Some(1)), flex]);
        assert_eq!(refused, Err(BadSimulatorSettings::FlexOnPtu));
        assert_eq!((tpm(&deployments, "a"), tpm(&deployments, "new")), (None, None));
    }
}
