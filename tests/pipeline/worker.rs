//! The pipeline when what it stands on fails: nothing is lost, nothing is called in vain.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use test_support as support;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use promptmill::admission::PoolMember;
use promptmill::admission::deployment::DeploymentLimits;
use promptmill::budget::{Budget, BudgetClaim, BudgetLimit};
use promptmill::heartbeat::Heartbeat;
use promptmill::job::{BatchId, JobId};
use promptmill::model::endpoint::{Endpoint, EndpointConfig};
use promptmill::model::{CallTimeouts, ModelClient};
use promptmill::outcome::{Outcome, OutcomeStatus};
use promptmill::queue::Queue;
use promptmill::queue::local::LocalQueue;
use promptmill::simulator::{self, SimulatedLatency, Simulator};
use promptmill::sqlite::Database;
use promptmill::store::local::LocalStore;
use promptmill::store::{
    Batch, BatchSenders, BatchState, BatchStore, BatchTotals, BudgetStore, KvRecord, KvStore,
    OutcomeReader, OutcomeStore, OutcomeSummary, PayloadStore, Recorded, RunningTotals, SortOrder,
    Store, StoreError, StoreMeter, WorkerRegistry,
};
use promptmill::telemetry::WorkerProgress;
use promptmill::worker::{
    DEFER_FROM, Worker, WorkerExit, WorkerSettings, WorkerTarget, all_queued,
};
use support::jobs::job;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) struct Bench {
    simulator: Simulator,
    pub(crate) queue: LocalQueue,
    pub(crate) store: LocalStore,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) async fn new(jobs: usize, lock: Duration, latency: SimulatedLatency) -> Self {
        let settings =
            simulator::SimulatorSettings { latency, ..simulator::SimulatorSettings::default() };
        let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let database = Database::open(dir.path()).unwrap();
        let queue = LocalQueue::new(database.clone(), lock);
        queue.send((0..jobs).map(|n| job("b", &format!("job-{n}"))).collect()).await.unwrap();
        Self { simulator, queue, store: LocalStore::new(database), _dir: dir }
    }

    pub(crate) fn worker(
        &self,
        store: Arc<dyn Store>,
        concurrency: usize,
        max_held: usize,
    ) -> Worker {
        let url = format!("http://{}/v1", self.simulator.addr());
        let endpoint = Endpoint::new(EndpointConfig { url, ..EndpointConfig::default() }).unwrap();
        Worker {
            queue: Arc::new(self.queue.clone()),
            store,
            targets: vec![WorkerTarget {
                member: PoolMember {
                    name: "simulator".into(),
                    limits: DeploymentLimits { concurrency, ..DeploymentLimits::default() },
                    ..PoolMember::default()
                },
                client: ModelClient::new(endpoint, CallTimeouts::whole(LONG)).unwrap(),
            }],
            settings: WorkerSettings {
                drain: Some(all_queued()),
                only_batch: None,
                prices: None,
                shared: false,
                max_held,
                max_failure_rate: 1.0,
                max_attempts: 3,
                max_deliveries: 5,
                defer_from: DEFER_FROM,
                shutdown_grace: Duration::from_secs(1),
                unreachable_after: LONG,
                spill_after: LONG,
            },
            progress: Arc::<WorkerProgress>::default(),
        }
    }

    pub(crate) async fn succeeded(&self) -> u64 {
        self.store.totals(&"b".parse().unwrap()).await.unwrap().of(OutcomeStatus::Succeeded)
    }
}

/// A store that can't be reached while it is told so, or panics in one operation.
pub(crate) struct Moody {
    inner: LocalStore,
    away: AtomicBool,
    refused: AtomicUsize,
    panics_in: &'static str,
}

impl Moody {
    fn new(inner: LocalStore) -> Arc<Self> {
        Arc::new(Self {
            inner,
            away: AtomicBool::new(true),
            refused: AtomicUsize::new(0),
            panics_in: "",
        })
    }

    pub(crate) fn panicking_in(inner: LocalStore, panics_in: &'static str) -> Arc<Self> {
        Arc::new(Self {
            inner,
            away: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            panics_in,
        })
    }

    fn enter(&self, operation: &str) {
        assert_ne!(operation, self.panics_in, "the test wants this panic");
    }
}

impl StoreMeter for Moody {}

#[async_trait]
impl OutcomeStore for Moody {
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError> {
        self.enter("record");
        if self.away.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(StoreError::Unavailable("away".into()));
        }
        self.inner.record(outcomes).await
    }
    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        self.inner.look_up(batch, custom_ids).await
    }
    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        self.inner.reopen_dead(batch, custom_ids).await
    }
}

#[async_trait]
impl OutcomeReader for Moody {
    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError> {
        self.inner.outcome(batch, custom_id).await
    }
    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError> {
        self.inner.outcome_by_id(batch, job).await
    }
    async fn outcomes(
        &self,
        batch: &BatchId,
        order: SortOrder,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        self.inner.outcomes(batch, order).await
    }
    async fn outcome_summaries(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<OutcomeSummary, StoreError>>, StoreError> {
        self.inner.outcome_summaries(batch).await
    }
    async fn totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        self.inner.totals(batch).await
    }
    async fn running_totals(
        &self,
        batch: &BatchId,
        since: Timestamp,
    ) -> Result<RunningTotals, StoreError> {
        self.inner.running_totals(batch, since).await
    }
}

#[async_trait]
impl BatchStore for Moody {
    async fn create_batch(&self, batch: &Batch) -> Result<bool, StoreError> {
        self.inner.create_batch(batch).await
    }
    async fn add_senders(&self, id: &BatchId, senders: BatchSenders) -> Result<(), StoreError> {
        self.inner.add_senders(id, senders).await
    }
    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        self.inner.put_batch(batch).await
    }
    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError> {
        self.inner.change_state(id, from, to, reason).await
    }
    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError> {
        self.enter("batch");
        self.inner.batch(id).await
    }
    async fn batches(&self) -> Result<Vec<Batch>, StoreError> {
        self.inner.batches().await
    }
}

#[async_trait]
impl BudgetStore for Moody {
    async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &BudgetLimit,
    ) -> Result<Budget, StoreError> {
        self.inner.limit_budget(batch, limit).await
    }
    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        self.inner.budget(batch).await
    }
    async fn claim(
        &self,
        batch: &BatchId,
        claim: &BudgetClaim,
    ) -> Result<Option<(bool, Budget)>, StoreError> {
        self.enter("claim");
        self.inner.claim(batch, claim).await
    }
}

#[async_trait]
impl PayloadStore for Moody {
    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put_payload(name, bytes).await
    }
    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_payload(name).await
    }
    async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete_payload(name).await
    }
}

#[async_trait]
impl WorkerRegistry for Moody {
    async fn put_heartbeat(&self, word: &Heartbeat) -> Result<(), StoreError> {
        self.enter("put_heartbeat");
        self.inner.put_heartbeat(word).await
    }
    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError> {
        self.inner.heartbeats().await
    }
    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError> {
        self.inner.delete_heartbeat(instance).await
    }
}

#[async_trait]
impl KvStore for Moody {
    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError> {
        self.inner.put_kv(note, was).await
    }
    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        self.inner.get_kv(kind, id).await
    }
    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError> {
        self.inner.list_kv(kind).await
    }
    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        self.inner.delete_kv(kind, id).await
    }
}

pub(crate) async fn until(mut happened: impl FnMut() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_away_calls_stop_and_afterwards_nothing_is_missing() {
    const HELD: u64 = 32;
    // Locks far shorter than the outage: they must be kept all the time.
    let bench = Bench::new(200, Duration::from_secs(2), SimulatedLatency::default()).await;
    let store = Moody::new(bench.store.clone());
    let worker = bench.worker(store.clone(), 8, HELD as usize);
    let running = tokio::spawn(worker.run(CancellationToken::new()));
    until(|| store.refused.load(Ordering::SeqCst) >= 4).await;
    assert!(bench.simulator.ledger().requests <= HELD, "no call without room for its outcome");
    store.away.store(false, Ordering::SeqCst);
    assert_eq!(running.await.unwrap().unwrap(), WorkerExit::Drained);
    assert_eq!(bench.succeeded().await, 200);
    assert_eq!(bench.simulator.ledger().requests, 200, "nothing was called twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_the_store_is_away_ends_and_says_what_it_means() {
    let bench = Bench::new(20, LONG, SimulatedLatency::default()).await;
    let store = Moody::new(bench.store.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(bench.worker(store.clone(), 4, 16).run(stop.clone()));
    until(|| store.refused.load(Ordering::SeqCst) >= 1).await;
    stop.cancel();
    let error = tokio::time::timeout(LONG, running).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("the last outcomes are not recorded"), "{error}");
    assert_eq!(bench.queue.depth().await.unwrap().pending(), 20, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_outlive_calls_that_take_longer_than_they_last() {
    let latency = SimulatedLatency { base_ms: 2_500.0, per_token_ms: 0.0, sigma: 0.0 };
    let bench = Bench::new(12, Duration::from_secs(1), latency).await;
    let first = bench.worker(Arc::new(bench.store.clone()), 4, 16);
    let second = bench.worker(Arc::new(bench.store.clone()), 4, 16);
    let stop = CancellationToken::new();
    let (first, second) = tokio::join!(first.run(stop.clone()), second.run(stop));
    assert_eq!((first.unwrap(), second.unwrap()), (WorkerExit::Drained, WorkerExit::Drained));
    assert_eq!(bench.succeeded().await, 12);
    assert_eq!(bench.simulator.ledger().requests, 12, "a lock that ran out was called for twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_more_is_to_come_an_empty_queue_is_not_the_end() {
    let bench = Bench::new(5, LONG, SimulatedLatency::default()).await;
    let mut worker = bench.worker(Arc::new(bench.store.clone()), 4, 16);
    let (fed, progress) = (CancellationToken::new(), worker.progress.clone());
    worker.settings.drain = Some(fed.clone());
    let running = tokio::spawn(worker.run(CancellationToken::new()));
    until(|| progress.ended() == 5 && progress.held.load(Ordering::Relaxed) == 0).await;
    bench.queue.send((5..10).map(|n| job("b", &format!("job-{n}"))).collect()).await.unwrap();
    until(|| progress.ended() == 10).await;
    assert!(!running.is_finished());
    fed.cancel();
    assert_eq!(running.await.unwrap().unwrap(), WorkerExit::Drained);
    assert_eq!(bench.succeeded().await, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_is_handed_out_too_often_becomes_a_dead_letter() {
    let bench = Bench::new(1, Duration::from_millis(50), SimulatedLatency::default()).await;
    for _ in 0..4 {
        // Its holders die: the lock runs out each time.
        assert_eq!(bench.queue.receive(1, LONG).await.unwrap().len(), 1);
    }
    let worker = bench.worker(Arc::new(bench.store.clone()), 1, 4);
    assert_eq!(worker.run(CancellationToken::new()).await.unwrap(), WorkerExit::Drained);
    let letters = bench.queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(letters[0].reason.reason, "MaxDeliveryCountExceeded");
    assert_eq!(bench.simulator.ledger().requests, 0);
    let totals = bench.store.totals(&"b".parse().unwrap()).await.unwrap();
    assert_eq!(totals.of(OutcomeStatus::Dead), 1, "it has its one outcome");
}
