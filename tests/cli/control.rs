//! Batches are paused, resumed and cancelled over several workers, as processes of the real binary.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::HashSet;
use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use promptmill::simulator::{self, SimulatedLatency, Simulator, SimulatorSettings};
use serde_json::Value;
use support::broker::{self, QueueSettings};
use support::cli::{Ended, Place, Running, chats};
use tokio::time::Instant;

const JOBS: usize = 1_200;
const LOCK: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(120);

/// How soon every worker has heard of a change, on a busy machine as well.
const SECONDS: Duration = Duration::from_secs(15);

/// Slow enough that there is something to pause.
async fn slow() -> Simulator {
    let latency = SimulatedLatency { base_ms: 150.0, ..SimulatedLatency::default() };
    let settings = SimulatorSettings { latency, ..SimulatorSettings::default() };
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

fn deployment(simulator: &Simulator) -> String {
    let at = simulator.addr();
    format!("[[deployments]]\nname = \"sim\"\nendpoint = \"http://{at}/v1\"\nconcurrency = 8\n")
}

/// A place with the embedded queue and store, and a batch in it.
fn local(simulator: &Simulator) -> Place {
    let place = Place::new();
    let state = format!("[state]\nlock_seconds = {}\n", LOCK.as_secs());
    place.write("promptmill.toml", state + &deployment(simulator));
    enqueued(place)
}

fn enqueued(place: Place) -> Place {
    place.write("in.jsonl", chats(JOBS));
    ok(place.run(&["enqueue", "in.jsonl", "--batch", "night"]));
    place
}

fn ok(ended: Ended) -> Ended {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended
}

fn workers(place: &Place, count: usize, args: &[&str]) -> Vec<Running> {
    (0..count).map(|_| place.spawn(args)).collect()
}

fn stop(workers: Vec<Running>) {
    for mut worker in workers {
        worker.signal("TERM");
        ok(worker.wait());
    }
}

async fn within(limit: Duration, what: &str, mut happened: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let waiting = async {
        while !happened() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "did not happen: {what}");
}

async fn answered(simulator: &Simulator, count: usize) {
    within(LONG, "jobs are answered", || simulator.ledger().answered >= count as u64).await;
}

/// Waits until no call has come for a while; returns how many there were in all.
async fn quiet(simulator: &Simulator) -> u64 {
    let (mut last, mut since) = (0, Instant::now());
    let quiet = || {
        let now = simulator.ledger().requests;
        if now != last {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(3)
    };
    within(SECONDS, "no worker calls any more", quiet).await;
    last
}

fn standing(place: &Place) -> Value {
    let status = ok(place.run(&["status", "night", "--json"]));
    serde_json::from_str::<Value>(&status.out).unwrap()["batches"][0].clone()
}

async fn nothing_pends(place: &Place) {
    within(LONG, "all jobs end", || standing(place)["pending"] == 0).await;
}

/// Every job has one line, as an answer or as an error; returns how many of each.
fn one_line_each(place: &Place) -> (usize, usize) {
    place.run(&["results", "night", "--out", "o", "--errors", "e"]);
    let (answers, errors) = (place.ids("o"), place.ids("e"));
    let counts = (answers.len(), errors.len());
    let all: HashSet<_> = answers.into_iter().chain(errors).collect();
    assert_eq!((counts.0 + counts.1, all.len()), (JOBS, JOBS), "none is lost, none is there twice");
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_pause_within_seconds_and_a_kill_meanwhile_loses_nothing() {
    let simulator = slow().await;
    let place = local(&simulator);
    let mut at_work = workers(&place, 4, &["work"]);
    answered(&simulator, JOBS / 10).await;
    let said = ok(place.run(&["pause", "night", "--reason", "the quota is needed"]));
    assert!(said.out.contains("promptmill resume night"), "{}", said.out);
    let called = quiet(&simulator).await;
    assert!(called < JOBS as u64, "it was paused before its end");
    let paused = standing(&place);
    assert_eq!(
        (&paused["state"], &paused["reason"]),
        (&"paused".into(), &"the quota is needed".into())
    );
    assert_eq!(paused["endings"]["succeeded"], called);
    at_work.pop().unwrap().signal("KILL");
    assert_eq!(quiet(&simulator).await, called, "it stays paused");
    ok(place.run(&["resume", "night"]));
    nothing_pends(&place).await;
    stop(at_work);
    assert_eq!(one_line_each(&place), (JOBS, 0));
    let ledger = simulator.ledger();
    assert_eq!((ledger.requests, ledger.billed_more_than_once.prompts), (JOBS as u64, 0));
    assert_eq!(standing(&place)["state"], "done");
    let late = place.run(&["pause", "night"]);
    assert_eq!(late.code, Some(2), "{late:?}");
    assert!(late.err.contains("is done"), "{}", late.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_batch_keeps_what_has_ended_and_calls_no_more() {
    let simulator = slow().await;
    let place = local(&simulator);
    let at_work = workers(&place, 4, &["work", "--drain"]);
    answered(&simulator, JOBS / 10).await;
    ok(place.run(&["cancel", "night"]));
    for mut worker in at_work {
        within(LONG, "a worker drains", || !worker.is_running()).await;
        assert!(matches!(worker.wait().code, Some(0 | 1)));
    }
    let (answers, cancelled) = one_line_each(&place);
    assert_eq!(answers as u64, simulator.ledger().answered, "what was answered is kept");
    assert!(cancelled > 0);
    for line in place.lines("e") {
        assert_eq!(line["error"]["code"], "batch_cancelled", "{line}");
    }
    assert_eq!(standing(&place)["state"], "cancelled");
    for refused in [&["resume", "night"][..], &["enqueue", "in.jsonl", "--batch", "night"]] {
        let ended = place.run(refused);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains("another --batch"), "{}", ended.err);
    }
    ok(place.run(&["cancel", "night"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_when_its_batch_is_paused_and_goes_on_when_it_is_resumed() {
    let simulator = slow().await;
    let place = Place::new();
    place.write("in.jsonl", chats(JOBS)).write("promptmill.toml", deployment(&simulator));
    let run = ["run", "in.jsonl", "--batch", "night", "--out", "o", "--errors", "e"];
    let mut running = place.spawn(&run);
    answered(&simulator, JOBS / 10).await;
    ok(place.run(&["pause", "night"]));
    within(SECONDS, "the run ends", || !running.is_running()).await;
    for ended in [running.wait(), place.run(&run)] {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("batch night is paused: go on with `promptmill resume night`"));
    }
    ok(place.run(&["resume", "night"]));
    ok(place.run(&run));
    assert_eq!(place.ids("o").len(), JOBS);
    assert_eq!(simulator.ledger().requests, JOBS as u64, "none was called for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_batch_is_in_nobodys_way_and_takes_more_jobs() {
    let simulator = slow().await;
    let place = local(&simulator);
    ok(place.run(&["pause", "night"]));
    place.write("more.jsonl", chats(JOBS + 50)).write("day.jsonl", chats(100));
    ok(place.run(&["enqueue", "more.jsonl", "--batch", "night"]));
    assert_eq!(standing(&place)["state"], "paused");
    ok(place.run(&["enqueue", "day.jsonl", "--batch", "day"]));
    let mut worker = place.spawn(&["work", "--drain"]);
    within(LONG, "the other batch is done", || !worker.is_running()).await;
    let ended = worker.wait();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("batch night is paused"), "{}", ended.err);
    assert_eq!(simulator.ledger().requests, 100);
    let paused = standing(&place);
    assert_eq!((&paused["jobs"], &paused["pending"]), (&(JOBS + 50).into(), &(JOBS + 50).into()));
    assert_eq!(place.queued() as usize, JOBS + 50, "all of them wait in the queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_service_bus_and_cosmos_drain_ends_at_a_pause_and_cancel_ends_the_rest() {
    let simulator = slow().await;
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
    ok(place.run(&["init"]));
    let place = enqueued(place);
    let at_work = workers(&place, 2, &["work", "--drain"]);
    answered(&simulator, JOBS / 10).await;
    ok(place.run(&["pause", "night"]));
    for mut worker in at_work {
        within(LONG, "a worker ends", || !worker.is_running()).await;
        let ended = worker.wait();
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("promptmill resume night"), "{}", ended.err);
    }
    let called = simulator.ledger().requests;
    assert!(called < JOBS as u64);
    ok(place.run(&["resume", "night"]));
    let at_work = workers(&place, 2, &["work"]);
    answered(&simulator, called as usize + JOBS / 10).await;
    ok(place.run(&["cancel", "night"]));
    nothing_pends(&place).await;
    stop(at_work);
    let (answers, cancelled) = one_line_each(&place);
    assert_eq!(answers as u64, simulator.ledger().answered);
    assert!(cancelled > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_queue_is_away_ends_at_once_on_sigterm_and_blames_nobody() {
    // Nothing listens there any more.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let place = Place::new();
    let text = format!(
        "[queue.service_bus]\nqueue = \"jobs\"\npatience_seconds = 1\n\
         connection_string = \"Endpoint=sb://{closed};SharedAccessKeyName=k;\
         SharedAccessKey=c2VjcmV0;UseDevelopmentEmulator=true;\"\n\
         [worker]\nshutdown_grace_seconds = 1\n"
    );
    place.write("promptmill.toml", text + &deployment(&slow().await));
    let mut worker = place.spawn(&["work"]);
    // By now its pauses are drawn from several seconds.
    let pauses = |worker: &Running| worker.log().matches("; trying again").count();
    within(LONG, "the queue is missed", || pauses(&worker) >= 4).await;
    worker.signal("TERM");
    within(SECONDS, "the worker ends", || !worker.is_running()).await;
    let ended = worker.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(!ended.err.contains("store") && !ended.err.contains("error:"), "{}", ended.err);
}
