//! Budgets are kept over all workers, by the simulator's own ledger.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::HashSet;
use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use promptmill::simulator::{self, FaultRates, SimulatedLatency, Simulator, SimulatorSettings};
use serde_json::Value;
use support::broker::{self, QueueSettings};
use support::cli::{Ended, Place, Running, chat, chats};

const JOBS: usize = 900;
const LONG: Duration = Duration::from_secs(150);
const LOCK: Duration = Duration::from_secs(5);

/// About half of what all jobs take.
const TOKENS: u64 = 12_000;

async fn simulator(faults: FaultRates) -> Simulator {
    let latency = SimulatedLatency { base_ms: 40.0, ..SimulatedLatency::default() };
    let settings = SimulatorSettings { faults, latency, ..SimulatorSettings::default() };
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

fn deployment(simulator: &Simulator) -> String {
    let at = simulator.addr();
    format!("[[deployments]]\nname = \"sim\"\nendpoint = \"http://{at}/v1\"\nconcurrency = 8\n")
}

fn ok(ended: Ended) -> Ended {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended
}

fn local(simulator: &Simulator) -> Place {
    let place = Place::new();
    let state = format!("[state]\nlock_seconds = {}\n", LOCK.as_secs());
    place.write("promptmill.toml", state + &deployment(simulator));
    place.write("in.jsonl", chats(JOBS));
    place
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    let waiting = async {
        while !happened() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "did not happen: {what}");
}

fn workers(place: &Place, count: usize) -> Vec<Running> {
    (0..count).map(|_| place.spawn(&["work", "--drain"])).collect()
}

async fn ends(workers: Vec<Running>) -> Vec<Ended> {
    let mut ends = Vec::new();
    for mut worker in workers {
        until("a worker ends", || !worker.is_running()).await;
        ends.push(worker.wait());
    }
    ends
}

fn standing(place: &Place) -> Value {
    let status = ok(place.run(&["status", "night", "--json"]));
    serde_json::from_str::<Value>(&status.out).unwrap()["batches"][0].clone()
}

/// The tokens that the service billed, whoever got the answers.
fn billed(simulator: &Simulator) -> u64 {
    simulator.ledger().billed.usage.total()
}

/// What they cost by the price of gpt-4.1-mini, in millionths of a millionth.
fn cost(simulator: &Simulator) -> u64 {
    let usage = simulator.ledger().billed.usage;
    let fresh = usage.prompt_tokens - usage.cached_tokens;
    fresh * 400_000 + usage.cached_tokens * 100_000 + usage.completion_tokens * 1_600_000
}

fn each_has_one_line(place: &Place) {
    place.run(&["results", "night", "--out", "o", "--errors", "e"]);
    let ids = [place.ids("o"), place.ids("e")].concat();
    assert_eq!(ids.len(), JOBS, "nothing is lost, nothing is there twice");
    assert_eq!(ids.into_iter().collect::<HashSet<_>>().len(), JOBS);
}

/// The budget is used up by these workers, raised, and the rest is done.
async fn spend_and_raise(place: &Place, simulator: &Simulator, at_work: Vec<Running>) {
    for ended in ends(at_work).await {
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.err.contains("batch night is paused (budget of 12000 tokens:"), "{ended:?}");
        assert!(ended.err.contains("promptmill resume night"), "{}", ended.err);
    }
    assert!(billed(simulator) <= TOKENS, "{} were billed of {TOKENS}", billed(simulator));
    let paused = standing(place);
    assert_eq!(paused["state"], "paused");
    let said = paused["reason"].as_str().unwrap();
    assert!(said.contains("spent or reserved, next call may cost"), "{said}");
    let of = |name: &str| paused["budget"][name].as_u64().unwrap();
    assert!(of("spent") <= of("committed") && of("committed") <= TOKENS, "{paused}");
    let low = place.run(&["resume", "night", "--token-budget", "100"]);
    assert_eq!(low.code, Some(2), "{low:?}");
    assert!(low.err.contains("is spent or reserved already"), "{}", low.err);
    ok(place.run(&["resume", "night", "--token-budget", "1000000"]));
    for ended in ends(workers(place, 2)).await {
        assert!(matches!(ended.code, Some(0 | 1)), "{ended:?}");
    }
    each_has_one_line(place);
    assert_eq!(standing(place)["state"], "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_use_a_budget_up_and_never_more() {
    let simulator = simulator(FaultRates::default()).await;
    let place = local(&simulator);
    let budget = TOKENS.to_string();
    let enqueue = ["enqueue", "in.jsonl", "--batch", "night", "--token-budget", &budget];
    ok(place.run(&enqueue));
    let mut at_work = workers(&place, 4);
    for worker in &mut at_work {
        until("a worker ends", || !worker.is_running()).await;
    }
    let used = billed(&simulator);
    assert!(used > TOKENS - 4 * 100, "{used} of {TOKENS} were used");
    spend_and_raise(&place, &simulator, at_work).await;
    let after = standing(&place);
    let billed = billed(&simulator);
    assert_eq!(after["budget"]["spent"], billed, "every call's cost is known");
    assert_eq!(after["budget"]["committed"], billed, "all that was not spent was given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_stopped_gives_back_and_a_budget_is_raised_while_it_is_used() {
    let simulator = simulator(FaultRates::default()).await;
    let place = local(&simulator);
    let budget = TOKENS.to_string();
    let enqueue = ["enqueue", "in.jsonl", "--batch", "night", "--token-budget", &budget];
    ok(place.run(&enqueue));
    let mut worker = place.spawn(&["work"]);
    until("some are answered", || simulator.ledger().answered >= 60).await;
    worker.signal("TERM");
    ok(worker.wait());
    let stopped = standing(&place)["budget"].clone();
    assert_eq!(
        (&stopped["spent"], &stopped["committed"]),
        (&stopped["committed"], &billed(&simulator).into())
    );
    let at_work = workers(&place, 2);
    until("more are answered", || simulator.ledger().answered >= 120).await;
    ok(place.run(&["resume", "night", "--token-budget", "1000000"]));
    for ended in ends(at_work).await {
        assert_eq!(ended.code, Some(0), "{ended:?}");
    }
    each_has_one_line(&place);
    assert!(billed(&simulator) > TOKENS);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_calls_that_are_paid_for_nothing_are_within_the_budget() {
    let simulator = simulator(FaultRates::spread(0.1)).await;
    let place = local(&simulator);
    let budget = TOKENS.to_string();
    let enqueue = ["enqueue", "in.jsonl", "--batch", "night", "--token-budget", &budget];
    ok(place.run(&enqueue));
    let mut at_work = workers(&place, 4);
    until("some are answered", || simulator.ledger().answered >= 60).await;
    for _ in 0..2 {
        at_work.pop().unwrap().signal("KILL");
    }
    spend_and_raise(&place, &simulator, at_work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_service_bus_and_cosmos_a_budget_is_kept_as_well() {
    let simulator = simulator(FaultRates::spread(0.05)).await;
    let queue = QueueSettings { lock: LOCK, max_delivery_count: 50, ..broker::jobs() };
    let broker = broker::start(queue).await;
    let host = cosmos_support::own_host().await;
    let place = local(&simulator);
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
    let budget = TOKENS.to_string();
    let enqueue = ["enqueue", "in.jsonl", "--batch", "night", "--token-budget", &budget];
    ok(place.run(&enqueue));
    let at_work = workers(&place, 3);
    spend_and_raise(&place, &simulator, at_work).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_with_a_budget_of_money_says_why_it_paused_and_goes_on_when_it_is_raised() {
    let simulator = simulator(FaultRates::default()).await;
    let place = local(&simulator);
    let run = ["run", "in.jsonl", "--batch", "night", "--out", "o", "--errors", "e"];
    let with_budget = [&run[..], &["--budget", "0.01"]].concat();
    let paused = place.run(&with_budget);
    assert_eq!(paused.code, Some(1), "{paused:?}");
    assert!(paused.err.contains("batch night is paused (budget of 0.01 USD: "), "{}", paused.err);
    assert!(paused.err.contains("`promptmill resume night --budget AMOUNT`"), "{}", paused.err);
    assert!(cost(&simulator) <= 10_000_000_000, "{} was spent", cost(&simulator));
    assert!(cost(&simulator) >= 9_800_000_000, "{} was spent", cost(&simulator));
    ok(place.run(&["resume", "night", "--budget", "1"]));
    let unsaid = place.run(&run);
    assert_eq!(unsaid.code, Some(2), "{unsaid:?}");
    assert!(unsaid.err.contains("has a budget of 1 USD: give it here too"), "{}", unsaid.err);
    let done = ok(place.run(&with_budget));
    assert!(done.err.contains("keeps its budget of 1 USD"), "{}", done.err);
    assert_eq!(place.ids("o").len(), JOBS);
    let spent = standing(&place)["budget"]["spent"].as_f64().unwrap();
    assert!((spent * 1e12 - cost(&simulator) as f64).abs() < 1e6, "{spent}: {}", cost(&simulator));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_kept_to_is_said_before_anything_is_sent() {
    let simulator = simulator(FaultRates::default()).await;
    let place = local(&simulator);
    let refused = |args: &[&str], says: &str| {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.err.contains(says), "{}", ended.err);
    };
    let mut own = chat("a", "x", 5);
    own["body"]["model"] = "my-own".into();
    place.write("own.jsonl", own.to_string());
    let says = "deployment sim: the model 'my-own' has no price in config/prices.toml";
    refused(&["run", "own.jsonl", "--budget", "1"], says);
    refused(&["enqueue", "own.jsonl", "--budget", "1"], says);
    let mut open = chat("a", "x", 5);
    open["body"].as_object_mut().unwrap().remove("max_tokens");
    place.write("open.jsonl", open.to_string());
    refused(&["enqueue", "open.jsonl", "--token-budget", "9"], "the body sets no limit");
    refused(&["enqueue", "in.jsonl", "--budget", "0"], "a budget must be more than 0");
    ok(place.run(&["enqueue", "in.jsonl", "--batch", "free"]));
    refused(&["resume", "free", "--budget", "5"], "has begun without a budget");
    refused(&["resume", "none", "--budget", "5"], "there is no batch 'none'");
    ok(place.run(&["enqueue", "in.jsonl", "--batch", "small", "--token-budget", "20"]));
    refused(&["resume", "small", "--budget", "5"], "has a budget of 20 tokens");
    let run = ["run", "in.jsonl", "--batch", "small", "--token-budget", "20"];
    let paused = place.run(&run);
    assert_eq!(paused.code, Some(1), "{paused:?}");
    assert!(paused.err.contains("more than all of it"), "{}", paused.err);
    assert_eq!(simulator.ledger().requests, 0);
}
