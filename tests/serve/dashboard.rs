//! The dashboard in a real browser: a batch runs, is paused and resumed, dead letters are retried.
//!
//! The browser is Chromium (`PROMPTMILL_PEER_CHROMIUM`), driven by `playwright-core` and looked at by
//! `axe-core`, both from `PROMPTMILL_PEER_NODE_MODULES`; without them the test says that it did not run.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "what was seen is told")]

use std::process::Command;
use test_support as support;

use promptmill::simulator::{self, FaultRates, SimulatedLatency, Simulator, SimulatorSettings};
use support::cli::{Place, chats};

const JOBS: usize = 3_000;

async fn start(settings: SimulatorSettings) -> Simulator {
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

fn config(simulator: &Simulator) -> String {
    format!(
        "[state]\nlock_seconds = 5\n[worker]\nmax_tries = 1\n[serve]\nlisten = \"127.0.0.1:0\"\n\
         [[deployments]]\nname = \"east\"\nendpoint = \"http://{}/v1\"\ntpm = 120000\n\
         concurrency = 8\n",
        simulator.addr()
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_runs_the_night_from_a_browser() {
    let peer = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let peers = peer("PROMPTMILL_PEER_NODE_MODULES").zip(peer("PROMPTMILL_PEER_CHROMIUM"));
    let Some((modules, _)) = peers else {
        println!(
            "did not run: PROMPTMILL_PEER_NODE_MODULES and PROMPTMILL_PEER_CHROMIUM are not set"
        );
        return;
    };
    let place = Place::new();
    let faults = FaultRates { rate_503: 1.0, ..FaultRates::default() };
    let broken = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
    place.write("broken.toml", config(&broken)).write("broken.jsonl", chats(3));
    let enqueue = ["--config", "broken.toml", "enqueue", "broken.jsonl", "--batch", "broken"];
    assert_eq!(place.run(&enqueue).code, Some(0));
    assert_eq!(place.run(&["--config", "broken.toml", "work", "--drain"]).code, Some(1));

    let latency = SimulatedLatency { base_ms: 200.0, ..SimulatedLatency::default() };
    let well = start(SimulatorSettings { latency, ..SimulatorSettings::default() }).await;
    place.write("promptmill.toml", config(&well)).write("in.jsonl", chats(JOBS));
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "night"]).code, Some(0));
    let worker = place.spawn(&["work"]);
    let mut server = place.spawn(&["serve"]);
    let url = server.address().await;
    let pictures = match std::env::var_os("PROMPTMILL_DASHBOARD_PICTURES") {
        Some(folder) => folder.into(),
        None => place.path("."),
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/dashboard.cjs");
    let person = Command::new("timeout")
        .args(["240", "node", script, &url])
        .arg(pictures)
        .env("NODE_PATH", &modules)
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&person.stdout));
    assert!(person.status.success(), "{}", String::from_utf8_lossy(&person.stderr));
    for mut process in [worker, server] {
        process.signal("TERM");
        process.wait();
    }
}
