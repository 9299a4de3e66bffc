//! Usage of each deployment over the last minutes, as reported by the workers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use report::deployments::{self, DeploymentStatus};
use store::Store;

use domain::mutex::lock;

const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);

/// Samples kept per deployment: a quarter of an hour.
const SAMPLES_KEPT: usize = 90;

/// Usage of a deployment at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct DeploymentSample {
    /// Milliseconds since 1970.
    at: i64,
    /// Tokens booked in the minute before.
    used: u64,
    tpm: Option<u64>,
}

/// Recent samples of each deployment, oldest first.
#[derive(Default)]
pub(super) struct SampleHistory(Mutex<BTreeMap<String, VecDeque<DeploymentSample>>>);

impl SampleHistory {
    /// Samples the workers' heartbeats periodically, until stopped.
    pub(super) async fn run(self: Arc<Self>, store: Arc<dyn Store>, stop: CancellationToken) {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            match store.heartbeats().await {
                Ok(words) => self.add(Timestamp::now(), &deployments::aggregate(&words)),
                Err(error) => debug!(%error, "no sample of the deployments"),
            }
        }
    }

    fn add(&self, now: Timestamp, deployments: &[DeploymentStatus]) {
        let mut all = lock(&self.0);
        let at = now.as_millisecond();
        for DeploymentStatus { name, used_last_minute, tpm, .. } in deployments {
            let of_one = all.entry(name.clone()).or_default();
            of_one.push_back(DeploymentSample { at, used: *used_last_minute, tpm: *tpm });
            of_one.drain(..of_one.len().saturating_sub(SAMPLES_KEPT));
        }
        let oldest = at - SAMPLE_INTERVAL.as_millis() as i64 * SAMPLES_KEPT as i64;
        all.retain(|_, samples| samples.back().is_some_and(|last| last.at > oldest));
    }

    pub(super) fn of(&self, deployment: &str) -> Vec<DeploymentSample> {
        let all = lock(&self.0);
        all.get(deployment).map(|samples| samples.iter().copied().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_quarter_of_an_hour_is_kept_and_what_is_gone_is_forgotten() {
        let samples = SampleHistory::default();
        let at = |n: u64| Timestamp::from_second(10 * n as i64).unwrap();
        let named = |name: &str, used| DeploymentStatus {
            name: name.into(),
            used_last_minute: used,
            ..DeploymentStatus::default()
        };
        samples.add(at(0), &[named("gone", 1)]);
        (0..100).for_each(|n| samples.add(at(n), &[named("east", n)]));
        let east = samples.of("east");
        assert_eq!((east.len(), east[0].used, east[89].used), (90, 10, 99));
        assert!(samples.of("gone").is_empty());
    }
}
