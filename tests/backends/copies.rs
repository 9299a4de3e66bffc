//! Jobs that are in a Service Bus queue more than once, where it does not drop duplicates: each is
//! called for once.
//!
//! Larger by hand with PROMPTMILL_COPIES_JOBS.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use fleet::{Fleet, Setup, WORKERS, size, until};

use promptmill::simulator::{SimulatedLatency, SimulatorSettings};
use test_support::broker::JOBS;
use test_support::cli::Running;
use test_support::fleet;

fn jobs() -> usize {
    size("PROMPTMILL_COPIES_JOBS", 300)
}

/// A fleet on a queue that takes a job twice, with answers slow enough that copies meet.
async fn fleet(jobs: usize) -> Fleet {
    let latency = SimulatedLatency { base_ms: 400.0, sigma: 0.5, ..SimulatedLatency::default() };
    let simulator = SimulatorSettings { latency, ..SimulatorSettings::default() };
    let setup =
        Setup { jobs, simulator, drops_duplicates: false, enqueues: false, ..Setup::default() };
    Fleet::with(setup).await
}

async fn enqueued(mut enqueuers: Vec<Running>) {
    for enqueuer in &mut enqueuers {
        until("an enqueue ends", || !enqueuer.is_running()).await;
        let ended = enqueuer.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    }
}

/// Every job has one outcome and was called for once.
fn each_was_called_once(fleet: &Fleet) {
    fleet.is_complete();
    let ledger = fleet.simulator.ledger();
    assert_eq!((ledger.requests, fleet.paid_again()), (fleet.jobs as u64, (0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn three_enqueuers_at_once_pay_for_each_job_once() {
    let fleet = fleet(jobs()).await;
    let enqueue = |_| fleet.place.spawn(&["enqueue", "in.jsonl", "--batch", "night"]);
    let enqueuers = (0..3).map(enqueue).collect();
    until("a job is in the queue", || fleet.broker.counts(JOBS).active > 0).await;
    let workers = fleet.workers();
    enqueued(enqueuers).await;
    fleet.drain(workers).await;
    each_was_called_once(&fleet);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_that_is_run_again_while_its_jobs_are_called_for_pays_nothing_again() {
    let fleet = fleet(jobs()).await;
    let enqueue = || fleet.place.spawn(&["enqueue", "in.jsonl", "--batch", "night"]);
    enqueued(vec![enqueue()]).await;
    let workers = fleet.workers();
    fleet.until_called(0.2).await;
    enqueued(vec![enqueue()]).await;
    fleet.drain(workers).await;
    each_was_called_once(&fleet);
}
