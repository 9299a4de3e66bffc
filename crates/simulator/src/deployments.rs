//! The deployments that there are: opening them, finding them by name, changing them.
//!
//! Where no names were given, every name is a deployment, opened when it is first asked for.
//! Neighbours: `deployment` is one of them; `service` asks here, also for the control endpoint.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde_json::{Value, json};

use super::books::locked;
use super::capacity::Capacity;
use super::deployment::Deployment;
use super::profile::{Profile, Setting};
use super::settings::{BadSettings, Settings};
use super::spec::words;

/// Deployments that are opened for names that nobody told of before.
const MOST_DEPLOYMENTS: usize = 1_000;

#[derive(Debug)]
pub struct Deployments {
    /// How deployments behave that are opened from now on.
    common: Mutex<Profile>,
    all: RwLock<HashMap<Box<str>, Arc<Deployment>>>,
    any_name: bool,
    window: Duration,
    slice: Duration,
}

impl Deployments {
    /// Takes settings that were checked.
    pub fn new(settings: &Settings) -> Result<Self, BadSettings> {
        let deployments = Self {
            common: Mutex::new(settings.profile()),
            all: RwLock::default(),
            any_name: settings.takes_any_name(),
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

    pub fn find(&self, now: Duration, name: &str) -> Option<Arc<Deployment>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(deployment) = all.get(name) {
            return Some(deployment.clone());
        }
        let is_room = all.len() < MOST_DEPLOYMENTS;
        drop(all);
        if self.any_name && is_room { self.open(now, name) } else { None }
    }

    /// Changes one deployment, or all of them and those to come. Either all of the settings are
    /// taken or none.
    pub fn change(
        &self,
        now: Duration,
        name: Option<&str>,
        settings: &[Setting],
    ) -> Result<(), BadSettings> {
        let Some(name) = name else { return self.change_all(now, settings) };
        let no_such = || BadSettings::NoSuchDeployment(name.to_owned());
        let deployment = self.find(now, name).ok_or_else(no_such)?;
        let mut capacity = locked(&deployment.capacity);
        let profile = capacity.profile().with(now, settings)?;
        capacity.change(now, profile);
        Ok(())
    }

    fn change_all(&self, now: Duration, settings: &[Setting]) -> Result<(), BadSettings> {
        // Held to the end, so that nothing is opened meanwhile with the profile of before.
        let mut common = locked(&self.common);
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

    /// All of them by name.
    pub fn sorted(&self) -> Vec<(Box<str>, Arc<Deployment>)> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = all.iter().map(|(name, one)| (name.clone(), one.clone())).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// What `GET /deployments` answers: each with its settings in the words that would make it.
    pub fn listed(&self, now: Duration) -> Value {
        let one = |(name, deployment): &(Box<str>, Arc<Deployment>)| {
            let mut capacity = locked(&deployment.capacity);
            let settings = words(capacity.profile(), now);
            json!({"name": name, "settings": settings, "utilization": capacity.utilization(now)})
        };
        json!({"deployments": self.sorted().iter().map(one).collect::<Vec<_>>()})
    }

    fn open(&self, now: Duration, name: &str) -> Option<Arc<Deployment>> {
        let common = locked(&self.common);
        let fresh = Deployment::new(name, Capacity::new(now, *common, self.window, self.slice))?;
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have opened it since it was looked for.
        Some(all.entry(name.into()).or_insert_with(|| Arc::new(fresh)).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::quota::Limits;
    use super::*;

    const START: Duration = Duration::ZERO;

    fn tpm(deployments: &Deployments, name: &str) -> Option<u64> {
        let deployment = deployments.find(START, name).unwrap();
        locked(&deployment.capacity).profile().limits.tpm
    }

    #[test]
    fn what_is_told_of_one_is_its_own_and_the_rest_is_common() {
        let overrides = [("east".to_owned(), vec![Setting::Tpm(Some(5))])].into();
        let settings = Settings {
            tpm: Some(9),
            rpm: Some(8),
            deployments: vec!["west".to_owned()],
            overrides,
            ..Settings::default()
        };
        let deployments = Deployments::new(&settings).unwrap();
        let east = deployments.find(START, "east").unwrap();
        let limits = locked(&east.capacity).profile().limits;
        assert_eq!(limits, Limits { tpm: Some(5), rpm: Some(8) });
        assert_eq!(tpm(&deployments, "west"), Some(9));
        assert!(deployments.find(START, "north").is_none(), "there are only those that were named");
    }

    #[test]
    fn a_change_of_all_reaches_those_to_come() {
        let deployments = Deployments::new(&Settings::default()).unwrap();
        deployments.find(START, "now").unwrap();
        deployments.change(START, None, &[Setting::Tpm(Some(7))]).unwrap();
        assert_eq!((tpm(&deployments, "now"), tpm(&deployments, "later")), (Some(7), Some(7)));
    }

    #[test]
    fn a_change_that_does_not_fit_all_changes_none() {
        let deployments = Deployments::new(&Settings::default()).unwrap();
        deployments.change(START, Some("a"), &[]).unwrap();
        deployments.change(START, Some("b"), &[Setting::Ptu(Some(60))]).unwrap();
        let flex = Setting::Flex(Some(super::super::duty::Duty::ALWAYS));
        let refused = deployments.change(START, None, &[Setting::Tpm(Some(1)), flex]);
        assert_eq!(refused, Err(BadSettings::FlexOnPtu));
        assert_eq!((tpm(&deployments, "a"), tpm(&deployments, "new")), (None, None));
    }
}
