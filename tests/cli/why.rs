//! `promptmill why`, asked of real workers: what a job or a batch waits for, and who holds it.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use promptmill::simulator::{self, FaultRates, SimulatedLatency, Simulator, SimulatorSettings};
use serde_json::Value;
use support::broker;
use support::cli::{Place, Running, chat, chats};

const LONG: Duration = Duration::from_secs(60);

async fn start(settings: SimulatorSettings) -> Simulator {
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

/// A place with a batch `night` of so many jobs of some 500 tokens, and one deployment.
fn night(simulator: &Simulator, jobs: usize, more: &str) -> Place {
    let place = Place::new();
    let config = format!(
        "{more}\n[[deployments]]\nname = \"east\"\nendpoint = \"http://{}/v1\"\nconcurrency = 4\n\
         tpm = 6000\n",
        simulator.addr()
    );
    let line = |n: usize| format!("{}\n", chat(&format!("job-{n}"), &format!("prompt {n}"), 500));
    let lines: String = (0..jobs).map(line).collect();
    place.write("promptmill.toml", config).write("in.jsonl", lines);
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "night"]).code, Some(0));
    place
}

/// Asks until the answer has these words, and returns it.
async fn until_said(place: &Place, asked: &[&str], words: &[&str]) -> String {
    let asking = async {
        loop {
            let why = place.run(&[&["why"], asked].concat());
            assert_eq!(why.code, Some(0), "{}", why.err);
            if words.iter().all(|word| why.out.contains(word)) {
                return why.out;
            }
            tokio::task::yield_now().await;
        }
    };
    let said = tokio::time::timeout(LONG, asking).await;
    said.unwrap_or_else(|_| panic!("{words:?}: {}", place.run(&[&["why"], asked].concat()).out))
}

fn json(place: &Place, asked: &[&str]) -> Value {
    let why = place.run(&[&["why", "--json"], asked].concat());
    assert_eq!(why.code, Some(0), "{}", why.err);
    serde_json::from_str(&why.out).unwrap()
}

fn end(mut worker: Running) {
    worker.signal("KILL");
    worker.wait();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_in_line_wait_for_the_tokens_of_a_deployment() {
    let simulator =
        start(SimulatorSettings { tpm: Some(6_000), ..SimulatorSettings::default() }).await;
    let place = night(&simulator, 60, "");
    let worker = place.spawn(&["work"]);
    let said = until_said(&place, &["night"], &["waits for tokens", "in line"]).await;
    assert!(said.contains("east (tier 0): waits for tokens (quota 6000 a minute"), "{said}");
    assert!(said.contains("until about "), "{said}");
    let batch = json(&place, &["night"]);
    assert_eq!((&batch["about"], &batch["jobs"]), (&"batch".into(), &60.into()));
    let in_line = |n: usize| {
        let job = json(&place, &[&format!("job-{n}"), "--batch", "night"]);
        (job["job"]["at"] == "line").then_some(job)
    };
    let job = (0..60).find_map(in_line).unwrap();
    assert_eq!(job["job"]["wait"]["blocks"][0]["deployment"], "east");
    assert_eq!(job["worker"]["pid"], worker.id());
    let id = job["id"].as_str().unwrap();
    assert_eq!(json(&place, &[id])["batch"], "night", "by its id alone");
    end(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_a_429_asked_for_is_told() {
    let faults = FaultRates { rate_429: 1.0, ..FaultRates::default() };
    let simulator = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
    let place = night(&simulator, 5, "");
    let worker = place.spawn(&["work"]);
    until_said(&place, &["night"], &["pauses after a refusal: 429"]).await;
    end(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_try_is_told_and_then_the_dead_letter() {
    let faults = FaultRates { rate_503: 1.0, ..FaultRates::default() };
    let simulator = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
    let place = night(&simulator, 1, "[worker]\nmax_tries = 4");
    let mut worker = place.spawn(&["work", "--drain"]);
    let tried = ["attempt 1 failed", "attempt 2 failed", "attempt 3 failed"];
    let asking = async {
        loop {
            let why = place.run(&["why", "job-0"]);
            if tried.iter().any(|text| why.out.contains(text)) {
                return why.out;
            }
            tokio::task::yield_now().await;
        }
    };
    let said = tokio::time::timeout(LONG, asking).await.unwrap();
    assert!(said.contains("ServiceUnavailable"), "{said}");
    worker.wait();
    let said = until_said(&place, &["job-0"], &["dead", "after 4 attempts"]).await;
    assert!(said.contains("ServiceUnavailable") || said.contains("503"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_flight_is_told_with_its_deployment() {
    let latency = SimulatedLatency { base_ms: 60_000.0, ..SimulatedLatency::default() };
    let simulator = start(SimulatorSettings { latency, ..SimulatorSettings::default() }).await;
    let place = night(&simulator, 1, "");
    let worker = place.spawn(&["work"]);
    until_said(&place, &["job-0"], &["in flight at east", "held by worker"]).await;
    until_said(&place, &["night"], &["1 in flight at east"]).await;
    end(worker);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_worker_the_queue_tells_and_pauses_are_named() {
    let simulator = start(SimulatorSettings::default()).await;
    let place = night(&simulator, 3, "");
    let said = place.run(&["why", "job-2"]).out;
    assert!(said.contains("in the queue, not handed out yet; 2 before it"), "{said}");
    assert!(said.contains("no worker is alive"), "{said}");
    assert_eq!(place.run(&["pause", "night", "--reason", "the price"]).code, Some(0));
    let said = place.run(&["why", "night"]).out;
    assert!(said.contains("the batch is paused: the price; `promptmill resume night`"), "{said}");
    assert_eq!(place.run(&["resume", "night"]).code, Some(0));
    assert_eq!(place.run(&["work", "--drain"]).code, Some(0));
    let said = place.run(&["why", "job-2"]).out;
    assert!(said.contains("succeeded at east"), "{said}");
    assert!(
        place.run(&["why", "night"]).out.contains("night: done; 3 jobs = 3 succeeded, 0 pending")
    );
    let nobody = place.run(&["why", "job-9"]);
    assert_eq!(nobody.code, Some(2));
    assert!(nobody.err.contains("'job-9' is neither a batch nor"), "{}", nobody.err);
    assert_eq!(place.run(&["why", "job-2", "--batch", "day"]).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_on_azure_answer_as_well() {
    let latency = SimulatedLatency { base_ms: 60_000.0, ..SimulatedLatency::default() };
    let simulator = start(SimulatorSettings { latency, ..SimulatorSettings::default() }).await;
    let broker = broker::start(broker::jobs()).await;
    let host = cosmos_support::own_host().await;
    let place = Place::new();
    let config = format!(
        "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n\
         [store.cosmos]\nendpoint = \"{}\"\ncredential = {{ key = \"{}\" }}\nemulator = true\n\
         [[deployments]]\nname = \"east\"\nendpoint = \"http://{}/v1\"\n",
        broker::JOBS,
        broker.connection_string(),
        host.endpoint(),
        host.key(),
        simulator.addr()
    );
    place.write("promptmill.toml", config).write("in.jsonl", chats(2));
    assert_eq!(place.run(&["init"]).code, Some(0));
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "night"]).code, Some(0));
    until_said(&place, &["job-1"], &["in the queue, or handed out", "no worker is alive"]).await;
    let worker = place.spawn(&["work"]);
    until_said(&place, &["night"], &["2 in flight at east"]).await;
    end(worker);
}
