//! Workers that come and go: what a scaler is told, what a scale-in costs, and how one, two, four and
//! eight of them share a quota under random SIGTERMs and SIGKILLs.
//!
//! `benches/scale` makes the last one larger, with a release build, and prints docs/scaling.md's table.
//! By hand: PROMPTMILL_SCALE_CALM_S and PROMPTMILL_SCALE_STORM_S (seconds with as many workers, without
//! and with signals), PROMPTMILL_SCALE_SIGNAL_S (from one signal to the next), PROMPTMILL_SCALE_WINDOW_S,
//! PROMPTMILL_SCALE_TPM, PROMPTMILL_SCALE_JOBS, PROMPTMILL_SCALE_SEED.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the large runs print what they measured")]

use std::collections::HashMap;
use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::fleet;

use fleet::{Fleet, Setup, size, until};
use promptmill::deployment::{DemandSnapshot, DeploymentSnapshot};
use promptmill::heartbeat::{DeploymentReport, Heartbeat, QuotaClaim, WorkerStatus};
use promptmill::simulator::{self, DeploymentWindow, SimulatedLatency};
use promptmill::store::WorkerRegistry;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use support::cli::Running;
use tokio::time::{Instant, sleep_until};

/// What the simulator books for a job of these: its prompt, and 32 tokens that it may answer.
const CHARGE: usize = 44;

fn simulator(tpm: Option<u64>, base_ms: f64, window: Duration) -> simulator::SimulatorSettings {
    let latency = SimulatedLatency { base_ms, ..SimulatedLatency::default() };
    simulator::SimulatorSettings { tpm, latency, window, ..simulator::SimulatorSettings::default() }
}

async fn get(url: &str) -> Value {
    let client = promptmill::http_client::builder().no_proxy().build().unwrap();
    let answer = client.get(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.status());
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

/// Asks until the answer suits.
async fn scaling(url: &str, suits: impl Fn(&Value) -> bool) -> Value {
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut last = Value::Null;
    let asking = async {
        loop {
            tick.tick().await;
            last = get(&format!("{url}/scaling")).await;
            if suits(&last) {
                return;
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(60), asking).await;
    assert!(found.is_ok(), "it never suits: {last}");
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scaler_is_told_as_many_workers_as_there_is_work_and_quota_for() {
    // A worker's 4 calls of 0.5 s are 480 a minute; the quota gives 1,200: two and a half workers' work.
    let tpm = 1_200 * CHARGE as u64;
    let simulator = simulator(Some(tpm), 500.0, Duration::from_secs(2));
    let tables = "[scaling]\nbacklog_minutes = 1";
    let setup = Setup { jobs: 1_400, simulator, tables, concurrency: 4, ..Setup::default() };
    let fleet = Fleet::with(setup).await;
    let mut server = fleet.place.spawn(&["serve"]);
    let url = server.address().await;
    let told = |told: &Value| (told["useful_replicas"].as_u64().unwrap(), told["why"].clone());
    let none_yet = scaling(&url, |_| true).await;
    assert_eq!(told(&none_yet), (1, "not_measured".into()), "one finds out: {none_yet}");
    assert_eq!(fleet.place.run(&["pause", "night"]).code, Some(0));
    let paused = scaling(&url, |_| true).await;
    assert_eq!(told(&paused), (0, "nothing_to_do".into()), "nobody may work: {paused}");
    assert_eq!(fleet.place.run(&["resume", "night"]).code, Some(0));

    let mut workers = vec![fleet.place.spawn(&["work"])];
    let enough = |told: &Value| told["worker_calls"].is_f64();
    let one = scaling(&url, enough).await;
    let wanted = told(&one).0;
    // A busy machine makes calls take longer, never shorter.
    assert!((2..=4).contains(&wanted), "{one}");
    assert!(one["worker_calls"].as_f64().unwrap() <= 480.0, "{one}");
    workers.extend((1..wanted).map(|_| fleet.place.spawn(&["work"])));
    let all = scaling(&url, |told| told["workers"] == wanted).await;
    assert!(told(&all).0.abs_diff(wanted) <= 1, "who follows is told about the same: {all}");
    let status = fleet.place.run(&["status", "--json"]);
    let status: Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["scaling"]["workers"], wanted, "{}", status["scaling"]);
    let text = fleet.place.run(&["status"]).out;
    assert!(text.contains("useful workers now: "), "{text}");

    assert_eq!(fleet.place.run(&["cancel", "night"]).code, Some(0));
    let done = scaling(&url, |told| told["useful_replicas"] == 0).await;
    assert_eq!(done["why"], "nothing_to_do", "{done}");
    for mut process in workers.into_iter().chain([server]) {
        process.signal("TERM");
        assert_eq!(process.wait().code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_ins_in_the_midst_of_long_calls_give_all_back_at_once_and_poison_nothing() {
    // Longer than any grace time; and more scale-ins than a job has deliveries.
    let simulator = simulator(None, 3_600_000.0, Duration::from_secs(60));
    let setup =
        Setup { jobs: 40, simulator, shutdown_grace_s: 1, max_deliveries: 4, ..Setup::default() };
    let fleet = Fleet::with(setup).await;
    for scale_in in 1..=5 {
        let mut worker = fleet.place.spawn(&["work"]);
        let calls = scale_in * fleet::CONCURRENCY as u64 / 2;
        until("calls are in flight", || fleet.simulator.ledger().requests >= calls).await;
        let asked = Instant::now();
        worker.signal("TERM");
        until("a worker stops", || !worker.is_running()).await;
        let ended = worker.wait();
        assert!(asked.elapsed() < Duration::from_secs(20), "of the platform's 30 s");
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(ended.err.contains("did not end within the grace time"), "{}", ended.err);
        let counts = fleet.broker.counts(support::broker::JOBS);
        assert_eq!((counts.locked, counts.dead_letter), (0, 0), "nothing waits for a lock to end");
        assert_eq!(counts.active + counts.scheduled, fleet.jobs, "all is there for the next one");
    }
    let client = promptmill::http_client::builder().no_proxy().build().unwrap();
    let quick = client.post(format!("http://{}/deployments", fleet.simulator.addr()));
    let quick = quick.body("latency-ms=10").send().await.unwrap();
    assert!(quick.status().is_success());
    let ended = fleet.drain(vec![fleet.worker()]).await;
    assert_eq!(ended[0].code, Some(0), "all succeeded: {}", ended[0].err);
    fleet.is_complete();
}

/// A worker's word about three deployments, as large as real ones are.
fn word(number: u128) -> Heartbeat {
    let state = DeploymentSnapshot {
        name: "gpt-4.1-mini-sweden".into(),
        tpm_configured: Some(2_000_000),
        rpm: Some(2_000),
        charge_factor: 1.0,
        share: 0.01,
        used_last_minute: 20_000,
        waiting: 123_456,
        in_flight: 17,
        calls_allowed: 64,
        concurrency: 64,
        call_seconds: Some(5.123_456_789),
        call_tokens: Some(1_100.123_456),
        ..DeploymentSnapshot::default()
    };
    let quota = |n| format!("contoso-{n}.azure/gpt-4.1-mini");
    let snapshot = DemandSnapshot { demand: 1.0, state };
    let deployment =
        |n| DeploymentReport { name: "sweden".into(), quota: quota(n), snapshot: snapshot.clone() };
    let status = WorkerStatus {
        host: Some("promptmill-worker-7d4b9c6f5-x2x8z".into()),
        pid: Some(1),
        version: Some("0.1.0".into()),
        started: Some("2026-01-01T00:00:00.123456789Z".parse().unwrap()),
        deployments: (0..3).map(deployment).collect(),
        ..WorkerStatus::default()
    };
    let part = QuotaClaim { demand: 1.0, claim: 0.01 };
    let parts = (0..3).map(|n| (quota(n), part)).collect();
    Heartbeat { instance: uuid::Uuid::from_u128(number), sequence: 1, quota_claims: parts, status }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_of_a_hundred_workers_cost_what_the_documents_say() {
    let host = cosmos_support::own_host().await;
    let store = cosmos_support::store(&host).await;
    let mut told = Vec::new();
    for workers in [8, 100] {
        for number in 1..=workers {
            store.put_heartbeat(&word(number)).await.unwrap();
        }
        let before = host.charged();
        store.put_heartbeat(&word(1)).await.unwrap();
        let written = host.charged();
        assert_eq!(store.heartbeats().await.unwrap().len() as u128, workers);
        told.push((written - before, host.charged() - written));
    }
    println!("request units of a write and a read, 8 and 100 workers: {told:.1?}");
    let size = serde_json::to_vec(&word(1)).unwrap().len();
    println!("a word has {size} bytes");
    // docs/scaling.md tells both.
    assert!(told.iter().all(|(write, _)| (5.0..40.0).contains(write)), "{told:?}");
    assert!(told[1].1 < 110.0, "{told:?}");
}

/// How the quota was used in whole windows, if there were any.
#[derive(Default)]
struct Use {
    used: Option<f64>,
    refused: Option<f64>,
}

/// What came of one number of workers.
#[derive(Default)]
struct Stage {
    workers: usize,
    calm: Use,
    storm: Use,
    terms: usize,
    kills: usize,
    /// The longest time from SIGTERM to the end.
    longest: Duration,
}

/// The storm: who is signalled when, and what is known at each kill.
struct Storm<'f> {
    fleet: &'f Fleet,
    workers: Vec<Running>,
    random: SmallRng,
    known: HashMap<String, u64>,
    /// Not before this are outcomes read again: looking must not be what is measured.
    look_at: Instant,
}

impl Storm<'_> {
    fn grow(&mut self, workers: usize) {
        while self.workers.len() < workers {
            self.workers.push(self.fleet.place.spawn(&["work"]));
        }
    }

    /// Ends a worker at random, kindly or not, and starts another in its place.
    async fn strike(&mut self, stage: &mut Stage) {
        let slot = self.random.random_range(0..self.workers.len());
        if self.random.random_bool(0.5) {
            let began = Instant::now();
            self.workers[slot].signal("TERM");
            let worker = &mut self.workers[slot];
            until("a worker stops", || !worker.is_running()).await;
            let ended = worker.wait();
            // One that has not come to its first line yet is ended by the system.
            let has_begun = !ended.log.is_empty();
            assert_eq!(ended.code, has_begun.then_some(0), "{}", ended.err);
            assert!(!ended.err.contains("outlived"), "{}", ended.err);
            stage.terms += 1;
            stage.longest = stage.longest.max(began.elapsed());
        } else {
            self.workers[slot].signal("KILL");
            self.workers[slot].wait();
            stage.kills += 1;
            if Instant::now() >= self.look_at {
                let began = Instant::now();
                self.known.extend(self.fleet.stored().await);
                self.look_at = Instant::now() + began.elapsed() * 10;
            }
        }
        self.workers[slot] = self.fleet.place.spawn(&["work"]);
    }
}

/// The simulator's quota by its windows.
struct Windows<'f> {
    fleet: &'f Fleet,
    window: Duration,
    quota: f64,
}

impl Windows<'_> {
    /// The window of now.
    fn current(&self) -> u64 {
        (self.fleet.started.elapsed().as_secs_f64() / self.window.as_secs_f64()) as u64
    }

    /// How those were used that began and ended between two others. One in which nothing was asked
    /// is in no ledger, and unused.
    fn between(&self, from: u64, to: u64) -> Use {
        let ledger = self.fleet.simulator.ledger();
        let whole = |w: &&DeploymentWindow| w.window.index > from && w.window.index < to;
        let (mut charged, mut admitted, mut refused) = (0, 0, 0);
        for DeploymentWindow { window, .. } in ledger.windows.iter().filter(whole) {
            charged += window.charged;
            admitted += window.admitted;
            refused += window.refused;
        }
        let quota = (to - from).saturating_sub(1) as f64 * self.quota;
        let part = |of: u64, all: f64| (all > 0.0).then(|| of as f64 / all);
        Use { used: part(charged, quota), refused: part(refused, admitted as f64) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_to_eight_workers_under_random_signals_lose_nothing_and_pay_nothing_known_twice() {
    let seconds = |name: &str, usual| Duration::from_secs(size(name, usual) as u64);
    let calm_for = seconds("PROMPTMILL_SCALE_CALM_S", 1);
    let storm_for = seconds("PROMPTMILL_SCALE_STORM_S", 2);
    let signal_each = seconds("PROMPTMILL_SCALE_SIGNAL_S", 1);
    let window = seconds("PROMPTMILL_SCALE_WINDOW_S", 1);
    let tpm = size("PROMPTMILL_SCALE_TPM", 120_000);
    let seed = size("PROMPTMILL_SCALE_SEED", 7) as u64;
    let numbers = [1, 2, 4, 8];
    let jobs = size("PROMPTMILL_SCALE_JOBS", 400);
    let concurrency = 32;
    let simulator = simulator(Some(tpm as u64), 300.0, window);
    let setup = Setup { jobs, simulator, concurrency, ..Setup::default() };
    let fleet = Fleet::with(setup).await;
    let quota = tpm as f64 / 60.0 * window.as_secs_f64();
    let windows = Windows { fleet: &fleet, window, quota };
    let random = SmallRng::seed_from_u64(seed);
    let (workers, known, look_at) = (Vec::new(), HashMap::new(), Instant::now());
    let mut storm = Storm { fleet: &fleet, workers, random, known, look_at };
    let mut stages = Vec::new();
    for workers in numbers {
        storm.grow(workers);
        let joined = windows.current();
        sleep_until(Instant::now() + calm_for).await;
        let struck = windows.current();
        let calm = windows.between(joined, struck);
        let mut stage = Stage { workers, calm, ..Stage::default() };
        let end = Instant::now() + storm_for;
        while Instant::now() < end {
            let pause = signal_each.mul_f64(storm.random.random_range(0.5..1.5));
            sleep_until(end.min(Instant::now() + pause)).await;
            storm.strike(&mut stage).await;
        }
        stage.storm = windows.between(struck, windows.current());
        stages.push(stage);
    }
    let Storm { workers, known, .. } = storm;
    until("all is done", || fleet.simulator.ledger().prompts >= jobs as u64).await;
    let drained = fleet.drain(vec![fleet.worker()]).await;
    assert_eq!(drained[0].code, Some(0), "{}", drained[0].err);
    for mut worker in workers {
        worker.signal("TERM");
        assert_eq!(worker.wait().code, Some(0));
    }
    fleet.is_complete();
    let arrived = fleet.arrived().await;
    let again = known.iter().filter(|(prompt, times)| arrived[*prompt] != **times).count();
    let (paid_again, _) = fleet.paid_again();
    let kills: usize = stages.iter().map(|stage| stage.kills).sum();
    tell(&fleet, &stages);
    println!(
        "{jobs} jobs; {kills} kills; {} outcomes known at a kill, {again} of them called for again; \
         {paid_again} calls in flight at a kill paid again",
        known.len()
    );
    assert_eq!(again, 0, "what was recorded is never called for again");
    assert!(paid_again <= (kills * concurrency) as u64, "{paid_again} were paid again");
}

/// The table, and what the services were asked for.
fn tell(fleet: &Fleet, stages: &[Stage]) {
    println!(
        "| workers | quota used | 429s | under signals | 429s | SIGTERM, SIGKILL | longest end |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for stage in stages {
        let Stage { workers, calm, storm, terms, kills, longest } = stage;
        let percent = |part: Option<f64>, digits| {
            part.map_or("–".to_owned(), |part| format!("{:.digits$} %", part * 100.0))
        };
        println!(
            "| {workers} | {} | {} | {} | {} | {terms}, {kills} | {:.1} s |",
            percent(calm.used, 1),
            percent(calm.refused, 2),
            percent(storm.used, 1),
            percent(storm.refused, 2),
            longest.as_secs_f64()
        );
        assert!(*longest < Duration::from_secs(30), "longer than platforms wait");
    }
    let counts = fleet.broker.counts(support::broker::JOBS);
    let each = |n: f64| n / fleet.jobs as f64;
    println!(
        "a job: {:.2} deliveries, {:.2} completions, {:.2} renewals, {:.1} request units",
        each(counts.received as f64),
        each(counts.completed as f64),
        each(counts.renewed as f64),
        each(fleet.host.charged())
    );
}
