//! Status of deployments, over all workers that report them.

use std::collections::BTreeMap;

use serde::Serialize;

use domain::deployment::{BreakerState, DeploymentSnapshot};
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
    /// Workers with jobs waiting whose calls in flight are as many as `concurrency` allows.
    pub bound_by_calls: u64,
    /// Remaining pause after a 429, in milliseconds; the longest of all workers.
    pub paused_ms: Option<u64>,
    /// Words of the last refusal, if nothing was answered since, and the rest of the wait that it
    /// asked for.
    pub last_refusal: Option<String>,
    pub asked_ms: Option<u64>,
    /// Reasons why it gets no calls, each once.
    pub troubles: Vec<String>,
}

/// Sums the workers' heartbeats by quota.
pub fn aggregate(heartbeats: &[Heartbeat]) -> Vec<DeploymentStatus> {
    let mut sums: BTreeMap<&str, DeploymentStatus> = BTreeMap::new();
    for report in heartbeats.iter().flat_map(|heartbeat| &heartbeat.status.deployments) {
        let sum = sums.entry(&report.quota).or_default();
        sum.name.clone_from(&report.name);
        sum.add(&report.snapshot.state);
    }
    sums.into_values().collect()
}

impl DeploymentStatus {
    /// Adds what one worker reports.
    fn add(&mut self, state: &DeploymentSnapshot) {
        self.workers += 1;
        self.tpm = state.tpm_learnt.or(state.tpm_configured).or(self.tpm);
        self.share += state.share;
        self.used_last_minute += state.used_last_minute;
        self.waiting += state.waiting;
        self.in_flight += state.in_flight as u64;
        let has_all_calls = state.concurrency > 0 && state.in_flight >= state.concurrency;
        self.bound_by_calls += u64::from(has_all_calls && state.waiting > 0);
        self.paused_ms = self.paused_ms.max(state.paused_ms);
        self.asked_ms = self.asked_ms.max(state.asked_ms);
        self.last_refusal = state.last_refusal.clone().or(self.last_refusal.take());
        let broken = (state.breaker != BreakerState::Closed)
            .then(|| state.breaker_why.as_deref().unwrap_or("it keeps failing"));
        for trouble in broken.into_iter().chain(state.retired.as_deref()) {
            if self.troubles.iter().all(|known| known != trouble) {
                self.troubles.push(trouble.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::deployment::DemandSnapshot;
    use domain::heartbeat::{DeploymentReport, WorkerStatus};

    use super::*;

    fn heartbeat(used: u64, breaker: BreakerState) -> Heartbeat {
        let state = DeploymentSnapshot {
            tpm_configured: Some(60_000),
            share: 0.5,
            used_last_minute: used,
            waiting: 100,
            in_flight: 2,
            breaker,
            breaker_why: Some("503".to_owned()),
            ..DeploymentSnapshot::default()
        };
        let snapshot = DemandSnapshot { demand: 1.0, state };
        let sim = DeploymentReport { name: "sim".into(), quota: "h/sim".into(), snapshot };
        let status = WorkerStatus { deployments: vec![sim], ..WorkerStatus::default() };
        Heartbeat { status, ..Heartbeat::default() }
    }

    #[test]
    fn workers_on_one_quota_are_added_up() {
        let closed = heartbeat(20_000, BreakerState::Closed);
        let open = heartbeat(30_000, BreakerState::Open);
        let sums = aggregate(&[closed, open, Heartbeat::default()]);
        let [sim] = sums.as_slice() else { panic!("{sums:?}") };
        assert_eq!((sim.workers, sim.tpm, sim.used_last_minute), (2, Some(60_000), 50_000));
        assert_eq!(
            (sim.waiting, sim.in_flight, sim.troubles.as_slice()),
            (200, 4, ["503".to_owned()].as_slice())
        );
    }

    #[test]
    fn a_worker_is_bound_by_its_calls_when_all_are_in_flight_and_jobs_wait() {
        let bound = |concurrency, waiting| {
            let mut worker = heartbeat(0, BreakerState::Closed);
            let state = &mut worker.status.deployments[0].snapshot.state;
            (state.concurrency, state.waiting) = (concurrency, waiting);
            aggregate(&[worker])[0].bound_by_calls
        };
        assert_eq!(bound(2, 100), 1);
        assert_eq!([bound(3, 100), bound(2, 0), bound(0, 100)], [0; 3]);
    }
}
