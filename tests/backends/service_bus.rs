//! The Service Bus queue when its broker misbehaves: lost connections, links, tokens and answers.

#![allow(clippy::unwrap_used, reason = "part of tests")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use test_support as support;

use bytes::Bytes;
use fe2o3_amqp::types::messaging::{AmqpValue, Data, Message};
use fe2o3_amqp::{Connection, Sender, Session};
use jiff::Timestamp;
use promptmill::job::{Amendment, Job};
use promptmill::queue::service_bus::{ServiceBusQueue, ServiceBusSettings, ServiceBusTransport};
use promptmill::queue::{
    DeadLetterReason, Delivery, LockToken, Queue, QueueDepth, QueueError, Settlement,
};
use service_bus_broker::{Broker, Counts, Loss, QueueSettings, TopicSettings};
use support::broker::{self, JOBS};
use support::jobs::{Prover, job};
use support::relay::{Front, Relay};
use tokio::time::{Instant, timeout};

/// Longer than any wait that can be right.
const LONG: Duration = Duration::from_secs(30);

/// A receive that may find nothing.
const BRIEF: Duration = Duration::from_millis(100);

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| job("b", &n.to_string())).collect()
}

fn sized(name: &str, size: usize) -> Job {
    let body = format!(r#"{{"model":"m","messages":[],"pad":"{}"}}"#, "あ".repeat(size / 3));
    Job { body: Bytes::from(body), ..job("b", name) }
}

async fn receive(queue: &ServiceBusQueue, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = timeout(LONG, queue.receive(count - all.len(), LONG)).await.unwrap().unwrap();
        assert!(!some.is_empty(), "{} of {count}", all.len());
        all.extend(some);
    }
    all
}

async fn completions(deliveries: Vec<Delivery>) -> Vec<Settlement> {
    let prover = Prover::new();
    let jobs: Vec<_> = deliveries.iter().map(|delivery| delivery.job.clone()).collect();
    let proofs = prover.prove_all(&jobs).await;
    deliveries.into_iter().zip(proofs).map(|(delivery, proof)| delivery.complete(proof)).collect()
}

fn locks(deliveries: &[Delivery]) -> Vec<LockToken> {
    deliveries.iter().map(|delivery| delivery.lock).collect()
}

/// Waits until the broker's counts are so.
async fn until(broker: &Broker, reached: impl Fn(Counts) -> bool) {
    let looking = async {
        while !reached(broker.counts(JOBS)) {
            tokio::task::yield_now().await;
        }
    };
    let found = timeout(LONG, looking).await;
    assert!(found.is_ok(), "{:?}", broker.counts(JOBS));
}

async fn until_completed(broker: &Broker, count: u64) {
    until(broker, |counts| counts.completed >= count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_jobs_outlive_a_dropped_connection() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    queue.send(jobs(20)).await.unwrap();
    let held = receive(&queue, 20).await;
    broker.drop_connections();
    let renewed = queue.renew(&locks(&held)).await.unwrap();
    assert!(renewed.iter().all(Option::is_some), "locks are the broker's, not the connection's");
    queue.settle(completions(held).await).await.unwrap();
    assert_eq!(broker.counts(JOBS).completed, 20, "confirmed, though their link is gone");
    queue.send(vec![job("b", "later")]).await.unwrap();
    assert_eq!(receive(&queue, 1).await[0].job.custom_id, "later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_link_comes_back_and_its_jobs_are_not_settled_on_the_new_one() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    for (round, condition) in
        ["com.microsoft:server-busy", "amqp:link:stolen"].into_iter().enumerate()
    {
        let name = |n: usize| format!("{round}-{n}");
        queue.send((0..4).map(|n| job("b", &name(n))).collect()).await.unwrap();
        let old = receive(&queue, 2).await;
        broker.detach_links(JOBS, condition);
        // These come by the new link, so that the old ones meet it when they are settled.
        let new = receive(&queue, 2).await;
        let mut settlements = completions(old).await;
        settlements.extend(completions(new).await);
        queue.settle(settlements).await.unwrap();
        until_completed(&broker, 4 * (round as u64 + 1)).await;
    }
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_settlement_ends_in_a_redelivery() {
    let lock = Duration::from_secs(2);
    let broker = broker::start(QueueSettings { lock, ..broker::jobs() }).await;
    let queue = broker::queue(&broker);
    queue.send(jobs(3)).await.unwrap();
    let held = receive(&queue, 3).await;
    broker.lose_next_settlements(1, Loss::Order);
    queue.settle(completions(held).await).await.unwrap();
    let again = receive(&queue, 1).await;
    assert_eq!(again[0].count, 2, "so that it is looked up before any call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_gets_lost_is_asked_for_again() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    queue.send(jobs(3)).await.unwrap();
    let held = receive(&queue, 3).await;
    broker.drop_connections();
    broker.lose_next_settlements(1, Loss::Confirmation);
    timeout(LONG, queue.settle(completions(held).await)).await.unwrap().unwrap();
    assert_eq!(broker.counts(JOBS).completed, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_whose_confirmation_gets_lost_adds_nothing_twice() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    broker.lose_next_sends(1, Loss::Confirmation);
    timeout(LONG, queue.send(jobs(3))).await.unwrap().unwrap();
    let counts = broker.counts(JOBS);
    assert_eq!((counts.active, counts.duplicates), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_duplicate_detection_a_second_copy_says_that_it_may_be_one() {
    let broker = broker::start(QueueSettings::new(JOBS)).await;
    let queue = broker::queue(&broker);
    broker.lose_next_sends(1, Loss::Confirmation);
    timeout(LONG, queue.send(jobs(1))).await.unwrap().unwrap();
    let received = receive(&queue, 2).await;
    let look_up: Vec<_> = received.iter().map(|delivery| delivery.job.may_have_outcome).collect();
    assert_eq!(look_up, [false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_before_they_end() {
    let broker = broker::start(broker::jobs()).await;
    let relay = Relay::start(Front::Plain, broker.addr()).await;
    let settings = ServiceBusSettings {
        sas_lifetime_seconds: 3,
        ..broker::settings_through(&broker, relay.addr)
    };
    let queue = ServiceBusQueue::new(&settings, None).unwrap();
    let end = Instant::now() + Duration::from_secs(7);
    let mut rounds = 0;
    while Instant::now() < end {
        queue.send(vec![job("b", &rounds.to_string())]).await.unwrap();
        let held = receive(&queue, 1).await;
        queue.settle(completions(held).await).await.unwrap();
        rounds += 1;
    }
    until_completed(&broker, rounds).await;
    assert_eq!(relay.accepted(), 1, "one connection outlived its first token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_taken_for_ended_costs_a_reconnect_and_nothing_else() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    queue.send(jobs(4)).await.unwrap();
    let held = receive(&queue, 2).await;
    broker.expire_tokens();
    let more = receive(&queue, 2).await;
    let settlements = completions(held.into_iter().chain(more).collect()).await;
    queue.settle(settlements).await.unwrap();
    until_completed(&broker, 4).await;
    queue.send(jobs(1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_for_a_while_is_waited_for() {
    let broker = broker::start(broker::jobs()).await;
    let queue = Arc::new(broker::queue(&broker));
    queue.send(jobs(2)).await.unwrap();
    let held = receive(&queue, 1).await;
    broker.pause();
    let waiting = queue.clone();
    let receiver = tokio::spawn(async move { receive(&waiting, 1).await });
    let settling = queue.clone();
    let settlements = completions(held).await;
    let settler = tokio::spawn(async move { settling.settle(settlements).await });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!receiver.is_finished() && !settler.is_finished());
    broker.resume();
    timeout(LONG, settler).await.unwrap().unwrap().unwrap();
    assert_eq!(timeout(LONG, receiver).await.unwrap().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stays_away_is_reported_in_bounded_time() {
    let broker = broker::start(broker::jobs()).await;
    let settings = ServiceBusSettings { patience_seconds: 1, ..broker::settings(&broker) };
    let queue = ServiceBusQueue::new(&settings, None).unwrap();
    queue.send(jobs(1)).await.unwrap();
    let held = receive(&queue, 1).await;
    broker.pause();
    let lock = held[0].lock;
    let answers = async {
        tokio::join!(
            async { queue.receive(1, BRIEF).await.map(drop) },
            async { queue.send(jobs(1)).await.map(drop) },
            async { queue.renew(&[lock]).await.map(drop) },
            async { queue.depth().await.map(drop) },
        )
    };
    let answers = timeout(LONG, answers).await.unwrap();
    for answer in [answers.0, answers.1, answers.2, answers.3] {
        assert!(matches!(answer, Err(QueueError::Unavailable(_))), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_or_name_is_refused_and_no_secret_is_told() {
    let broker = broker::start(broker::jobs()).await;
    let wrong = broker.connection_string().replace("=SAS_KEY_VALUE", "=another-key");
    for settings in [
        ServiceBusSettings::new(wrong, JOBS),
        ServiceBusSettings::new(broker.connection_string(), "no-such-queue"),
    ] {
        let queue = ServiceBusQueue::new(&settings, None).unwrap();
        let sent = timeout(LONG, queue.send(jobs(1))).await.unwrap().map(drop);
        let received = timeout(LONG, queue.receive(1, LONG)).await.unwrap().map(drop);
        let depth = timeout(LONG, queue.depth()).await.unwrap().map(drop);
        for refused in [sent, received, depth] {
            assert!(matches!(refused, Err(QueueError::Refused(_))), "{refused:?}");
            let error = refused.unwrap_err();
            let said = format!("{error:?} {error}");
            assert!(!said.contains("another-key") && !said.contains("SAS_KEY"), "{said}");
            assert!(!said.contains("sig="), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_prompt_passes_and_one_that_is_too_large_is_named() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    let large = sized("large", 180_000);
    let sent = vec![job("b", "small"), sized("too large", 300_000), large.clone()];
    match queue.send(sent).await {
        Err(QueueError::TooLarge { positions, limit }) => {
            assert_eq!(positions, [1]);
            assert!((180_000..300_000).contains(&limit), "{limit}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(broker.counts(JOBS).active, 0, "all or nothing");
    queue.send(vec![large.clone()]).await.unwrap();
    assert_eq!(receive(&queue, 1).await[0].job.body, large.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_just_fits_can_still_be_put_off_and_worked_anew() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    let limit = match queue.send(vec![sized("too large", 300_000)]).await {
        Err(QueueError::TooLarge { limit, .. }) => limit,
        other => panic!("{other:?}"),
    };
    let most = (limit - 1_000..limit).rev().map(|size| sized("a", size));
    let mut sent = 0;
    for job in most {
        if queue.send(vec![job]).await.is_ok() {
            sent += 1;
            break;
        }
    }
    assert_eq!(sent, 1, "the largest that fits");
    let mut delivery = receive(&queue, 1).await.remove(0);
    for _ in 0..2 {
        // An error's text of many bytes a character is what the margin has no room for.
        let (due, error) = (Timestamp::now() + BRIEF, "障害".repeat(1_000));
        queue.defer(vec![delivery.defer(due, 1, Some(&error))]).await.unwrap();
        until(&broker, |counts| counts.active + counts.scheduled == 1 && counts.locked == 0).await;
        delivery = receive(&queue, 1).await.remove(0);
        assert_eq!((delivery.job.history.attempts, delivery.count), (1, 1));
    }
    let proof = Prover::new().prove(&delivery.job).await;
    let reason = DeadLetterReason { reason: "R".into(), description: "D".into() };
    queue.settle(vec![delivery.dead_letter(proof, reason)]).await.unwrap();
    until(&broker, |counts| counts.dead_letter == 1).await;
    let number = queue.dead_letters(0, 1).await.unwrap()[0].number;
    assert_eq!(queue.resubmit(&[number], &Amendment::default()).await.unwrap(), [number]);
    assert_eq!(receive(&queue, 1).await[0].job.history.resubmitted, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_jobs_pass_once_each_while_others_are_settled() {
    const COUNT: usize = 2_000;
    let broker = broker::start(broker::jobs()).await;
    let queue = Arc::new(broker::queue(&broker));
    queue.send(jobs(COUNT)).await.unwrap();
    let mut seen = HashSet::new();
    let mut settlers = Vec::new();
    while seen.len() < COUNT {
        let received = queue.receive(64, LONG).await.unwrap();
        seen.extend(received.iter().map(|delivery| delivery.job.id));
        let settling = queue.clone();
        settlers.push(tokio::spawn(async move {
            settling.settle(completions(received).await).await.unwrap();
        }));
    }
    for settler in settlers {
        timeout(LONG, settler).await.unwrap().unwrap();
    }
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
    let counts = broker.counts(JOBS);
    assert_eq!((counts.completed, counts.duplicates), (COUNT as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_job_is_completed_whatever_breaks_in_between() {
    const COUNT: usize = 400;
    let lock = Duration::from_secs(3);
    let broker =
        broker::start(QueueSettings { lock, max_delivery_count: 99, ..broker::jobs() }).await;
    let queue = Arc::new(broker::queue(&broker));
    let filling = queue.clone();
    let filler = tokio::spawn(async move {
        for chunk in jobs(COUNT).chunks(25) {
            filling.send(chunk.to_vec()).await.unwrap();
        }
    });
    let mut seen = HashSet::new();
    let mut round = 0;
    let end = Instant::now() + LONG * 2;
    while broker.counts(JOBS).completed < COUNT as u64 {
        assert!(Instant::now() < end, "{:?}", broker.counts(JOBS));
        let received = queue.receive(32, BRIEF).await.unwrap();
        seen.extend(received.iter().map(|delivery| delivery.job.id));
        let settlements = completions(received).await;
        round += 1;
        // What is settled while a link goes down may get lost, and comes again when its lock ends;
        // so most rounds are left in peace.
        match round % 11 {
            1 => broker.drop_connections(),
            4 => broker.detach_links(JOBS, "com.microsoft:server-busy"),
            7 => broker.expire_tokens(),
            _ => {}
        }
        queue.settle(settlements).await.unwrap();
    }
    timeout(LONG, filler).await.unwrap().unwrap();
    assert_eq!(seen.len(), COUNT);
    assert_eq!(queue.depth().await.unwrap(), QueueDepth::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receive_that_nobody_waits_for_leaves_no_lock_behind() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    queue.send(jobs(50)).await.unwrap();
    for _ in 0..20 {
        // Polled once, so that credit is on its way, then dropped.
        let mut dropped = Box::pin(queue.receive(50, LONG));
        let _ = futures_util::poll!(&mut dropped);
        tokio::task::yield_now().await;
    }
    let received = receive(&queue, 50).await;
    assert!(received.iter().all(|delivery| delivery.count == 1));
    queue.abandon(&locks(&received)).await.unwrap();
    // What was locked for nobody is given back by itself, long before its lock runs out.
    let mut dropped = Box::pin(queue.receive(51, LONG));
    let _ = futures_util::poll!(&mut dropped);
    until(&broker, |counts| counts.locked == 50).await;
    drop(dropped);
    let other = broker::queue(&broker);
    assert_eq!(receive(&other, 50).await.len(), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_waits_until_all_that_was_settled_is_through() {
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    queue.send(jobs(200)).await.unwrap();
    let mut held = receive(&queue, 200).await;
    let back = held.split_off(150);
    queue.settle(completions(held).await).await.unwrap();
    queue.abandon(&locks(&back)).await.unwrap();
    queue.close().await;
    let counts = broker.counts(JOBS);
    assert_eq!((counts.completed, counts.active, counts.locked), (150, 50, 0));
    assert!(matches!(queue.receive(1, BRIEF).await, Err(QueueError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_carries_the_same() {
    let broker = broker::start(broker::jobs()).await;
    let relay = Relay::start(Front::WebSocket, broker.addr()).await;
    let settings = ServiceBusSettings {
        transport: ServiceBusTransport::Websocket,
        ..broker::settings_through(&broker, relay.addr)
    };
    let queue = ServiceBusQueue::new(&settings, None).unwrap();
    queue.send(jobs(100)).await.unwrap();
    let held = receive(&queue, 100).await;
    queue.settle(completions(held).await).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
    assert_eq!((broker.counts(JOBS).completed, relay.accepted()), (100, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_is_a_source_and_its_topic_the_target() {
    let night = TopicSettings {
        name: "night".to_owned(),
        subscriptions: vec![QueueSettings::new("tokyo"), QueueSettings::new("osaka")],
    };
    let settings = service_bus_broker::Settings { topics: vec![night], ..Default::default() };
    let broker = service_bus_broker::start("127.0.0.1:0", settings).await.unwrap();
    let tokyo = ServiceBusSettings::new(broker.connection_string(), "night/Subscriptions/tokyo");
    let queue = ServiceBusQueue::new(&tokyo, None).unwrap();
    queue.send(jobs(3)).await.unwrap();
    let held = receive(&queue, 3).await;
    queue.settle(completions(held).await).await.unwrap();
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
    assert_eq!(broker.counts("night/Subscriptions/osaka").active, 3);
}

/// What other programs may leave in a queue: each is no job in its own way.
async fn send_what_is_no_job(broker: &Broker) {
    let url = format!("amqp://{}", broker.addr());
    let mut connection =
        Connection::builder().container_id("stranger").open(url.as_str()).await.unwrap();
    let mut session = Session::begin(&mut connection).await.unwrap();
    let mut sender = Sender::attach(&mut session, "stranger", JOBS).await.unwrap();
    let data = |bytes: &[u8]| Data(bytes.to_vec().into());
    sender.send(Message::builder().body(data(b"{\"custom_id\":\"x\"}")).build()).await.unwrap();
    sender.send(Message::builder().body(data(b"\xff\xfe\x00")).build()).await.unwrap();
    sender.send(Message::builder().body(AmqpValue(7)).build()).await.unwrap();
    sender.send(Message::builder().body(AmqpValue("hello")).build()).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_message_goes_to_the_dead_letters_with_a_reason() {
    let settings = service_bus_broker::Settings {
        queues: vec![QueueSettings::new(JOBS)],
        check_tokens: false,
        ..Default::default()
    };
    let broker = service_bus_broker::start("127.0.0.1:0", settings).await.unwrap();
    let queue = broker::queue(&broker);
    send_what_is_no_job(&broker).await;
    queue.send(jobs(1)).await.unwrap();
    assert_eq!(receive(&queue, 1).await[0].job.id, jobs(1)[0].id, "the one job among them");
    assert!(queue.receive(5, BRIEF).await.unwrap().is_empty());
    let letters = queue.dead_letters(0, 10).await.unwrap();
    assert_eq!(letters.len(), 4);
    assert!(letters.iter().all(|letter| letter.reason.reason == "NotAJob"));
    let why: Vec<_> = letters.iter().map(|letter| letter.reason.description.as_str()).collect();
    assert!(why[0].contains("missing field `batch_id`"), "{why:?}");
    assert!(why[2].contains("no text"), "{why:?}");
    assert_eq!(letters[3].message, b"hello", "kept as it came");
    let numbers: Vec<_> = letters.iter().map(|letter| letter.number).collect();
    assert!(
        queue.resubmit(&numbers, &Amendment::default()).await.unwrap().is_empty(),
        "there is no job to work"
    );
    assert_eq!(queue.discard(&numbers).await.unwrap().len(), 4);
    until(&broker, |counts| counts.dead_letter == 0).await;
}

/// How fast a queue is emptied, beside Microsoft's Python SDK where PROMPTMILL_PEER_PYTHON names one;
/// `benches/service-bus` runs it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
#[expect(clippy::print_stdout, reason = "the figures are what it is run for")]
async fn throughput() {
    const OURS: usize = 20_000;
    const PEERS: usize = 5_000;
    let broker = service_bus_broker::start(
        "127.0.0.1:0",
        service_bus_broker::Settings {
            queues: vec![QueueSettings::new(JOBS)],
            ..service_bus_broker::Settings::default()
        },
    );
    let broker = broker.await.unwrap();
    let queue = broker::queue(&broker);
    let sent = send_all(&queue, OURS).await;
    let ours = empty(&broker, &queue, OURS).await;
    println!("ours: send {sent:.0}/s, receive and settle {ours:.0}/s");
    let Ok(python) = std::env::var("PROMPTMILL_PEER_PYTHON") else {
        println!("Python SDK: not run, PROMPTMILL_PEER_PYTHON is not set");
        return;
    };
    send_all(&queue, PEERS).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/service_bus_throughput.py");
    let mut peer = tokio::process::Command::new(python);
    peer.args([script, &broker.connection_string(), JOBS, &PEERS.to_string()]);
    let output = peer.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let peers: f64 = said.trim().parse().unwrap();
    println!("Python SDK: receive and settle {peers:.0}/s; ours is {:.1} times that", ours / peers);
}

/// Sends jobs; returns how many a second.
async fn send_all(queue: &ServiceBusQueue, count: usize) -> f64 {
    let started = Instant::now();
    for chunk in jobs(count).chunks(1_000) {
        queue.send(chunk.to_vec()).await.unwrap();
    }
    count as f64 / started.elapsed().as_secs_f64()
}

/// Receives and settles jobs until none is left; returns how many a second.
async fn empty(broker: &Broker, queue: &ServiceBusQueue, count: usize) -> f64 {
    const CHUNK: usize = 256;
    let mut left = count;
    let mut in_queue = Duration::ZERO;
    while left > 0 {
        let started = Instant::now();
        let received = queue.receive(CHUNK, LONG).await.unwrap();
        in_queue += started.elapsed();
        left -= received.len();
        // Proofs come from a store, whose speed is not what is measured here.
        let settlements = completions(received).await;
        let started = Instant::now();
        queue.settle(settlements).await.unwrap();
        in_queue += started.elapsed();
    }
    let started = Instant::now();
    until_completed(broker, count as u64).await;
    in_queue += started.elapsed();
    count as f64 / in_queue.as_secs_f64()
}
