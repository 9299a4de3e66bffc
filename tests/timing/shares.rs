//! Several workers on one quota, as processes of the real binary: together they use it up and do
//! not run into it, whoever joins or is killed.
//!
//! The bands are wide enough for a busy machine; `benches/shares` measures how close it comes.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::process::{Child, Stdio};
use std::time::Duration;
use test_support as support;

use promptmill::simulator::{SimulatedLatency, SimulatorSettings};
use support::cli::{Place, chats};
use support::service::{Service, wait_for};

const TPM: u64 = 120_000;
/// The simulator's minute: long enough for some 200 jobs.
const WINDOW: Duration = Duration::from_secs(5);
/// What a shared quota may take to be shared anew, in whole windows.
const SETTLING: u64 = 2;

struct Mill {
    service: Service,
    place: Place,
    workers: Vec<Child>,
}

impl Mill {
    fn new() -> Self {
        let settings = SimulatorSettings {
            tpm: Some(TPM),
            window: WINDOW,
            latency: SimulatedLatency { base_ms: 50.0, per_token_ms: 0.5, sigma: 0.3 },
            ..SimulatorSettings::default()
        };
        let (service, place) = (Service::start(settings), Place::new());
        let text = format!(
            "[[deployments]]\nname = \"sim\"\nendpoint = \"{}\"\ntpm = {TPM}\nconcurrency = 16\n",
            service.url()
        );
        place.write("promptmill.toml", text);
        place.write("in.jsonl", chats(8_000));
        let enqueued = place.run(&["enqueue", "in.jsonl", "--batch", "night"]);
        assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
        Self { service, place, workers: Vec::new() }
    }

    fn join(&mut self) {
        let mut command = self.place.command(&["work"]);
        self.workers.push(command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap());
    }

    /// The index of the window that is open.
    fn window(&self) -> u64 {
        self.service.ledger().windows.last().map_or(0, |w| w.window.index)
    }

    /// Waits until so many more windows have ended; gives the index of the one that began then.
    fn pass(&self, windows: u64) -> u64 {
        let end = self.window() + windows;
        wait_for(Duration::from_secs(60), || self.window() >= end);
        end
    }

    /// The part of the quota that was used in these windows, and 429s by calls that were admitted.
    fn used_and_refused(&self, windows: std::ops::Range<u64>) -> (f64, f64) {
        let ledger = self.service.ledger();
        let (mut charged, mut quota, mut admitted, mut refused) = (0, 0, 0, 0);
        for w in ledger.windows.iter().map(|w| &w.window).filter(|w| windows.contains(&w.index)) {
            charged += w.charged;
            quota += w.quota.unwrap();
            admitted += w.admitted;
            refused += w.refused;
        }
        (charged as f64 / quota as f64, refused as f64 / admitted as f64)
    }

    fn shares_told(&self) -> i64 {
        let sql = "SELECT count(*) FROM shares";
        self.place.database().query_row(sql, [], |row| row.get(0)).unwrap()
    }
}

impl Drop for Mill {
    fn drop(&mut self) {
        for worker in &mut self.workers {
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}

#[test]
fn four_workers_use_one_quota_up_while_one_is_killed_and_another_joins() {
    let mut mill = Mill::new();
    (0..4).for_each(|_| mill.join());
    let begin = mill.pass(SETTLING);
    let killed = mill.pass(3);
    mill.workers[0].kill().unwrap();
    let without = mill.pass(SETTLING);
    let joined = mill.pass(2);
    mill.join();
    let end = mill.pass(3);

    let (used, refused) = mill.used_and_refused(begin..killed);
    assert!(used > 0.9, "{:.1} % of the quota used by four", used * 100.0);
    assert!(refused < 0.01, "{:.2} % refused by four", refused * 100.0);
    let (used, refused) = mill.used_and_refused(without..joined);
    assert!(used > 0.9, "{:.1} % used: a dead one's share lies idle", used * 100.0);
    assert!(refused < 0.01, "{:.2} % refused after the kill", refused * 100.0);
    for window in joined..end {
        let (used, refused) = mill.used_and_refused(window..window + 1);
        assert!(used * (1.0 + refused) < 1.05, "a burst of {:.1} %", (used + refused) * 100.0);
    }
    assert_eq!(mill.shares_told(), 5, "the dead one's word is not cleared up before its time");
}

#[test]
fn who_leaves_in_order_takes_its_word_back_and_a_lone_worker_has_all() {
    let mut mill = Mill::new();
    mill.join();
    let begin = mill.pass(1);
    let end = mill.pass(2);
    let (used, _) = mill.used_and_refused(begin..end);
    assert!(used > 0.9, "{:.1} % used by one alone", used * 100.0);
    let status = mill.place.run(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    let worker = &status["workers"][0];
    assert_eq!(worker["about"]["pid"], mill.workers[0].id());
    let part = worker["parts"].as_object().unwrap().values().next().unwrap();
    assert_eq!(part["claim"], 1.0, "{worker}");
    let pid = mill.workers[0].id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(mill.workers[0].wait().unwrap().code(), Some(0));
    assert_eq!(mill.shares_told(), 0);
}
