//! What `report`, `usage` and `status` say of a batch: to the token what the service billed, and on
//! a page that a real browser shows.
//!
//! The browser is Chromium (`PROMPTMILL_PEER_CHROMIUM`), driven by `playwright-core` from
//! `PROMPTMILL_PEER_NODE_MODULES`; without them that test says that it did not run.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "what was found is told")]

use std::process::Command;
use std::time::Duration;
use test_support as support;
use test_support::books;

use promptmill::simulator::{self, FaultRates, SimulatedLatency, Simulator, SimulatorSettings};
use serde_json::Value;
use support::cli::{Place, Running, chats};

const JOBS: usize = 400;
const WORKERS: usize = 8;
const KILLS: usize = 6;
const LONG: Duration = Duration::from_secs(120);

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let waiting = async {
        while !happened() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "did not happen: {what}");
}

async fn start(settings: SimulatorSettings) -> Simulator {
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

async fn ledger_lines(simulator: &Simulator) -> String {
    let url = format!("http://{}/ledger?prompts=true", simulator.addr());
    let client = promptmill::http_client::builder().no_proxy().build().unwrap();
    client.get(url).send().await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_report_equal_the_ledger_after_faults_and_kills_of_eight_workers() {
    let latency = SimulatedLatency { base_ms: 150.0, sigma: 0.5, ..SimulatedLatency::default() };
    let faults = FaultRates::spread(0.1);
    let simulator =
        start(SimulatorSettings { faults, latency, ..SimulatorSettings::default() }).await;
    let place = Place::new();
    let config = format!(
        "[state]\nlock_seconds = 3\n[[deployments]]\nname = \"sim\"\n\
         endpoint = \"http://{}/v1\"\nconcurrency = 4\n",
        simulator.addr()
    );
    place.write("promptmill.toml", config).write("in.jsonl", chats(JOBS));
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "night"]).code, Some(0));
    let mut workers: Vec<Running> =
        (0..WORKERS).map(|_| place.spawn(&["work", "--drain"])).collect();
    for (kill, worker) in workers.iter_mut().enumerate().take(KILLS) {
        let calls = (JOBS * (kill + 1) / (KILLS + 2)) as u64;
        until("calls are made", || simulator.ledger().prompts >= calls).await;
        worker.signal("KILL");
        worker.wait();
        *worker = place.spawn(&["work", "--drain"]);
        // It balances at any moment, also while others work on.
        let report = place.run(&["report", "night", "--json"]);
        assert_eq!(report.code, Some(0), "{}", report.err);
    }
    for worker in &mut workers {
        until("a worker drains", || !worker.is_running()).await;
        assert!(matches!(worker.wait().code, Some(0 | 1)));
    }
    let results = place.run(&["results", "night", "--out", "o", "--errors", "e"]);
    assert!(matches!(results.code, Some(0 | 1)), "{}", results.err);
    let paid = books::paid(&ledger_lines(&simulator).await, &place.ids("o"));
    println!("{KILLS} kills of {WORKERS} workers: {paid:?}");
    let report = books::agree(&place, "night", &paid);
    let billed = simulator.ledger().billed;
    assert_eq!(billed.usage.total(), paid.prompt + paid.completion + paid.lost_tokens);
    assert_eq!(billed.requests, place.ids("o").len() as u64 + paid.lost_calls);
    assert_eq!(report["balance"]["ended"], JOBS);
    assert_eq!(report["balance"]["endings"]["succeeded"], place.ids("o").len());
    assert_eq!(report["balance"]["faults"], serde_json::json!([]));
    assert!(report["calls"]["retries"].as_u64() > Some(0), "{report}");
}

/// A batch in which everything happens that a report tells of: 429s, faults, dead and expired jobs.
fn eventful(place: &Place) {
    let mut lines = String::new();
    for n in 0..240 {
        let mut line = support::cli::chat(&format!("job-{n}"), &format!("prompt {n}"), 200);
        match n % 40 {
            1 => line["deadline"] = "2020-01-01T00:00:00Z".into(),
            2 => line["deadline"] = "2100-01-01T00:00:00Z".into(),
            3 => line["body"]["model"] = "my-own".into(),
            _ => {}
        }
        lines += &format!("{line}\n");
    }
    place.write("in.jsonl", lines);
}

async fn worked(place: &Place) -> Value {
    let settings = SimulatorSettings {
        faults: FaultRates { rate_429: 0.03, rate_503: 0.2, ..FaultRates::default() },
        latency: SimulatedLatency { base_ms: 40.0, sigma: 0.6, ..SimulatedLatency::default() },
        ..SimulatorSettings::default()
    };
    let simulator = start(settings).await;
    let config = format!(
        "[worker]\nmax_tries = 2\n[[deployments]]\nname = \"<east>\"\n\
         endpoint = \"http://{0}/v1\"\nmodel = \"gpt-4.1-mini\"\ntpm = 2000000\n\
         [[deployments]]\nname = \"own\"\nendpoint = \"http://{0}/v1\"\nmodel = \"my-own\"\n\
         tpm = 500000\n",
        simulator.addr()
    );
    place.write("promptmill.toml", config);
    eventful(place);
    let enqueued = place.run(&["enqueue", "in.jsonl", "--batch", "night"]);
    assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
    let worked = place.run(&["work", "--drain"]);
    assert_eq!(worked.code, Some(1), "{}", worked.err);
    let report = place.run(&["report", "night", "--json"]);
    assert_eq!(report.code, Some(0), "{}", report.err);
    place.write("account.json", &report.out);
    serde_json::from_str(&report.out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_tells_what_happened_in_the_night() {
    let place = Place::new();
    let report = worked(&place).await;
    let endings = &report["balance"]["endings"];
    assert_eq!(endings["expired"], 6);
    assert!(endings["dead"].as_u64() > Some(0), "{endings}");
    assert_eq!(report["deadlines"]["met"].as_u64().unwrap() + 6, 12, "{}", report["deadlines"]);
    assert_eq!(report["deadlines"]["missed"], 6);
    assert!(report["calls"]["throttled"].as_u64() > Some(0), "{}", report["calls"]);
    assert!(report["money"]["cost"].is_null() && report["money"]["unpriced_tokens"] != 0);
    let codes: Vec<_> = report["failures"].as_array().unwrap().iter().map(|f| &f["code"]).collect();
    assert!(codes.iter().any(|code| *code == "deadline_passed"), "{codes:?}");
    let text = report.to_string();
    assert!(!text.contains("prompt 7"), "no prompt is in a report");
    // The queue has lost a job: that is said, and the exit code tells it.
    let more = place.run(&["enqueue", "in.jsonl", "--batch", "lost"]);
    assert_eq!(more.code, Some(0), "{}", more.err);
    let lost = "DELETE FROM queue WHERE batch_id = 'lost' AND position < 3";
    place.database().execute(lost, []).unwrap();
    let report = place.run(&["report", "lost"]);
    assert_eq!(report.code, Some(1), "{}", report.err);
    assert!(report.err.contains("IT DOES NOT BALANCE: 3 jobs have neither"), "{}", report.err);
    let page = std::fs::read_to_string(place.path("lost.report.html")).unwrap();
    assert!(page.contains("IT DOES NOT BALANCE"));
    assert_eq!(place.run(&["report", "nothing"]).code, Some(2));
    assert_eq!(place.run(&["report", "lost", "--lang", "tlh"]).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_the_figures_of_the_json_and_asks_nobody() {
    let peer = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let peers = peer("PROMPTMILL_PEER_NODE_MODULES").zip(peer("PROMPTMILL_PEER_CHROMIUM"));
    let Some((modules, _)) = peers else {
        println!(
            "did not run: PROMPTMILL_PEER_NODE_MODULES and PROMPTMILL_PEER_CHROMIUM are not set"
        );
        return;
    };
    let place = Place::new();
    worked(&place).await;
    for language in ["en", "ja"] {
        let (page, picture) = (format!("{language}.html"), format!("{language}.png"));
        let report = place.run(&["report", "night", "--lang", language, "--html", &page]);
        assert_eq!(report.code, Some(0), "{}", report.err);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/report_page.cjs");
        let picture = match std::env::var_os("PROMPTMILL_REPORT_PICTURES") {
            Some(folder) => std::path::Path::new(&folder).join(picture),
            None => place.path(&picture),
        };
        let browsed = Command::new("timeout")
            .args(["120", "node", script])
            .args([place.path(&page), place.path("account.json"), picture])
            .env("NODE_PATH", &modules)
            .output()
            .unwrap();
        let err = String::from_utf8_lossy(&browsed.stderr);
        assert!(browsed.status.success(), "{language}: {err}");
        let found: Value = serde_json::from_slice(&browsed.stdout).unwrap();
        println!("{language}: {found}");
        assert!(found["figures"].as_u64() > Some(50) && found["plots"].as_u64() >= Some(4));
    }
}
