//! Jobs that are too large for a message: their bodies lie in the store, the message names them.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use futures_util::TryStreamExt;
use promptmill::intake::dead_letters;
use promptmill::job::{Amendment, BatchId, ClaimCheck, Job, JobId};
use promptmill::outcome::OutcomeStatus;
use promptmill::queue::Queue;
use promptmill::simulator::{self, FaultRates, Simulator};
use promptmill::store::cosmos::CosmosStore;
use promptmill::store::{SortOrder, Store};
use service_bus_broker::Broker;
use support::broker;
use support::cli::{Place, chat};
use support::jobs::job;
use support::pipeline::{Backends, drain, worker};

/// Nearly three times what a message may weigh, in a handful of tokens a word.
const LARGE: usize = 700_000;

struct Bench {
    place: Place,
    on: Backends,
    broker: Broker,
    simulator: Simulator,
}

impl Bench {
    async fn new(faults: FaultRates) -> Self {
        let settings =
            simulator::SimulatorSettings { max_context: 1_000_000, faults, ..Default::default() };
        let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
        let broker = broker::start(broker::jobs()).await;
        let host = cosmos_support::shared_host();
        let cosmos = cosmos_support::settings(host);
        promptmill::store::cosmos::init(&cosmos).await.unwrap();
        let place = Place::new();
        let text = format!(
            "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n\
             [store.cosmos]\nendpoint = \"{}\"\ndatabase = \"{}\"\n\
             credential = {{ key = \"{}\" }}\nemulator = true\n\
             [[deployments]]\nname = \"sim\"\nendpoint = \"http://{}/v1\"\n",
            broker::JOBS,
            broker.connection_string(),
            host.endpoint(),
            cosmos.database,
            host.key(),
            simulator.addr()
        );
        place.write("promptmill.toml", text);
        let store: Arc<CosmosStore> = Arc::new(CosmosStore::connect(&cosmos).await.unwrap());
        let queue = Arc::new(broker::queue(&broker));
        let on = Backends { queue, store, alive: Box::new(()) };
        Self { place, on, broker, simulator }
    }

    /// Enqueues one large and one small job, both as users do.
    fn enqueue(&self) {
        let large = chat("large", &"ten words ".repeat(LARGE / 10), 16);
        self.place.write("in.jsonl", format!("{large}\n{}\n", chat("small", "hello", 16)));
        let enqueued = self.place.run(&["enqueue", "in.jsonl", "--batch", "night"]);
        assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
    }

    /// The large job's message, which is left where it is.
    async fn large(&self) -> Job {
        let deliveries = self.on.queue.receive(2, support::pipeline::LONG).await.unwrap();
        let large = deliveries.iter().find(|d| d.job.custom_id == "large").unwrap().job.clone();
        let locks: Vec<_> = deliveries.iter().map(|delivery| delivery.lock).collect();
        self.on.queue.abandon(&locks).await.unwrap();
        large
    }

    async fn is_stored(&self, job: &Job) -> bool {
        self.on.store.get_payload(&job.payload_name().unwrap()).await.unwrap().is_some()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_large_job_goes_its_way_and_leaves_nothing_behind() {
    let bench = Bench::new(FaultRates::default()).await;
    bench.enqueue();
    bench.enqueue();
    assert_eq!(bench.broker.counts(broker::JOBS).active, 2, "enqueued again, nothing is added");
    let large = bench.large().await;
    assert!(large.body.is_empty() && large.claim_check.unwrap().bytes as usize > LARGE);
    assert!(bench.is_stored(&large).await);
    let worked = bench.place.run(&["work", "--drain"]);
    assert_eq!(worked.code, Some(0), "{}", worked.err);
    let results = bench.place.run(&["results", "night", "--out", "o", "--errors", "e"]);
    assert_eq!(bench.place.lines("e").len(), 0, "{}", results.err);
    let mut ids = bench.place.ids("o");
    ids.sort_unstable();
    assert_eq!(ids, ["large", "small"]);
    let usage = bench.simulator.ledger().billed.usage;
    assert!(usage.prompt_tokens > 100_000, "the whole prompt was sent");
    assert_eq!(bench.simulator.ledger().requests, 2);
    assert!(!bench.is_stored(&large).await, "its payload is gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_large_dead_letter_keeps_its_body_for_its_next_life() {
    let bench = Bench::new(FaultRates { rate_503: 1.0, ..FaultRates::default() }).await;
    bench.enqueue();
    let large = bench.large().await;
    let mut dying = worker(&bench.on, &bench.simulator);
    dying.settings.max_attempts = 1;
    drain(dying).await;
    assert_eq!(bench.on.queue.depth().await.unwrap().dead_letters, 2);
    assert!(bench.is_stored(&large).await);
    let (queue, store): (&dyn Queue, &dyn Store) =
        (bench.on.queue.as_ref(), bench.on.store.as_ref());
    assert_eq!(
        dead_letters::resubmit(|_| true, &Amendment::default(), queue, store).await.unwrap().jobs,
        2
    );
    let well = simulator::SimulatorSettings { max_context: 1_000_000, ..Default::default() };
    let well = simulator::start("127.0.0.1:0".parse().unwrap(), well).await.unwrap();
    drain(worker(&bench.on, &well)).await;
    let totals = store.totals(&"night".parse().unwrap()).await.unwrap();
    assert_eq!((totals.of(OutcomeStatus::Succeeded), totals.ended()), (2, 2));
    assert!(!bench.is_stored(&large).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_job_whose_body_is_gone_becomes_a_dead_letter_that_says_so() {
    let bench = Bench::new(FaultRates::default()).await;
    let mut gone = job("b", "gone");
    gone.offload_body();
    let mut other = job("b", "other");
    let body = other.offload_body();
    other.claim_check = Some(ClaimCheck { digest: 1, ..other.claim_check.unwrap() });
    bench.on.store.put_payload(&other.payload_name().unwrap(), body).await.unwrap();
    bench.on.queue.send(vec![gone, other]).await.unwrap();
    drain(worker(&bench.on, &bench.simulator)).await;
    let letters = bench.on.queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(letters.len(), 2);
    for letter in letters {
        assert_eq!(letter.reason.reason, "PayloadMissing");
        let name = letter.job().unwrap().payload_name().unwrap();
        assert!(letter.reason.description.contains(&name), "{:?}", letter.reason);
    }
    assert_eq!(bench.simulator.ledger().requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redelivery_of_a_large_job_that_has_ended_deletes_what_a_crash_left() {
    let bench = Bench::new(FaultRates::default()).await;
    bench.enqueue();
    let large = bench.large().await;
    // Recorded by a worker that died before it could delete the payload and settle.
    let outcome = support::jobs::outcome(&large, OutcomeStatus::Succeeded);
    bench.on.store.record(Arc::new(vec![outcome])).await.unwrap();
    drain(worker(&bench.on, &bench.simulator)).await;
    assert!(!bench.is_stored(&large).await);
    assert_eq!(bench.simulator.ledger().requests, 1, "the small one alone");
    let night: BatchId = "night".parse().unwrap();
    let outcomes = bench.on.store.outcomes(&night, SortOrder::AsStored).await.unwrap();
    let ids: Vec<JobId> = outcomes.map_ok(|outcome| outcome.job_id).try_collect().await.unwrap();
    assert_eq!(ids.len(), 2);
}
