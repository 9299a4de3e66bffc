//! Status of deployments, over all workers that report them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use admission::snapshot::{BreakerState, DemandSnapshot};
use domain::heartbeat::Heartbeat;

/// Status of one quota, over all workers that use it.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct DeploymentStatus {
    pub name: String,
    pub workers: u64,
    /// Tokens a minute: as learnt from the service, else as configured, else unknown.
    pub tpm: Option<u64>,
    /// Part of it that the workers may use together.
    pub share: f64,
    /// Tokens booked in the last minute.
    pub used_last_minute: u64,
    /// Tokens of the jobs held by workers for it.
    pub waiting: u64,
    pub in_flight: u64,
    /// Remaining pause after a 429, in milliseconds; the longest of all workers.
    pub paused_ms: Option<u64>,
    /// Reasons why it gets no calls, each once.
    pub troubles: Vec<String>,
}

/// One deployment in a worker's heartbeat.
#[derive(Deserialize)]
struct ReportedDeployment {
    name: String,
    quota: String,
    standing: DemandSnapshot,
}

/// Sums the workers' heartbeats by quota. Skips heartbeats of versions with another format.
pub fn aggregate(words: &[Heartbeat]) -> Vec<DeploymentStatus> {
    let mut sums: BTreeMap<String, DeploymentStatus> = BTreeMap::new();
    for word in words {
        let told =
            serde_json::from_value::<Vec<ReportedDeployment>>(word.status["deployments"].clone());
        for ReportedDeployment { name, quota, standing: DemandSnapshot { state, .. } } in
            told.unwrap_or_default()
        {
            let sum = sums.entry(quota).or_default();
            sum.name = name;
            sum.workers += 1;
            sum.tpm = state.tpm_learnt.or(state.tpm_configured).or(sum.tpm);
            sum.share += state.share;
            sum.used_last_minute += state.used_last_minute;
            sum.waiting += state.waiting;
            sum.in_flight += state.in_flight as u64;
            sum.paused_ms = sum.paused_ms.max(state.paused_ms);
            let broken = (state.breaker != BreakerState::Closed)
                .then(|| state.breaker_why.unwrap_or_else(|| "it keeps failing".into()));
            for trouble in broken.into_iter().chain(state.retired) {
                if !sum.troubles.contains(&trouble) {
                    sum.troubles.push(trouble);
                }
            }
        }
    }
    sums.into_values().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    fn word(used: u64, breaker: &str) -> Heartbeat {
        let standing = json!({
            "demand": 1.0, "name": "sim", "tier": 0, "service": "standard",
            "tpm_configured": 60_000, "tpm_learnt": null, "rpm": null, "charge_factor": 1.0,
            "reserve": 0.0, "share": 0.5, "used_last_minute": used, "waiting": 100,
            "in_flight": 2, "calls_allowed": 8, "utilisation": null, "paused_ms": null,
            "breaker": breaker, "breaker_why": "503", "retired": null,
        });
        let deployments = json!([{ "name": "sim", "quota": "h/sim", "standing": standing }]);
        let about = json!({ "pid": 1, "deployments": deployments });
        Heartbeat {
            instance: Uuid::nil(),
            sequence: 1,
            quota_claims: BTreeMap::default(),
            status: about,
        }
    }

    #[test]
    fn workers_on_one_quota_are_added_up() {
        let other = Heartbeat { status: json!({ "pid": 2 }), ..word(0, "closed") };
        let sums = aggregate(&[word(20_000, "closed"), word(30_000, "open"), other]);
        let [sim] = sums.as_slice() else { panic!("{sums:?}") };
        assert_eq!((sim.workers, sim.tpm, sim.used_last_minute), (2, Some(60_000), 50_000));
        assert_eq!(
            (sim.waiting, sim.in_flight, sim.troubles.as_slice()),
            (200, 4, ["503".to_owned()].as_slice())
        );
    }
}
