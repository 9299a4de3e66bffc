//! Workers as processes of the real binary, on Service Bus, Cosmos DB and the simulator, all of
//! which a test may break; and what a test asks of them in the end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use cosmos_host::Host;
use futures_util::TryStreamExt;
use promptmill::job::BatchId;
use promptmill::simulator::{self, FaultRates, SimulatedLatency, Simulator};
use promptmill::store::cosmos::CosmosStore;
use promptmill::store::{OutcomeReader, SortOrder};
use service_bus_broker::Broker;
use tokio::time::Instant;

use crate::broker::{self, QueueSettings};
use crate::cli::{Ended, Place, Running, chats};
use crate::cosmos as cosmos_support;

pub const WORKERS: usize = 4;

/// Calls that one worker may have in flight.
pub const CONCURRENCY: usize = 8;
const LOCK: Duration = Duration::from_secs(5);

/// Longer than any wait that can be right, at any size.
const LONG: Duration = Duration::from_secs(300);

/// A test's size, which a run by hand may change.
pub fn size(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |n| n.parse().unwrap())
}

/// What a fleet is to work on, and with what.
pub struct Setup {
    pub jobs: usize,
    pub simulator: simulator::SimulatorSettings,
    /// More lines for the queue's table.
    pub queue: &'static str,
    /// More tables.
    pub tables: &'static str,
    /// Calls that one worker may have in flight.
    pub concurrency: usize,
    pub shutdown_grace_s: u64,
    /// After how many deliveries a job is taken for one that brings workers down.
    pub max_deliveries: u32,
    /// The queue drops second copies of messages.
    pub drops_duplicates: bool,
    /// Enqueues the jobs into the batch "night"; otherwise the test does.
    pub enqueues: bool,
}

impl Default for Setup {
    fn default() -> Self {
        // Slow enough that the workers are at work when something happens to them.
        let latency =
            SimulatedLatency { base_ms: 150.0, sigma: 0.5, ..SimulatedLatency::default() };
        Self {
            jobs: 300,
            simulator: simulator::SimulatorSettings {
                latency,
                ..simulator::SimulatorSettings::default()
            },
            queue: "",
            tables: "",
            concurrency: CONCURRENCY,
            shutdown_grace_s: 10,
            max_deliveries: 10,
            drops_duplicates: true,
            enqueues: true,
        }
    }
}

pub struct Fleet {
    pub simulator: Simulator,
    pub broker: Broker,
    pub host: Host,
    pub place: Place,
    pub jobs: usize,
    /// When the simulator's first window began.
    pub started: Instant,
    store: CosmosStore,
}

impl Fleet {
    /// Starts everything and enqueues the jobs; `queue` are more lines for that table.
    pub async fn start(jobs: usize, faults: FaultRates, queue: &'static str) -> Self {
        let usual = Setup::default();
        let simulator = simulator::SimulatorSettings { faults, ..usual.simulator };
        Self::with(Setup { jobs, simulator, queue, ..usual }).await
    }

    /// Starts everything and enqueues the jobs.
    pub async fn with(setup: Setup) -> Self {
        let Setup { jobs, queue, tables, concurrency, shutdown_grace_s, max_deliveries, .. } =
            setup;
        // A quota is told to the workers as it is; a window of its own has the same pace.
        let tpm = setup.simulator.tpm.map_or(String::new(), |tpm| format!("tpm = {tpm}\n"));
        let address = "127.0.0.1:0".parse().unwrap();
        let started = Instant::now();
        let simulator = simulator::start(address, setup.simulator).await.unwrap();
        let mut of_queue = QueueSettings { lock: LOCK, ..broker::jobs() };
        if !setup.drops_duplicates {
            of_queue.duplicate_window = None;
        }
        let max_delivery_count = max_deliveries;
        let broker = broker::start(QueueSettings { max_delivery_count, ..of_queue }).await;
        let host = cosmos_support::own_host().await;
        let settings = cosmos_support::settings(&host);
        let place = Place::new();
        let text = format!(
            "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n{queue}\n\
             [store.cosmos]\nendpoint = \"{}\"\ndatabase = \"{}\"\nemulator = true\nshards = 8\n\
             credential = {{ key = \"{}\" }}\n\
             [worker]\nshutdown_grace_seconds = {shutdown_grace_s}\n\
             max_deliveries = {max_deliveries}\n[serve]\nlisten = \"127.0.0.1:0\"\n{tables}\n\
             [[deployments]]\nname = \"sim\"\nendpoint = \"http://{}/v1\"\n\
             concurrency = {concurrency}\n{tpm}",
            broker::JOBS,
            broker.connection_string(),
            host.endpoint(),
            settings.database,
            host.key(),
            simulator.addr()
        );
        place.write("promptmill.toml", text).write("in.jsonl", chats(jobs));
        let init = place.run(&["init"]);
        assert_eq!(init.code, Some(0), "{}", init.err);
        if setup.enqueues {
            let enqueued = place.run(&["enqueue", "in.jsonl", "--batch", "night"]);
            assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
        }
        let store = CosmosStore::connect(&settings).await.unwrap();
        Self { simulator, broker, host, place, jobs, started, store }
    }

    pub fn worker(&self) -> Running {
        self.place.spawn(&["work", "--drain"])
    }

    pub fn workers(&self) -> Vec<Running> {
        (0..WORKERS).map(|_| self.worker()).collect()
    }

    /// Waits until this part of the jobs was called for.
    pub async fn until_called(&self, part: f64) {
        let calls = (self.jobs as f64 * part) as u64;
        until("calls are made", || self.simulator.ledger().prompts >= calls).await;
    }

    /// The simulator's books, a line a prompt.
    pub async fn ledger(&self) -> String {
        let url = format!("http://{}/ledger?prompts=true", self.simulator.addr());
        let client = promptmill::http_client::builder().no_proxy().build().unwrap();
        client.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Calls that arrived so far, by prompt.
    pub async fn arrived(&self) -> HashMap<String, u64> {
        let text = self.ledger().await;
        let line = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["prompt"].as_str().unwrap().to_owned(), line["arrived"].as_u64().unwrap())
        };
        text.lines().map(line).collect()
    }

    /// Prompts whose outcome is stored, with how often they had been called for by now.
    pub async fn stored(&self) -> HashMap<String, u64> {
        let batch: BatchId = "night".parse().unwrap();
        let outcomes = self.store.outcomes(&batch, SortOrder::AsStored).await.unwrap();
        let outcomes: Vec<_> = outcomes.try_collect().await.unwrap();
        let arrived = self.arrived().await;
        let prompts = outcomes.into_iter().map(|outcome| format!("prompt {}", outcome.position));
        let times = |prompt: &String| arrived.get(prompt).copied().unwrap_or(0);
        prompts.map(|prompt| (prompt.clone(), times(&prompt))).collect()
    }

    /// Waits until all workers found the queue empty.
    pub async fn drain(&self, workers: Vec<Running>) -> Vec<Ended> {
        let mut ends = Vec::new();
        for mut worker in workers {
            until("a worker drains", || !worker.is_running()).await;
            let ended = worker.wait();
            assert!(matches!(ended.code, Some(0 | 1)), "{:?} {}", ended.code, ended.err);
            ends.push(ended);
        }
        ends
    }

    /// Every job has one outcome, the batch says so, and the dead letters are those that it tells.
    pub fn is_complete(&self) {
        let results = self.place.run(&["results", "night", "--out", "o", "--errors", "e"]);
        assert!(matches!(results.code, Some(0 | 1)), "{}", results.err);
        let ids = [self.place.ids("o"), self.place.ids("e")].concat();
        assert_eq!(ids.len(), self.jobs, "nothing is lost, nothing is there twice");
        assert_eq!(ids.into_iter().collect::<HashSet<_>>().len(), self.jobs);
        let status = self.place.run(&["status", "night", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
        let (batch, queue) = (&status["batches"][0], &status["queue"]);
        assert_eq!((&batch["state"], &batch["jobs"]), (&"done".into(), &self.jobs.into()));
        assert_eq!(queue["active"], 0, "{status}");
        let dead = batch["endings"]["dead"].as_u64().unwrap_or(0);
        assert_eq!(queue["dead_letters"], dead, "{status}");
        assert_eq!(self.simulator.ledger().prompts, self.jobs as u64);
    }

    /// Billed calls beyond the first of each prompt, and those of which the simulator lost the
    /// answer after it was billed.
    pub fn paid_again(&self) -> (u64, u64) {
        let ledger = self.simulator.ledger();
        let lost = ledger.faults.reset_after + ledger.faults.truncate + ledger.faults.hang;
        (ledger.billed_more_than_once.excess_requests, lost)
    }
}

pub async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    let waiting = async {
        while !happened() {
            tick.tick().await;
        }
    };
    assert!(tokio::time::timeout(LONG, waiting).await.is_ok(), "did not happen: {what}");
}
