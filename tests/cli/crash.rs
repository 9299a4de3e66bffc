//! Whatever kills it, `run` loses nothing and pays nothing twice that it could know.
//!
//! `PROMPTMILL_CRASH_JOBS` and `PROMPTMILL_CRASH_KILLS` make it as large as one likes.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the large run prints what it measured")]

use std::collections::{HashMap, HashSet};
use test_support as support;

use promptmill::simulator::{FaultRates, SimulatedLatency, SimulatorSettings};
use support::cli::{Place, chats};
use support::service::{Service, wait_until};

const CONCURRENCY: u64 = 16;

struct Night {
    service: Service,
    place: Place,
    jobs: usize,
    kills: u64,
}

impl Night {
    fn new(faults: FaultRates) -> Self {
        let size =
            |name: &str, usual| std::env::var(name).map_or(usual, |n| n.parse::<usize>().unwrap());
        let jobs = size("PROMPTMILL_CRASH_JOBS", 600);
        let latency = SimulatedLatency { base_ms: 15.0, per_token_ms: 0.5, sigma: 0.5 };
        let service = Service::start(SimulatorSettings {
            faults,
            latency,
            seed: 7,
            ..SimulatorSettings::default()
        });
        let place = Place::new();
        place.write("in.jsonl", chats(jobs));
        Self { service, place, jobs, kills: size("PROMPTMILL_CRASH_KILLS", 6) as u64 }
    }

    /// Starts a run and ends it by a signal somewhere on its way; returns its exit code.
    fn interrupt(&self, kill: u64, signal: &str) -> Option<i32> {
        let url = self.service.url();
        let concurrency = CONCURRENCY.to_string();
        let before = self.service.ledger().requests;
        let args = ["run", "in.jsonl", "--endpoint", &url, "--concurrency", &concurrency];
        let mut run = self.place.spawn(&args);
        // Moments spread over the whole night, none of them at the edge of a group or a chunk.
        let calls = 1 + (kill * 7_919) % (self.jobs as u64 * 9 / 10 / self.kills);
        wait_until(|| self.service.ledger().requests >= before + calls);
        run.signal(signal);
        run.wait().code
    }

    fn finish(&self) {
        let url = self.service.url();
        let ended = self.place.run(&["run", "in.jsonl", "--endpoint", &url]);
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let ids = [self.place.ids("in.results.jsonl"), self.place.ids("in.errors.jsonl")].concat();
        assert_eq!(ids.len(), self.jobs, "every line exactly once");
        assert_eq!(ids.into_iter().collect::<HashSet<_>>().len(), self.jobs);
    }

    /// Prompts whose outcome is stored, with how often they had been answered by now.
    fn stored(&self) -> HashMap<String, u64> {
        let answered = self.service.answered();
        let database = self.place.database();
        let mut select = database.prepare("SELECT position FROM outcomes").unwrap();
        let positions = select.query_map([], |row| row.get::<_, u64>(0)).unwrap();
        positions
            .map(|position| {
                let prompt = format!("prompt {}", position.unwrap());
                let times = answered.get(&prompt).copied();
                let times = times.unwrap_or_else(|| panic!("'{prompt}' was stored and never sent"));
                (prompt, times)
            })
            .collect()
    }

    fn answered_again(&self) -> u64 {
        self.service.answered().values().map(|times| times.saturating_sub(1)).sum()
    }
}

#[test]
fn killed_runs_lose_nothing_and_pay_nothing_known_twice() {
    let night = Night::new(FaultRates::spread(0.05));
    let mut known = HashMap::new();
    for kill in 0..night.kills {
        night.interrupt(kill, "KILL");
        known.extend(night.stored());
    }
    night.finish();
    let again = night.answered_again();
    assert!(again <= night.kills * CONCURRENCY, "{again} answers were paid again");
    let answered = night.service.answered();
    for (prompt, times) in &known {
        assert_eq!(answered[prompt], *times, "'{prompt}' was stored and sent again");
    }
    println!(
        "{} jobs, {} kills, {} outcomes known at a kill, {again} answers paid again (bound {})",
        night.jobs,
        night.kills,
        known.len(),
        night.kills * CONCURRENCY
    );
}

#[test]
fn a_run_that_is_asked_to_stop_pays_nothing_twice() {
    let night = Night::new(FaultRates::spread(0.05));
    for kill in 0..night.kills {
        assert_eq!(night.interrupt(kill, "TERM"), Some(130));
    }
    night.finish();
    assert_eq!(night.answered_again(), 0);
}
