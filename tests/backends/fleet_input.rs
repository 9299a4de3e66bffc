//! What comes into Service Bus from our own `enqueue`, interrupted or not, and from others.
//!
//! Larger by hand with PROMPTMILL_FLEET_LINES. The exchange with Microsoft's SDK needs a Python
//! interpreter with `azure-servicebus`, named by PROMPTMILL_PEER_PYTHON; says so where there is none.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::path::Path;
use std::process::Command;
use test_support::fleet;

use fleet::{Fleet, size, until};
use promptmill::simulator::FaultRates;
use serde_json::Value;
use test_support::broker::JOBS;
use test_support::cli::{Place, chat, chats};

fn status(place: &Place, batch: &str) -> Value {
    let status = place.run(&["status", batch, "--json"]);
    serde_json::from_str(&status.out).unwrap()
}

/// Enqueues into the batch "interrupted" and tells how many jobs it has now.
fn enqueue(place: &Place, input: &str) -> u64 {
    let ended = place.run(&["enqueue", input, "--batch", "interrupted"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let status = status(place, "interrupted");
    assert_eq!(status["batches"][0]["state"], "running");
    status["batches"][0]["jobs"].as_u64().unwrap()
}

/// Kills an enqueue half-way, runs it again, lets its input grow, and adds another one. `queued`
/// tells how many of the jobs the queue has.
async fn interrupted(place: &Place, queued: impl Fn() -> u64) {
    let lines = size("PROMPTMILL_FLEET_LINES", 5_000);
    place.write("big.jsonl", chats(lines));
    let mut doomed = place.spawn(&["enqueue", "big.jsonl", "--batch", "interrupted"]);
    until("a part is enqueued", || queued() >= lines as u64 / 5).await;
    doomed.signal("KILL");
    assert_eq!(doomed.wait().code, None, "it was killed at work");
    assert!(queued() < lines as u64, "half-way");
    assert_eq!(status(place, "interrupted")["batches"][0]["state"], "enqueuing");
    let all = lines as u64;
    assert_eq!((enqueue(place, "big.jsonl"), queued()), (all, all));
    assert_eq!((enqueue(place, "big.jsonl"), queued()), (all, all));
    place.write("big.jsonl", chats(lines + 50));
    assert_eq!((enqueue(place, "big.jsonl"), queued()), (all + 50, all + 50));
    place.write("other.jsonl", format!("{}\n", chat("other", "x", 8)));
    assert_eq!((enqueue(place, "other.jsonl"), queued()), (all + 51, all + 51));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_that_was_killed_is_completed_on_service_bus() {
    let fleet = Fleet::start(1, FaultRates::default(), "").await;
    interrupted(&fleet.place, || fleet.broker.counts(JOBS).active as u64 - 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_that_was_killed_is_completed_on_the_embedded_queue() {
    let place = Place::new();
    let init = place.run(&["init"]);
    assert_eq!(init.code, Some(0), "{}", init.err);
    interrupted(&place, || place.queued() as u64).await;
}

#[expect(clippy::print_stderr, reason = "a test that does not run has to say so somewhere")]
fn peer(fleet: &Fleet, what: &str) -> bool {
    let python = std::env::var("PROMPTMILL_PEER_PYTHON").ok().filter(|value| !value.is_empty());
    let Some(python) = python else {
        eprintln!("not run: PROMPTMILL_PEER_PYTHON is not set");
        return false;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/service_bus_jobs.py");
    let mut peer = Command::new("timeout");
    peer.args(["60", &python]).arg(script);
    let output = peer.args([&fleet.broker.connection_string(), JOBS, what]).output().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdks_jobs_are_worked_and_what_is_no_job_is_set_aside() {
    let fleet = Fleet::start(5, FaultRates::default(), "").await;
    if !peer(&fleet, "broken") || !peer(&fleet, "send") {
        return;
    }
    fleet.drain(vec![fleet.worker()]).await;
    // Five of ours and three of the SDK's.
    let ledger = fleet.simulator.ledger();
    assert_eq!((ledger.answered, ledger.requests), (8, 8));
    // Those of "broken", and the one of "send".
    assert_eq!(status(&fleet.place, "night")["queue"]["dead_letters"], 5);
    assert!(peer(&fleet, "reasons"));
    assert_eq!(status(&fleet.place, "night")["batches"][0]["state"], "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_reads_what_enqueue_wrote() {
    let fleet = Fleet::start(5, FaultRates::default(), "").await;
    if peer(&fleet, "enqueued") {
        assert_eq!(fleet.broker.counts(JOBS).completed, 5);
    }
}
