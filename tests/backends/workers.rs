//! Several workers, as processes of the real binary, on one queue and one store, with faults.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::HashSet;
use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use promptmill::simulator::{self, FaultRates, SimulatedLatency, Simulator, SimulatorSettings};
use support::broker::{self, QueueSettings};
use support::cli::{Place, Running, chats};

const JOBS: usize = 300;

/// Calls that one worker may have in flight: what a kill may make us pay twice.
const CONCURRENCY: usize = 8;
const LOCK: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(90);

/// Slow enough that the workers are at work when they are killed.
async fn simulator() -> Simulator {
    let settings = SimulatorSettings {
        faults: FaultRates::spread(0.05),
        latency: SimulatedLatency { base_ms: 60.0, ..SimulatedLatency::default() },
        ..SimulatorSettings::default()
    };
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

fn deployment(simulator: &Simulator) -> String {
    format!(
        "[[deployments]]\nname = \"sim\"\nendpoint = \"http://{}/v1\"\nconcurrency = {CONCURRENCY}\n",
        simulator.addr()
    )
}

fn worker(place: &Place) -> Running {
    place.spawn(&["work", "--drain"])
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    let waiting = async {
        while !happened() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "did not happen: {what}");
}

/// 300 jobs, three workers, one of them killed half-way and replaced; `cut` happens meanwhile.
async fn work_through(place: &Place, simulator: &Simulator, cut: impl FnOnce()) {
    place.write("in.jsonl", chats(JOBS));
    let enqueued = place.run(&["enqueue", "in.jsonl", "--batch", "night"]);
    assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
    let mut doomed = worker(place);
    let mut others = vec![worker(place), worker(place)];
    until("a third is answered", || simulator.ledger().requests >= JOBS as u64 / 3).await;
    doomed.signal("KILL");
    doomed.wait();
    others.push(worker(place));
    cut();
    let mut ends = Vec::new();
    for mut child in others {
        until("a worker drains", || !child.is_running()).await;
        ends.push(child.wait());
    }
    for ended in &ends {
        assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    }
    let results = place.run(&["results", "night", "--out", "o", "--errors", "e"]);
    assert!(matches!(results.code, Some(0 | 1)), "{}", results.err);
    let ids: Vec<_> = [place.ids("o"), place.ids("e")].concat();
    assert_eq!(ids.len(), JOBS, "nothing is lost, nothing is there twice");
    assert_eq!(ids.into_iter().collect::<HashSet<_>>().len(), JOBS);
    let status = place.run(&["status", "night", "--json"]);
    assert!(status.out.contains("\"state\":\"done\""), "{}", status.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_the_embedded_queue_and_survive_a_kill() {
    let simulator = simulator().await;
    let place = Place::new();
    let state = format!("[state]\nlock_seconds = {}\n", LOCK.as_secs());
    place.write("promptmill.toml", state + &deployment(&simulator));
    work_through(&place, &simulator, || {}).await;
    paid_twice_is_explained(&simulator, CONCURRENCY as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_service_bus_and_cosmos_and_survive_a_kill_and_a_cut() {
    let simulator = simulator().await;
    let queue = QueueSettings { lock: LOCK, max_delivery_count: 50, ..broker::jobs() };
    let broker = broker::start(queue).await;
    let host = cosmos_support::own_host().await;
    let place = Place::new();
    let text = format!(
        "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n\
         [store.cosmos]\nendpoint = \"{}\"\ncredential = {{ key = \"{}\" }}\nemulator = true\n\
         shards = 4\n",
        broker::JOBS,
        broker.connection_string(),
        host.endpoint(),
        host.key()
    );
    place.write("promptmill.toml", text + &deployment(&simulator));
    let init = place.run(&["init"]);
    assert_eq!(init.code, Some(0), "{}", init.err);
    let check = place.run(&["check"]);
    assert_eq!(check.code, Some(0), "{}", check.out);
    work_through(&place, &simulator, || broker.drop_connections()).await;
    // A cut connection loses the locks of the two that live as well.
    paid_twice_is_explained(&simulator, 3 * CONCURRENCY as u64);
}

/// A call that was answered into a cut connection was billed and is made again; so is one that was
/// in flight at a kill.
fn paid_twice_is_explained(simulator: &Simulator, in_flight: u64) {
    let ledger = simulator.ledger();
    let faults: u64 = serde_json::to_value(ledger.faults)
        .unwrap()
        .as_object()
        .unwrap()
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    let again = ledger.billed_more_than_once.excess_requests;
    // Answers that were being recorded at a kill are as good as in flight.
    assert!(again <= 2 * in_flight + faults, "{again} were paid again: {in_flight} + {faults}");
    assert_eq!(ledger.prompts, JOBS as u64);
}
