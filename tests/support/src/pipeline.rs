//! A worker in this process, over any queue and store, against a simulator beside it.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use promptmill::admission::Member;
use promptmill::admission::deployment::Limits;
use promptmill::model::Client;
use promptmill::model::endpoint::{Endpoint, Given};
use promptmill::queue::Queue;
use promptmill::simulator::{self, Faults, Simulator};
use promptmill::store::Store;
use promptmill::telemetry::Progress;
use promptmill::worker::{Halt, POSTPONE_FROM, Settings, Target, Worker, all_queued};
use tokio_util::sync::CancellationToken;

pub const LONG: Duration = Duration::from_secs(60);

/// A queue and a store, with what they stand on.
pub struct Backends {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub alive: Box<dyn Any + Send>,
}

pub async fn simulator(faults: Faults) -> Simulator {
    let settings = simulator::Settings { faults, ..simulator::Settings::default() };
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

pub fn worker(on: &Backends, simulator: &Simulator) -> Worker {
    let url = format!("http://{}/v1", simulator.addr());
    let endpoint = Endpoint::new(Given { url, ..Given::default() }).unwrap();
    Worker {
        queue: on.queue.clone(),
        store: on.store.clone(),
        targets: vec![Target {
            member: Member {
                name: "simulator".into(),
                limits: Limits { concurrency: 4, ..Limits::default() },
                ..Member::default()
            },
            client: Client::new(endpoint, LONG).unwrap(),
        }],
        settings: Settings {
            shared: false,
            spill_after: Duration::ZERO,
            drain: Some(all_queued()),
            only: None,
            prices: None,
            max_held: 16,
            max_tries: 3,
            max_deliveries: 5,
            postpone_from: POSTPONE_FROM,
            shutdown_grace: Duration::from_secs(1),
            unreachable_after: LONG,
        },
        progress: Arc::<Progress>::default(),
    }
}

/// Runs a worker until the queue is drained.
pub async fn drain(worker: Worker) {
    let ran = worker.run(CancellationToken::new());
    let halt = tokio::time::timeout(LONG, ran).await.expect("it drains in time").unwrap();
    assert_eq!(halt, Halt::Drained);
}
