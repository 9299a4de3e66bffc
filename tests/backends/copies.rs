//! Jobs that are in a Service Bus queue more than once, where it does not drop duplicates, and jobs
//! that no `enqueue` announced: each is called for once, and all commands know it.
//!
//! Larger by hand with PROMPTMILL_COPIES_JOBS and `--nocapture`. The examples of docs/service-bus.md
//! need Microsoft's SDKs, named by PROMPTMILL_PEER_PYTHON and PROMPTMILL_PEER_NODE_MODULES.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the large runs print what they measured")]

use std::process::Command;

use fleet::{CONCURRENCY, Fleet, Setup, size, until};
use promptmill::job::Job;
use promptmill::queue::Queue;
use promptmill::simulator::{SimulatedLatency, SimulatorSettings};
use serde_json::{Value, json};
use test_support::broker::{self, JOBS};
use test_support::cli::Running;
use test_support::fleet;

fn jobs() -> usize {
    size("PROMPTMILL_COPIES_JOBS", 300)
}

/// A fleet on a queue that takes a job twice, with answers slow enough that copies meet.
async fn fleet(jobs: usize) -> Fleet {
    fleet_with(jobs, SimulatedLatency { base_ms: 400.0, sigma: 0.5, ..SimulatedLatency::default() })
        .await
}

async fn fleet_with(jobs: usize, latency: SimulatedLatency) -> Fleet {
    let simulator = SimulatorSettings { latency, ..SimulatorSettings::default() };
    let setup = Setup { jobs, simulator, drops_duplicates: false, ..Setup::default() };
    Fleet::with(Setup { enqueues: false, ..setup }).await
}

async fn enqueued(mut enqueuers: Vec<Running>) {
    for enqueuer in &mut enqueuers {
        until("an enqueue ends", || !enqueuer.is_running()).await;
        let ended = enqueuer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    }
}

async fn drain(fleet: &Fleet, workers: Vec<Running>) {
    for ended in fleet.drain(workers).await {
        let charges = ended.err.lines().filter(|line| line.starts_with("store: "));
        charges.for_each(|line| println!("{line}"));
    }
}

/// Every job has one outcome and was called for once.
fn each_was_called_once(fleet: &Fleet) {
    fleet.is_complete();
    let ledger = fleet.simulator.ledger();
    println!("{} jobs, {} calls", fleet.jobs, ledger.requests);
    assert_eq!((ledger.requests, fleet.paid_again()), (fleet.jobs as u64, (0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_enqueuers_at_once_pay_for_each_job_once() {
    let fleet = fleet(jobs()).await;
    let enqueue = |_| fleet.place.spawn(&["enqueue", "in.jsonl", "--batch", "night"]);
    let enqueuers = (0..3).map(enqueue).collect();
    until("a job is in the queue", || fleet.broker.counts(JOBS).active > 0).await;
    let workers = fleet.workers();
    enqueued(enqueuers).await;
    drain(&fleet, workers).await;
    each_was_called_once(&fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_that_is_run_again_while_its_jobs_are_called_for_pays_nothing_again() {
    let fleet = fleet(jobs()).await;
    let enqueue = || fleet.place.spawn(&["enqueue", "in.jsonl", "--batch", "night"]);
    enqueued(vec![enqueue()]).await;
    let workers = fleet.workers();
    fleet.until_called(0.2).await;
    enqueued(vec![enqueue()]).await;
    drain(&fleet, workers).await;
    each_was_called_once(&fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_under_way_when_the_second_enqueue_came_is_the_only_one() {
    // Longer than copies wait for the news of them to spread.
    let latency = SimulatedLatency { base_ms: 12_000.0, per_token_ms: 0.0, sigma: 0.0 };
    let fleet = fleet_with(CONCURRENCY, latency).await;
    let enqueue = || fleet.place.spawn(&["enqueue", "in.jsonl", "--batch", "night"]);
    enqueued(vec![enqueue()]).await;
    let mut workers = vec![fleet.worker()];
    fleet.until_called(1.0).await;
    enqueued(vec![enqueue()]).await;
    workers.push(fleet.worker());
    drain(&fleet, workers).await;
    each_was_called_once(&fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_in_its_claimed_calls_costs_these_calls_and_no_job() {
    let fleet = fleet(jobs()).await;
    let enqueue = |_| fleet.place.spawn(&["enqueue", "in.jsonl", "--batch", "night"]);
    enqueued((0..2).map(enqueue).collect()).await;
    let mut workers = fleet.workers();
    for part in [0.3, 0.6] {
        fleet.until_called(part).await;
        let mut killed = workers.remove(0);
        killed.signal("KILL");
        killed.wait();
    }
    workers.push(fleet.worker());
    drain(&fleet, workers).await;
    fleet.is_complete();
    let (again, _) = fleet.paid_again();
    assert!(again <= 2 * CONCURRENCY as u64, "{again} were paid again");
}

/// A message as another program writes it: with what it must have, and a byte order mark.
fn foreign_job(n: usize) -> Job {
    let job = json!({
        "custom_id": format!("job-{n}"),
        "batch_id": "others",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4.1-mini",
            "messages": [{ "role": "user", "content": format!("prompt {n}") }],
            "max_tokens": 32,
        },
    });
    Job::from_message(format!("\u{feff}{job}").as_bytes()).unwrap()
}

/// Every command knows the batch that nobody announced, and its so many jobs.
fn all_commands_know(fleet: &Fleet, batch: &str, jobs: usize) {
    let place = &fleet.place;
    let run = |args: &[&str]| {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.err);
        ended.out
    };
    let status: Value = serde_json::from_str(&run(&["status", batch, "--json"])).unwrap();
    let known = &status["batches"][0];
    let expected = json!(["done", jobs, 0, jobs]);
    let seen =
        json!([known["state"], known["jobs"], known["pending"], known["endings"]["succeeded"]]);
    assert_eq!(seen, expected, "{status}");
    run(&["results", batch, "--out", "o", "--errors", "e"]);
    assert_eq!(place.ids("o").len(), jobs);
    assert!(run(&["usage", batch]).contains(&jobs.to_string()));
    let report = run(&["report", batch, "--json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["balance"]["faults"], json!([]), "{report}");
    let first = place.ids("o").swap_remove(0);
    run(&["why", &first, "--batch", batch]);
}

async fn jobs_that_another_program_sends_twice(fleet: &Fleet) {
    let queue = broker::queue(&fleet.broker);
    let sent: Vec<_> = (0..fleet.jobs).map(foreign_job).collect();
    queue.send(sent.clone()).await.unwrap();
    queue.send(sent).await.unwrap();
    drain(fleet, fleet.workers()).await;
    let calls = fleet.simulator.ledger().requests;
    assert_eq!((calls, fleet.paid_again()), (fleet.jobs as u64, (0, 0)));
    all_commands_know(fleet, "others", fleet.jobs);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_another_program_sends_twice_are_paid_once_and_known_to_all_commands() {
    jobs_that_another_program_sends_twice(&fleet(100).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_embedded_store_too_they_are_paid_once_and_known_to_all_commands() {
    let fleet = fleet(100).await;
    let settings = std::fs::read_to_string(fleet.place.path("promptmill.toml")).unwrap();
    let (before, store) = settings.split_once("[store.cosmos]").unwrap();
    let after = store.split_once("[worker]").unwrap().1;
    fleet.place.write("promptmill.toml", format!("{before}[worker]{after}"));
    jobs_that_another_program_sends_twice(&fleet).await;
}

/// The example of docs/service-bus.md in this language.
fn example(language: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/service-bus.md");
    let page = std::fs::read_to_string(page).unwrap();
    let begin = page.split_once(&format!("```{language}\n")).unwrap().1;
    begin.split_once("```").unwrap().0.to_owned()
}

/// Runs an example of the page, twice, and works its jobs.
async fn documented_example(language: &str, batch: &str, mut interpreter: Command) {
    let fleet = fleet(20).await;
    fleet.place.write("example.cjs", example(language));
    interpreter
        .arg(fleet.place.path("example.cjs"))
        .env("SERVICE_BUS_CONNECTION", fleet.broker.connection_string())
        .env("SERVICE_BUS_QUEUE", JOBS);
    for _ in 0..2 {
        let output = interpreter.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    drain(&fleet, fleet.workers()).await;
    assert_eq!(fleet.simulator.ledger().requests, 20);
    all_commands_know(&fleet, batch, 20);
}

#[expect(clippy::print_stderr, reason = "a test that does not run has to say so somewhere")]
fn peer(name: &str) -> Option<String> {
    let peer = std::env::var(name).ok().filter(|value| !value.is_empty());
    if peer.is_none() {
        eprintln!("not run: {name} is not set");
    }
    peer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_python_example_sends_jobs() {
    if let Some(python) = peer("PROMPTMILL_PEER_PYTHON") {
        let mut interpreter = Command::new("timeout");
        interpreter.args(["60", &python]);
        documented_example("python", "from-python", interpreter).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_javascript_example_sends_jobs() {
    if let Some(modules) = peer("PROMPTMILL_PEER_NODE_MODULES") {
        let mut interpreter = Command::new("timeout");
        interpreter.args(["60", "node"]).env("NODE_PATH", modules);
        documented_example("javascript", "from-javascript", interpreter).await;
    }
}
