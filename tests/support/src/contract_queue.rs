//! What every queue promises, run on every backend by `tests/backends/queue.rs`.
//!
//! Each function gets a fresh, empty queue whose locks last [`LOCK`].

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use promptmill::job::{Amendment, JobHistory};
use promptmill::queue::{DeadLetter, DeadLetterReason, Queue};

use crate::jobs::{Prover, job};

pub const LOCK: Duration = Duration::from_millis(1_500);

/// Longer than any wait that can be right.
const LONG: Duration = Duration::from_secs(15);
const AT_ONCE: Duration = Duration::ZERO;

pub async fn a_job_comes_out_as_it_went_in(queue: Arc<dyn Queue>) {
    let mut sent = job("b", "a");
    sent.position = 41;
    sent.deadline = Some("2030-01-01T00:00:00Z".parse().unwrap());
    sent.may_have_outcome = true;
    let mut aside = job("b", "aside");
    aside.offload_body();
    aside.history.attempts = 2;
    aside.history.last_error = Some("http_503: 混雑".into());
    aside.history.first_enqueued = Some("2026-11-23T16:00:00.5Z".parse().unwrap());
    for mut sent in [sent, aside] {
        queue.send(vec![sent.clone()]).await.unwrap();
        let received = queue.receive(10, LONG).await.unwrap();
        assert_eq!(received.len(), 1);
        // What was not said is known afterwards.
        let enqueued = received[0].job.history.first_enqueued;
        sent.history.first_enqueued = sent.history.first_enqueued.or(enqueued);
        assert_eq!((&received[0].job, enqueued.is_some()), (&sent, true));
        assert_eq!(received[0].count, 1);
    }
}

/// A job that waits for its next try does so in the queue.
pub async fn a_postponed_job_comes_at_its_time_with_its_tries_and_uncounted(queue: Arc<dyn Queue>) {
    let prover = Prover::new();
    queue.send(vec![job("b", "a")]).await.unwrap();
    let mut delivery = queue.receive(10, LONG).await.unwrap().remove(0);
    let enqueued = delivery.job.history.first_enqueued;
    for tries in 1..=3 {
        let due = Timestamp::now() + Duration::from_millis(700);
        let error = format!("http_503: try {tries}");
        queue.defer(vec![delivery.defer(due, tries, Some(&error))]).await.unwrap();
        assert!(queue.receive(10, AT_ONCE).await.unwrap().is_empty(), "it is not due");
        assert_eq!(queue.depth().await.unwrap().scheduled, 1);
        delivery = queue.receive(10, LONG).await.unwrap().remove(0);
        assert!(Timestamp::now() >= due);
        assert_eq!((delivery.count, delivery.job.id), (1, job("b", "a").id));
        let history = &delivery.job.history;
        assert_eq!((history.attempts, history.deferred, history.resubmitted), (tries, tries, 0));
        assert_eq!((&history.last_error, history.first_enqueued), (&Some(error), enqueued));
    }
    let proof = prover.prove(&delivery.job).await;
    queue.settle(vec![delivery.complete(proof)]).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().pending(), 0, "there was one message at a time");
}

/// Whoever holds the job by then must not be disturbed, and both know of each other.
pub async fn postponing_under_a_lost_lock_leaves_nothing_that_is_not_looked_up(
    queue: Arc<dyn Queue>,
) {
    queue.send(vec![job("b", "a")]).await.unwrap();
    let lost = queue.receive(10, LONG).await.unwrap().remove(0);
    let second = queue.receive(10, LONG).await.unwrap().remove(0);
    assert_eq!(second.count, 2);
    let due = Timestamp::now() + Duration::from_millis(100);
    queue.defer(vec![lost.defer(due, 1, None)]).await.unwrap();
    assert!(queue.renew(&[second.lock]).await.unwrap()[0].is_some(), "it is still held");
    for copy in queue.receive(10, LOCK / 2).await.unwrap() {
        assert!(copy.job.may_have_outcome, "a copy beside a held job is looked up");
    }
}

/// Sends jobs with these names and buries them all; returns their dead letters.
async fn bury(queue: &Arc<dyn Queue>, names: &[&str]) -> Vec<DeadLetter> {
    let prover = Prover::new();
    for name in names {
        queue.send(vec![job("b", name)]).await.unwrap();
        let delivery = queue.receive(1, LONG).await.unwrap().remove(0);
        let proof = prover.prove(&delivery.job).await;
        let reason = DeadLetterReason { reason: "R".into(), description: (*name).into() };
        queue.settle(vec![delivery.dead_letter(proof, reason)]).await.unwrap();
    }
    all_dead_letters(queue, names.len()).await
}

/// By pages of two, as soon as there are so many.
async fn all_dead_letters(queue: &Arc<dyn Queue>, count: usize) -> Vec<DeadLetter> {
    let deadline = tokio::time::Instant::now() + LONG;
    loop {
        let (mut letters, mut from) = (Vec::<DeadLetter>::new(), 0);
        loop {
            let page = queue.dead_letters(from, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            from = last.number + 1;
            letters.extend(page);
        }
        if letters.len() == count {
            return letters;
        }
        assert!(tokio::time::Instant::now() < deadline, "{} dead letters", letters.len());
        tokio::task::yield_now().await;
    }
}

fn names(letters: &[DeadLetter]) -> Vec<String> {
    letters.iter().map(|letter| letter.job().unwrap().custom_id).collect()
}

pub async fn dead_letters_are_listed_page_by_page(queue: Arc<dyn Queue>) {
    let letters = bury(&queue, &["a", "b", "c", "d", "e"]).await;
    assert_eq!(names(&letters), ["a", "b", "c", "d", "e"]);
    assert!(letters.windows(2).all(|pair| pair[0].number < pair[1].number));
}

pub async fn a_resubmitted_dead_letter_is_a_new_job_that_knows_its_past(queue: Arc<dyn Queue>) {
    let prover = Prover::new();
    queue.send(vec![job("b", "a")]).await.unwrap();
    let mut delivery = queue.receive(1, LONG).await.unwrap().remove(0);
    let enqueued = delivery.job.history.first_enqueued;
    for times in 1..=2 {
        // With the same tries each time: what waits for the second time is no duplicate of the first.
        let due = Timestamp::now() + Duration::from_millis(50);
        queue.defer(vec![delivery.defer(due, 1, Some("http_500"))]).await.unwrap();
        delivery = queue.receive(1, LONG).await.unwrap().remove(0);
        let proof = prover.prove(&delivery.job).await;
        let reason = DeadLetterReason { reason: "R".into(), description: "D".into() };
        queue.settle(vec![delivery.dead_letter(proof, reason)]).await.unwrap();
        let letters = all_dead_letters(&queue, 1).await;
        let numbers = [letters[0].number];
        assert_eq!(queue.resubmit(&numbers, &Amendment::default()).await.unwrap(), numbers);
        assert!(
            queue.resubmit(&numbers, &Amendment::default()).await.unwrap().is_empty(),
            "it is there no more"
        );
        delivery = queue.receive(1, LONG).await.unwrap().remove(0);
        assert_eq!(delivery.count, 1);
        assert!(delivery.job.may_have_outcome);
        let expected = JobHistory {
            resubmitted: times,
            first_enqueued: delivery.job.history.first_enqueued,
            ..JobHistory::default()
        };
        assert_eq!(delivery.job.history, expected);
        let now_known = expected.first_enqueued.unwrap();
        assert!(now_known >= enqueued.unwrap() && now_known <= Timestamp::now());
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.pending(), depth.dead_letters), (1, 0));
}

pub async fn only_the_chosen_dead_letters_are_taken_out(queue: Arc<dyn Queue>) {
    let letters = bury(&queue, &["a", "b", "c", "d", "e", "f"]).await;
    let number = |n: usize| letters[n].number;
    let mut again = queue.resubmit(&[number(4), number(1)], &Amendment::default()).await.unwrap();
    again.sort_unstable();
    assert_eq!(again, [number(1), number(4)]);
    // At once: those that were passed by are not locked.
    assert_eq!(queue.discard(&[number(5), number(5) + 1_000]).await.unwrap(), [number(5)]);
    assert_eq!(names(&all_dead_letters(&queue, 3).await), ["a", "c", "d"]);
    let mut waiting = Vec::new();
    while waiting.len() < 2 {
        let received = queue.receive(10, LONG).await.unwrap();
        waiting.extend(received.into_iter().map(|delivery| delivery.job.custom_id));
    }
    waiting.sort_unstable();
    assert_eq!(waiting, ["b", "e"]);
    assert_eq!(
        queue
            .resubmit(&[number(0), number(2), number(3)], &Amendment::default())
            .await
            .unwrap()
            .len(),
        3
    );
    assert_eq!(queue.depth().await.unwrap().dead_letters, 0);
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
        description: "8 attempts, the last one ended with http_500: 障害".into(),
    };
    queue.settle(vec![delivery.dead_letter(proof, reason.clone())]).await.unwrap();
    let letters = queue.dead_letters(0, 10).await.unwrap();
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
    queue.defer(Vec::new()).await.unwrap();
    assert!(queue.resubmit(&[], &Amendment::default()).await.unwrap().is_empty());
    assert!(queue.discard(&[]).await.unwrap().is_empty());
    assert!(queue.renew(&[]).await.unwrap().is_empty());
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
}
