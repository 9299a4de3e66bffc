//! Jobs that come again: put off by the worker, or worked anew after they were dead letters.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use promptmill::intake::dead_letters::{self, ResubmitCounts};
use promptmill::job::{Amendment, BatchId};
use promptmill::outcome::OutcomeStatus;
use promptmill::queue::Queue;
use promptmill::queue::local::LocalQueue;
use promptmill::simulator::{FaultRates, SimulatedLatency, Simulator, SimulatorSettings};
use promptmill::sqlite::Database;
use promptmill::store::local::LocalStore;
use promptmill::store::{Batch, BatchSenders, BatchState, BatchTotals, SortOrder, Store};
use service_bus_broker::{Broker, Loss};
use support::broker::{self, QueueSettings};
use support::jobs::job;
use support::pipeline::{Backends, LONG, drain, simulator, worker};

const LOCK: Duration = Duration::from_secs(2);

fn local() -> Backends {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(dir.path()).unwrap();
    let queue = Arc::new(LocalQueue::new(database.clone(), LOCK));
    Backends { queue, store: Arc::new(LocalStore::new(database)), alive: Box::new(dir) }
}

async fn azure(queue: QueueSettings) -> (Backends, Broker) {
    let broker = broker::start(QueueSettings { lock: LOCK, ..queue }).await;
    let store = cosmos_support::store(cosmos_support::shared_host()).await;
    let queue = Arc::new(broker::queue(&broker));
    (Backends { queue, store: Arc::new(store), alive: Box::new(()) }, broker)
}

fn batch() -> BatchId {
    "b".parse().unwrap()
}

async fn totals(on: &Backends) -> BatchTotals {
    on.store.totals(&batch()).await.unwrap()
}

async fn resubmit_all(on: &Backends) -> ResubmitCounts {
    amend_all(on, &Amendment::default()).await
}

async fn amend_all(on: &Backends, amendment: &Amendment) -> ResubmitCounts {
    let (queue, store) = (on.queue.as_ref(), on.store.as_ref());
    dead_letters::resubmit(|_| true, amendment, queue, store).await.unwrap()
}

async fn broken() -> Simulator {
    simulator(FaultRates { rate_503: 1.0, ..FaultRates::default() }).await
}

async fn well() -> Simulator {
    simulator(FaultRates::default()).await
}

/// Works one job that always fails, every wait spent in the queue, until it is a dead letter.
async fn work_to_death(on: &Backends) {
    let document = Batch {
        id: batch(),
        state: BatchState::Done,
        reason: None,
        jobs: 1,
        prompt_tokens: 8,
        inputs: Vec::new(),
        senders: BatchSenders::One,
        created_at: Timestamp::now(),
    };
    on.store.put_batch(&document).await.unwrap();
    on.queue.send(vec![job("b", "a")]).await.unwrap();
    let service = broken().await;
    let mut worker = worker(on, &service);
    worker.settings.defer_from = Duration::ZERO;
    drain(worker).await;
    assert_eq!(service.ledger().requests, 3, "tries are counted over all hand-outs");
}

async fn a_job_dies_after_its_tries_and_lives_again(on: Backends) {
    work_to_death(&on).await;
    let letters = on.queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(letters.len(), 1);
    let description = &letters[0].reason.description;
    let history = letters[0].job().unwrap().history;
    assert_eq!((history.attempts, history.deferred), (2, 2));
    let error = history.last_error.unwrap();
    assert_eq!(*description, format!("3 attempts, the last one ended with {error}"));
    assert_eq!((totals(&on).await.of(OutcomeStatus::Dead), totals(&on).await.attempts), (1, 3));

    let amendment = Amendment { model: Some("another".to_owned()), max_tokens: Some(1) };
    let again = amend_all(&on, &amendment).await;
    assert_eq!(again, ResubmitCounts { jobs: 1, ..ResubmitCounts::default() });
    let reopened = on.store.batch(&batch()).await.unwrap().unwrap();
    assert_eq!((reopened.state, totals(&on).await.ended()), (BatchState::Running, 0));
    let service = well().await;
    drain(worker(&on, &service)).await;
    assert_eq!(service.ledger().requests, 1);
    let outcomes = on.store.outcomes(&batch(), SortOrder::AsStored).await.unwrap();
    let outcomes: Vec<_> = outcomes.try_collect().await.unwrap();
    let answer: serde_json::Value =
        serde_json::from_slice(outcomes[0].body.as_ref().unwrap()).unwrap();
    assert_eq!((outcomes[0].model.as_str(), &answer["model"]), ("another", &"another".into()));
    assert_eq!(answer["usage"]["completion_tokens"], 1);
    assert_eq!(outcomes[0].digest, job("b", "a").digest(), "it is still the job that was asked");
    let totals = totals(&on).await;
    assert_eq!((totals.of(OutcomeStatus::Succeeded), totals.ended()), (1, 1));
    assert_eq!(totals.attempts, 4, "what the dead life cost was paid");
    assert_eq!(on.queue.depth().await.unwrap().dead_letters, 0);
    assert_eq!(resubmit_all(&on).await, ResubmitCounts::default());
}

async fn a_resubmission_that_broke_off_after_its_first_step_is_done_again(on: Backends) {
    work_to_death(&on).await;
    assert_eq!(on.store.reopen_dead(&batch(), &["a"]).await.unwrap(), [None]);
    assert_eq!(resubmit_all(&on).await.jobs, 1);
    drain(worker(&on, &well().await)).await;
    assert_eq!(totals(&on).await.of(OutcomeStatus::Succeeded), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_dies_and_lives_again_on_the_embedded_backends() {
    a_job_dies_after_its_tries_and_lives_again(local()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_dies_and_lives_again_on_azure() {
    let (on, _broker) = azure(broker::jobs()).await;
    a_job_dies_after_its_tries_and_lives_again(on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_off_resubmission_is_done_again_on_the_embedded_backends() {
    a_resubmission_that_broke_off_after_its_first_step_is_done_again(local()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_off_resubmission_is_done_again_on_azure() {
    let (on, _broker) = azure(broker::jobs()).await;
    a_resubmission_that_broke_off_after_its_first_step_is_done_again(on).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_outlived_its_resubmission_just_goes() {
    let (on, broker) = azure(broker::jobs()).await;
    work_to_death(&on).await;
    // The new job is sent; that the dead letter is to go gets lost.
    broker.lose_next_settlements(1, Loss::Order);
    resubmit_all(&on).await;
    drain(worker(&on, &well().await)).await;
    let before = totals(&on).await;
    assert_eq!((before.of(OutcomeStatus::Succeeded), before.ended()), (1, 1));
    broker.expire_locks(broker::JOBS);
    assert_eq!(on.queue.depth().await.unwrap().dead_letters, 1);
    assert_eq!(resubmit_all(&on).await, ResubmitCounts { known: 1, ..ResubmitCounts::default() });
    assert_eq!(totals(&on).await, before, "a job that succeeded is not worked again");
    let depth = on.queue.depth().await.unwrap();
    assert_eq!((depth.pending(), depth.dead_letters), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_messages_of_one_job_in_two_workers_end_in_one_outcome() {
    let (on, broker) = azure(broker::jobs()).await;
    on.queue.send(vec![job("b", "a")]).await.unwrap();
    let delivery = on.queue.receive(1, LONG).await.unwrap().remove(0);
    // The copy is sent; that the message is done gets lost.
    broker.lose_next_settlements(1, Loss::Order);
    let due = Timestamp::now() + Duration::from_millis(100);
    on.queue.defer(vec![delivery.defer(due, 1, Some("http_503"))]).await.unwrap();
    broker.expire_locks(broker::JOBS);
    assert_eq!(on.queue.depth().await.unwrap().pending(), 2);
    // Slow enough that both are in flight together.
    let latency = SimulatedLatency { base_ms: 500.0, ..SimulatedLatency::default() };
    let settings = SimulatorSettings { latency, ..SimulatorSettings::default() };
    let address = "127.0.0.1:0".parse().unwrap();
    let service = promptmill::simulator::start(address, settings).await.unwrap();
    tokio::join!(drain(worker(&on, &service)), drain(worker(&on, &service)));
    assert!(service.ledger().requests <= 2, "once for each message at the most");
    let totals = totals(&on).await;
    assert_eq!((totals.of(OutcomeStatus::Succeeded), totals.ended()), (1, 1));
    let depth = on.queue.depth().await.unwrap();
    assert_eq!((depth.pending(), depth.dead_letters), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_queue_itself_set_aside_is_dropped_with_an_outcome() {
    let (on, broker) = azure(QueueSettings { max_delivery_count: 1, ..broker::jobs() }).await;
    on.queue.send(vec![job("b", "a"), job("b", "b")]).await.unwrap();
    let mut received = 0;
    while received < 2 {
        received += on.queue.receive(2, LONG).await.unwrap().len();
    }
    broker.expire_locks(broker::JOBS);
    let chosen = |letter: &promptmill::queue::DeadLetter| letter.job_id == Some(job("b", "b").id);
    let (queue, store): (&dyn Queue, &dyn Store) = (on.queue.as_ref(), on.store.as_ref());
    assert_eq!(dead_letters::discard(chosen, queue, store).await.unwrap(), 1);
    let totals = totals(&on).await;
    assert_eq!((totals.of(OutcomeStatus::Dead), totals.ended()), (1, 1));
    assert_eq!(queue.depth().await.unwrap().dead_letters, 1, "the other one stays");
    assert_eq!(resubmit_all(&on).await.jobs, 1, "it has no outcome and is worked all the same");
}
