//! The worker's tasks: after a panic of any of them all end and none is left; a stop is heard while
//! the queue is away.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use promptmill::budget::BudgetLimit;
use promptmill::job::Amendment;
use promptmill::queue::local::LocalQueue;
use promptmill::queue::peek::{PeekFilter, PeekResult};
use promptmill::queue::{
    DeadLetter, DeferOrder, Delivery, LockToken, Queue, QueueDepth, QueueError, SendCounts,
    Settlement,
};
use promptmill::simulator::SimulatedLatency;
use promptmill::store::{Batch, BatchSenders, BatchState, BatchStore, BudgetStore};
use promptmill::worker::{Worker, WorkerError, WorkerExit};
use tokio_util::sync::CancellationToken;

use crate::worker::{Bench, LONG, Moody, until};

/// A queue that panics in one operation, or is away.
struct BrokenQueue {
    inner: LocalQueue,
    panics_in: &'static str,
    is_away: bool,
    refused: AtomicUsize,
}

impl BrokenQueue {
    fn panicking_in(inner: LocalQueue, panics_in: &'static str) -> Arc<Self> {
        Arc::new(Self { inner, panics_in, is_away: false, refused: AtomicUsize::new(0) })
    }

    fn away(inner: LocalQueue) -> Arc<Self> {
        Arc::new(Self { inner, panics_in: "", is_away: true, refused: AtomicUsize::new(0) })
    }

    fn enter(&self, operation: &str) -> Result<(), QueueError> {
        assert_ne!(operation, self.panics_in, "the test wants this panic");
        if self.is_away {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(QueueError::Unavailable("away".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl Queue for BrokenQueue {
    fn keeps_one_of_each(&self) -> bool {
        true
    }

    async fn send(&self, jobs: Vec<promptmill::job::Job>) -> Result<SendCounts, QueueError> {
        self.inner.send(jobs).await
    }
    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        self.enter("receive")?;
        self.inner.receive(max, wait).await
    }
    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError> {
        self.enter("renew")?;
        self.inner.renew(locks).await
    }
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError> {
        self.enter("settle")?;
        self.inner.settle(settlements).await
    }
    async fn defer(&self, orders: Vec<DeferOrder>) -> Result<(), QueueError> {
        self.enter("defer")?;
        self.inner.defer(orders).await
    }
    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        self.enter("abandon")?;
        self.inner.abandon(locks).await
    }
    async fn depth(&self) -> Result<QueueDepth, QueueError> {
        self.enter("depth")?;
        self.inner.depth().await
    }
    async fn peek(&self, filter: &PeekFilter) -> Result<PeekResult, QueueError> {
        self.inner.peek(filter).await
    }
    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        self.inner.dead_letters(from, max).await
    }
    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError> {
        self.inner.resubmit(numbers, amendment).await
    }
    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        self.inner.discard(numbers).await
    }
}

const JOBS: usize = 12;

/// A simulator and a queue with jobs, in a runtime apart from the worker's.
fn bench(lock: Duration, latency: SimulatedLatency) -> (tokio::runtime::Runtime, Bench) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bench = runtime.block_on(Bench::new(JOBS, lock, latency));
    (runtime, bench)
}

/// Runs a worker alone in a runtime; asserts that it ends by a panic and leaves no task behind.
fn ends_whole_after_a_panic(worker: Worker, case: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ended = tokio::time::timeout(LONG, worker.run(CancellationToken::new())).await;
        let error = ended.unwrap_or_else(|_| panic!("{case}: it does not end")).unwrap_err();
        assert!(matches!(error, WorkerError::Panicked), "{case}: {error}");
    });
    let metrics = runtime.metrics();
    // Connections that a client has just dropped end by themselves.
    runtime.block_on(until(|| metrics.num_alive_tasks() == 0));
}

#[test]
fn after_a_panic_in_the_queue_no_task_of_the_worker_goes_on() {
    // Calls that outlast half of a lock, so that locks are renewed.
    let latency = SimulatedLatency { base_ms: 1_200.0, per_token_ms: 0.0, sigma: 0.0 };
    for operation in ["receive", "renew", "settle"] {
        let (_runtime, bench) = bench(Duration::from_secs(1), latency);
        let mut worker = bench.worker(Arc::new(bench.store.clone()), 4, 8);
        worker.queue = BrokenQueue::panicking_in(bench.queue.clone(), operation);
        ends_whole_after_a_panic(worker, operation);
    }
}

#[test]
fn after_a_panic_of_the_deferrer_no_task_of_the_worker_goes_on() {
    let (runtime, bench) = bench(LONG, SimulatedLatency::default());
    runtime.block_on(bench.store.put_batch(&batch(BatchState::Paused))).unwrap();
    let mut worker = bench.worker(Arc::new(bench.store.clone()), 4, 8);
    worker.queue = BrokenQueue::panicking_in(bench.queue.clone(), "defer");
    ends_whole_after_a_panic(worker, "defer");
}

#[test]
fn after_a_panic_in_the_store_no_task_of_the_worker_goes_on() {
    for operation in ["record", "batch", "claim", "put_heartbeat"] {
        let (runtime, bench) = bench(LONG, SimulatedLatency::default());
        runtime.block_on(async {
            let limit = BudgetLimit::tokens(1 << 30).unwrap();
            bench.store.put_batch(&batch(BatchState::Running)).await.unwrap();
            bench.store.limit_budget(&"b".parse().unwrap(), &limit).await.unwrap();
        });
        let store = Moody::panicking_in(bench.store.clone(), operation);
        let mut worker = bench.worker(store, 4, 8);
        worker.settings.shared = operation == "put_heartbeat";
        worker.settings.drain = None;
        ends_whole_after_a_panic(worker, operation);
        let pending = runtime.block_on(bench.queue.depth()).unwrap().pending();
        // The last ones may be recorded and not settled.
        let known = pending + runtime.block_on(bench.succeeded());
        assert!(known >= JOBS as u64, "{operation}: {known} jobs wait or have their outcome");
    }
}

fn batch(state: BatchState) -> Batch {
    Batch {
        id: "b".parse().unwrap(),
        state,
        reason: None,
        jobs: JOBS as u64,
        prompt_tokens: 0,
        inputs: Vec::new(),
        senders: BatchSenders::One,
        created_at: Timestamp::now(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_during_the_pause_after_a_queue_error_ends_the_worker_at_once() {
    let bench = Bench::new(0, LONG, SimulatedLatency::default()).await;
    let mut worker = bench.worker(Arc::new(bench.store.clone()), 4, 8);
    let queue = BrokenQueue::away(bench.queue.clone());
    worker.queue = queue.clone();
    let stop = CancellationToken::new();
    let running = tokio::spawn(worker.run(stop.clone()));
    // By now its pauses are drawn from a minute.
    while queue.refused.load(Ordering::SeqCst) < 12 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stopped_at = tokio::time::Instant::now();
    stop.cancel();
    assert_eq!(running.await.unwrap().unwrap(), WorkerExit::Stopped);
    assert_eq!(stopped_at.elapsed(), Duration::ZERO);
}
