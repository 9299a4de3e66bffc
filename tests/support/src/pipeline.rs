//! A worker in this process, over any queue and store, against a simulator beside it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use promptmill::admission::PoolMember;
use promptmill::admission::deployment::DeploymentLimits;
use promptmill::model::endpoint::{Endpoint, EndpointConfig};
use promptmill::model::{CallTimeouts, ModelClient};
use promptmill::queue::Queue;
use promptmill::simulator::{self, FaultRates, Simulator};
use promptmill::store::Store;
use promptmill::telemetry::WorkerProgress;
use promptmill::worker::{
    DEFER_FROM, Worker, WorkerExit, WorkerSettings, WorkerTarget, all_queued,
};
use tokio_util::sync::CancellationToken;

pub const LONG: Duration = Duration::from_secs(60);

/// A queue and a store, with what they stand on.
pub struct Backends {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub alive: Box<dyn Any + Send>,
}

pub async fn simulator(faults: FaultRates) -> Simulator {
    let settings =
        simulator::SimulatorSettings { faults, ..simulator::SimulatorSettings::default() };
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

pub fn worker(on: &Backends, simulator: &Simulator) -> Worker {
    let url = format!("http://{}/v1", simulator.addr());
    let endpoint = Endpoint::new(EndpointConfig { url, ..EndpointConfig::default() }).unwrap();
    Worker {
        queue: on.queue.clone(),
        store: on.store.clone(),
        targets: vec![WorkerTarget {
            member: PoolMember {
                name: "simulator".into(),
                limits: DeploymentLimits { concurrency: 4, ..DeploymentLimits::default() },
                ..PoolMember::default()
            },
            client: ModelClient::new(endpoint, CallTimeouts::whole(LONG)).unwrap(),
        }],
        settings: WorkerSettings {
            shared: false,
            spill_after: Duration::ZERO,
            drain: Some(all_queued()),
            only_batch: None,
            prices: None,
            max_held: 16,
            max_failure_rate: 1.0,
            max_attempts: 3,
            max_deliveries: 5,
            defer_from: DEFER_FROM,
            shutdown_grace: Duration::from_secs(1),
            unreachable_after: LONG,
        },
        progress: Arc::<WorkerProgress>::default(),
    }
}

/// Runs a worker until the queue is drained.
pub async fn drain(worker: Worker) {
    let ran = worker.run(CancellationToken::new());
    let halt = tokio::time::timeout(LONG, ran).await.expect("it drains in time").unwrap();
    assert_eq!(halt, WorkerExit::Drained);
}
