//! What every queue promises, run on every backend by `tests/queue.rs`.
//!
//! Each function gets a fresh, empty queue whose locks last [`LOCK`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use promptmill::queue::{DeadLetterReason, Queue};

use super::jobs::{Prover, job};

pub const LOCK: Duration = Duration::from_millis(1_500);

/// Longer than any wait that can be right.
const LONG: Duration = Duration::from_secs(15);
const AT_ONCE: Duration = Duration::ZERO;

pub async fn a_job_comes_out_as_it_went_in(queue: Arc<dyn Queue>) {
    let mut sent = job("b", "a");
    sent.position = 41;
    sent.deadline = Some("2030-01-01T00:00:00Z".parse().unwrap());
    sent.look_up = true;
    queue.send(vec![sent.clone()]).await.unwrap();
    let received = queue.receive(10, LONG).await.unwrap();
    assert_eq!(received.len(), 1);
    assert_eq!(received[0].job, sent);
    assert_eq!(received[0].count, 1);
}

pub async fn a_locked_job_is_hidden_until_it_is_completed(queue: Arc<dyn Queue>) {
    let prover = Prover::new();
    queue.send(vec![job("b", "a")]).await.unwrap();
    let delivery = queue.receive(10, LONG).await.unwrap().remove(0);
    assert!(queue.receive(10, AT_ONCE).await.unwrap().is_empty(), "it is locked");
    let proof = prover.prove(&delivery.job).await;
    queue.settle(vec![delivery.complete(proof)]).await.unwrap();
    assert!(queue.receive(10, LOCK * 2).await.unwrap().is_empty(), "it is gone for good");
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
}

pub async fn an_expired_lock_brings_the_job_back_with_a_higher_count(queue: Arc<dyn Queue>) {
    let prover = Prover::new();
    queue.send(vec![job("b", "a")]).await.unwrap();
    let first = queue.receive(10, LONG).await.unwrap().remove(0);
    let second = queue.receive(10, LONG).await.unwrap().remove(0);
    assert_eq!((first.job.id, second.count), (second.job.id, 2));
    assert_ne!(first.lock, second.lock);
    assert_eq!(queue.renew(&[first.lock]).await.unwrap(), [None], "the old lock is lost");
    let proof = prover.prove(&first.job).await;
    queue.settle(vec![first.complete(proof)]).await.unwrap();
    let renewed = queue.renew(&[second.lock]).await.unwrap();
    assert!(renewed[0].is_some(), "settling with a lost lock takes nothing from the new holder");
}

pub async fn a_renewed_lock_outlives_its_first_expiry(queue: Arc<dyn Queue>) {
    queue.send(vec![job("b", "a")]).await.unwrap();
    let delivery = queue.receive(10, LONG).await.unwrap().remove(0);
    let end = tokio::time::Instant::now() + LOCK * 2;
    while tokio::time::Instant::now() < end {
        let renewed = queue.renew(&[delivery.lock]).await.unwrap();
        assert!(renewed[0].unwrap() > Timestamp::now());
        assert!(queue.receive(10, LOCK / 3).await.unwrap().is_empty());
    }
}

pub async fn an_abandoned_job_comes_again_at_once(queue: Arc<dyn Queue>) {
    queue.send(vec![job("b", "a")]).await.unwrap();
    let delivery = queue.receive(10, LONG).await.unwrap().remove(0);
    queue.abandon(&[delivery.lock]).await.unwrap();
    let again = queue.receive(10, LOCK / 2).await.unwrap();
    assert_eq!(again[0].job.id, delivery.job.id);
}

pub async fn a_dead_letter_is_kept_with_its_reason(queue: Arc<dyn Queue>) {
    let prover = Prover::new();
    queue.send(vec![job("b", "a")]).await.unwrap();
    let delivery = queue.receive(10, LONG).await.unwrap().remove(0);
    let id = delivery.job.id;
    let proof = prover.prove(&delivery.job).await;
    let reason = DeadLetterReason {
        reason: "RetriesExhausted".into(),
        description: "8 tries, the last one ended with http_500: 障害".into(),
    };
    queue.settle(vec![delivery.dead_letter(proof, reason.clone())]).await.unwrap();
    let letters = queue.dead_letters(10).await.unwrap();
    assert_eq!((letters.len(), letters[0].job_id), (1, Some(id)));
    assert_eq!(letters[0].reason, reason);
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.pending(), depth.dead_letters), (0, 1));
}

pub async fn a_job_that_waits_is_not_added_twice(queue: Arc<dyn Queue>) {
    queue.send(vec![job("b", "a"), job("b", "b")]).await.unwrap();
    queue.send(vec![job("b", "b"), job("b", "c")]).await.unwrap();
    let mut ids = Vec::new();
    while let Some(delivery) = queue.receive(1, LOCK / 4).await.unwrap().pop() {
        ids.push(delivery.job.custom_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, ["a", "b", "c"]);
}

pub async fn a_scheduled_job_is_hidden_until_its_time(queue: Arc<dyn Queue>) {
    let mut later = job("b", "later");
    let due = Timestamp::now() + Duration::from_millis(1_200);
    later.not_before = Some(due);
    queue.send(vec![later]).await.unwrap();
    assert!(queue.receive(10, AT_ONCE).await.unwrap().is_empty());
    assert_eq!(queue.depth().await.unwrap().scheduled, 1);
    let received = queue.receive(10, LONG).await.unwrap();
    assert_eq!(received[0].job.custom_id, "later");
    assert!(Timestamp::now() >= due);
}

pub async fn many_receivers_share_and_never_overlap(queue: Arc<dyn Queue>) {
    let jobs: Vec<_> = (0..400).map(|n| job("b", &n.to_string())).collect();
    queue.send(jobs).await.unwrap();
    let receivers = (0..4).map(|_| {
        let queue = queue.clone();
        tokio::spawn(async move {
            let mut ids = Vec::new();
            loop {
                let received = queue.receive(7, AT_ONCE).await.unwrap();
                if received.is_empty() {
                    return ids;
                }
                ids.extend(received.iter().map(|delivery| delivery.job.id));
            }
        })
    });
    let mut all = Vec::new();
    for receiver in receivers.collect::<Vec<_>>() {
        all.extend(receiver.await.unwrap());
    }
    assert_eq!(all.len(), 400);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 400);
}

pub async fn receive_wakes_for_a_job_that_comes_later(queue: Arc<dyn Queue>) {
    let waiting = queue.clone();
    let receiver = tokio::spawn(async move { waiting.receive(1, LONG).await.unwrap() });
    tokio::task::yield_now().await;
    queue.send(vec![job("b", "a")]).await.unwrap();
    let received = tokio::time::timeout(LONG, receiver).await.unwrap().unwrap();
    assert_eq!(received.len(), 1);
}

pub async fn empty_batches_do_nothing(queue: Arc<dyn Queue>) {
    queue.send(Vec::new()).await.unwrap();
    queue.settle(Vec::new()).await.unwrap();
    queue.abandon(&[]).await.unwrap();
    assert!(queue.renew(&[]).await.unwrap().is_empty());
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
}
