//! Every queue keeps the contract.

use std::sync::Arc;
use test_support as support;

use promptmill::queue::Queue;
use promptmill::queue::local::LocalQueue;
use promptmill::queue::service_bus::ServiceBusQueue;
use promptmill::queue::service_bus::https::HttpsQueue;
use promptmill::sqlite::Database;
use service_bus_broker::Broker;
use support::broker;
use support::contract_queue::{self as contract, LOCK};
use support::jobs::job;

/// Runs the contract on every backend. What is made beside a queue lives as long as the test.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        mod local_queue {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let (queue, _dir) = local();
                    contract::$name(Arc::new(queue)).await;
                }
            )*
        }

        mod service_bus_queue {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let (queue, _broker) = service_bus().await;
                    contract::$name(Arc::new(queue)).await;
                }
            )*
        }

        mod service_bus_over_https {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let (queue, _broker) = service_bus_over_https().await;
                    contract::$name(Arc::new(queue)).await;
                }
            )*
        }
    };
}

contract!(
    a_job_comes_out_as_it_went_in,
    a_locked_job_is_hidden_until_it_is_completed,
    an_expired_lock_brings_the_job_back_with_a_higher_count,
    a_renewed_lock_outlives_its_first_expiry,
    an_abandoned_job_comes_again_at_once,
    a_dead_letter_is_kept_with_its_reason,
    a_job_that_waits_is_not_added_twice,
    a_scheduled_job_is_hidden_until_its_time,
    many_receivers_share_and_never_overlap,
    receive_wakes_for_a_job_that_comes_later,
    a_postponed_job_comes_at_its_time_with_its_tries_and_uncounted,
    postponing_under_a_lost_lock_leaves_nothing_that_is_not_looked_up,
    dead_letters_are_listed_page_by_page,
    a_resubmitted_dead_letter_is_a_new_job_that_knows_its_past,
    only_the_chosen_dead_letters_are_taken_out,
    empty_batches_do_nothing,
);

async fn service_bus() -> (ServiceBusQueue, Broker) {
    let jobs = broker::QueueSettings { lock: LOCK, ..broker::jobs() };
    let broker = broker::start(jobs).await;
    (broker::queue(&broker), broker)
}

/// With a queue for dead jobs, and the right to see counts: without these HTTPS can't do it all.
async fn service_bus_over_https() -> (HttpsQueue, Broker) {
    let jobs = broker::QueueSettings { lock: LOCK, ..broker::jobs() };
    let broker = broker::start_for_https(jobs).await;
    (broker::https_queue(&broker), broker)
}

#[allow(clippy::unwrap_used, reason = "part of tests")]
fn local() -> (LocalQueue, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (LocalQueue::new(Database::open(dir.path()).unwrap(), LOCK), dir)
}

#[tokio::test]
async fn the_local_queue_hands_out_by_priority_and_then_in_order() {
    let (queue, _dir) = local();
    let mut jobs: Vec<_> = ["a", "b", "c"].map(|id| job("b", id)).into();
    jobs[2].priority = 5;
    queue.send(jobs).await.unwrap();
    let received = queue.receive(10, LOCK).await.unwrap();
    let ids: Vec<_> = received.iter().map(|d| d.job.custom_id.as_str()).collect();
    assert_eq!(ids, ["c", "a", "b"]);
}

#[tokio::test]
async fn one_batch_can_be_worked_alone() {
    let (queue, _dir) = local();
    queue.send(vec![job("x", "1"), job("y", "1")]).await.unwrap();
    let only = queue.clone().only_batch("y".parse().unwrap());
    assert_eq!(only.depth().await.unwrap().pending(), 1);
    let received = only.receive(10, LOCK / 4).await.unwrap();
    assert_eq!((received.len(), received[0].job.batch_id.as_str()), (1, "y"));
}

#[tokio::test]
async fn a_receive_that_nobody_waits_for_leaves_no_lock_behind() {
    let (queue, _dir) = local();
    queue.send((0..50).map(|n| job("b", &n.to_string())).collect()).await.unwrap();
    for _ in 0..20 {
        // Polled once, so that the hand-out is under way, then dropped.
        let mut receive = Box::pin(queue.receive(50, LOCK));
        let _ = futures_util::poll!(&mut receive);
    }
    // A lock left behind would keep its job away for LOCK; one that is given back comes sooner.
    let mut seen = 0;
    let deadline = tokio::time::Instant::now() + LOCK / 2;
    while seen < 50 && tokio::time::Instant::now() < deadline {
        seen += queue.receive(50, LOCK / 10).await.unwrap().len();
    }
    assert_eq!(seen, 50);
}

#[tokio::test]
async fn locks_of_a_dead_process_are_freed_at_once() {
    let (queue, _dir) = local();
    queue.send(vec![job("b", "a")]).await.unwrap();
    assert_eq!(queue.receive(1, LOCK).await.unwrap()[0].count, 1);
    queue.release_orphans().await.unwrap();
    let again = &queue.receive(1, LOCK / 4).await.unwrap()[0];
    assert!(again.job.may_have_outcome, "it may have an outcome");
    assert_eq!(again.count, 1, "it may never have been started");
}
