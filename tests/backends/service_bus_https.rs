//! Service Bus over HTTPS: side by side with AMQP, when the broker misbehaves, with few rights, and
//! behind a proxy. The contract itself is in `tests/backends/queue.rs`.

#![allow(clippy::unwrap_used, reason = "part of tests")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use test_support as support;

use async_trait::async_trait;
use azure_core_rest::headers::Headers;
use azure_core_rest::{Body, HttpClient, Request, Response, StatusCode};
use azure_messaging_servicebus::service_bus::{
    QueueClient, SendMessageOptions, SettableBrokerProperties,
};
use futures_util::stream;
use promptmill::job::Job;
use promptmill::queue::service_bus::ServiceBusSettings;
use promptmill::queue::service_bus::admin::{ProvisionResult, QueueInspection, ServiceBusAdmin};
use promptmill::queue::service_bus::https::HttpsQueue;
use promptmill::queue::{DeadLetterReason, Delivery, Queue, QueueDepth, QueueError, Settlement};
use promptmill::simulator;
use service_bus_broker::{Broker, Loss, QueueSettings};
use support::broker::{self, DEAD, JOBS};
use support::cli::{Place, chats};
use support::jobs::{Prover, job};
use support::proxy::Proxy;
use tokio::time::{Instant, timeout};

/// Longer than any wait that can be right.
const LONG: Duration = Duration::from_secs(30);

const AT_ONCE: Duration = Duration::ZERO;

fn jobs(count: usize) -> Vec<Job> {
    (0..count).map(|n| job("b", &n.to_string())).collect()
}

async fn receive(queue: &dyn Queue, count: usize) -> Vec<Delivery> {
    let mut all = Vec::new();
    while all.len() < count {
        let some = timeout(LONG, queue.receive(count - all.len(), LONG)).await.unwrap().unwrap();
        assert!(!some.is_empty(), "{} of {count}", all.len());
        all.extend(some);
    }
    all
}

async fn completions(deliveries: Vec<Delivery>) -> Vec<Settlement> {
    let jobs: Vec<_> = deliveries.iter().map(|delivery| delivery.job.clone()).collect();
    let proofs = Prover::new().prove_all(&jobs).await;
    deliveries.into_iter().zip(proofs).map(|(delivery, proof)| delivery.complete(proof)).collect()
}

/// A broker whose key may send and receive and no more.
async fn without_manage() -> Broker {
    let settings = service_bus_broker::Settings {
        queues: vec![broker::jobs()],
        manage: false,
        ..Default::default()
    };
    service_bus_broker::start("127.0.0.1:0", settings).await.unwrap()
}

fn plain(broker: &Broker) -> HttpsQueue {
    let settings = ServiceBusSettings { dead_letter_queue: None, ..broker::https_settings(broker) };
    HttpsQueue::new(&settings, None).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amqp_and_https_share_one_queue() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let (amqp, https) = (broker::queue(&broker), broker::https_queue(&broker));
    amqp.send(jobs(150)).await.unwrap();
    let received = receive(&https, 150).await;
    let ids: HashSet<_> = received.iter().map(|delivery| delivery.job.id).collect();
    assert_eq!(ids, jobs(150).iter().map(|job| job.id).collect());
    https.settle(completions(received).await).await.unwrap();
    https.send(jobs(150)).await.unwrap();
    assert_eq!(broker.counts(JOBS).duplicates, 150, "the same message ids");
    let others: Vec<_> = (0..250).map(|n| job("c", &n.to_string())).collect();
    https.send(others.clone()).await.unwrap();
    let received = receive(&amqp, 250).await;
    let mut back: Vec<_> = received.iter().map(as_sent).collect();
    back.sort_by_key(|job| job.custom_id.parse::<u32>().unwrap());
    assert_eq!(back, others);
    amqp.settle(completions(received).await).await.unwrap();
    amqp.close().await;
    https.close().await;
    assert_eq!(broker.counts(JOBS).completed, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_that_passes_is_borne() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let queue = broker::https_queue(&broker);
    broker.refuse_next_requests(2, 503);
    queue.send(jobs(3)).await.unwrap();
    broker.lose_next_sends(1, Loss::Confirmation);
    timeout(LONG, queue.send(vec![job("b", "lost")])).await.unwrap().unwrap();
    let counts = broker.counts(JOBS);
    assert_eq!((counts.active, counts.duplicates), (4, 1), "nothing is added twice");
    broker.refuse_next_requests(1, 429);
    let held = receive(&queue, 4).await;
    broker.refuse_next_requests(3, 500);
    broker.lose_next_settlements(1, Loss::Confirmation);
    timeout(LONG, queue.settle(completions(held).await)).await.unwrap().unwrap();
    assert_eq!(broker.counts(JOBS).completed, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_duplicate_detection_a_second_copy_says_that_it_may_be_one() {
    let broker = broker::start_for_https(QueueSettings::new(JOBS)).await;
    let queue = broker::https_queue(&broker);
    broker.lose_next_sends(1, Loss::Confirmation);
    timeout(LONG, queue.send(jobs(1))).await.unwrap().unwrap();
    let received = receive(&queue, 2).await;
    let look_up: HashSet<_> =
        received.iter().map(|delivery| delivery.job.may_have_outcome).collect();
    assert_eq!(look_up, HashSet::from([false, true]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_told_at_once_and_an_outage_in_bounded_time() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let settings = broker::https_settings(&broker);
    let elsewhere = ServiceBusSettings { queue: "nowhere".into(), ..settings.clone() };
    let queue = HttpsQueue::new(&elsewhere, None).unwrap();
    let refused = queue.receive(1, LONG).await.unwrap_err();
    assert!(matches!(refused, QueueError::Refused(_)), "{refused}");
    assert!(matches!(queue.depth().await, Err(QueueError::Refused(_))));
    let hasty = ServiceBusSettings { patience_seconds: 1, ..settings };
    let queue = HttpsQueue::new(&hasty, None).unwrap();
    broker.pause();
    let sent = timeout(LONG, queue.send(jobs(1))).await.unwrap();
    assert!(matches!(sent, Err(QueueError::Unavailable(_))), "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_larger_than_the_queue_takes_is_named() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let queue = broker::https_queue(&broker);
    let mut mixed = jobs(3);
    let prompt = "x".repeat(300 * 1024);
    mixed[1].body = format!(r#"{{"model":"m","messages":"{prompt}"}}"#).into();
    match queue.send(mixed).await {
        Err(QueueError::TooLarge { positions, limit }) => {
            assert_eq!(positions, [1]);
            assert!(limit < 256 * 1024);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(broker.counts(JOBS).active, 0, "none was sent");
    // One that fits alone, though a batch's form of it would not.
    let mut quoted = job("b", "quoted");
    quoted.body = format!(r#"{{"model":"m","messages":{:?}}}"#, "\"".repeat(100 * 1024)).into();
    queue.send(vec![quoted.clone()]).await.unwrap();
    assert_eq!(as_sent(&receive(&queue, 1).await[0]), quoted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receive_that_nobody_waits_for_leaves_no_lock_behind() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let queue = broker::https_queue(&broker);
    queue.send(jobs(40)).await.unwrap();
    let mut dropped = Box::pin(queue.receive(40, LONG));
    let _ = futures_util::poll!(&mut dropped);
    drop(dropped);
    queue.close().await;
    let counts = broker.counts(JOBS);
    assert_eq!((counts.active, counts.locked, counts.dead_letter), (40, 0, 0));
    assert!(matches!(queue.receive(1, AT_ONCE).await, Err(QueueError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_no_job_ends_among_the_brokers_own_dead_letters() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let stranger = client(&broker, JOBS);
    stranger.send_message("no job", None).await.unwrap();
    let queue = broker::https_queue(&broker);
    queue.send(jobs(1)).await.unwrap();
    assert_eq!(as_sent(&receive(&queue, 1).await[0]), jobs(1)[0]);
    let until = Instant::now() + LONG;
    while broker.counts(JOBS).dead_letter == 0 {
        assert!(Instant::now() < until);
        assert!(queue.receive(1, AT_ONCE).await.unwrap().is_empty());
    }
    let letters = queue.dead_letters(0, 5).await.unwrap();
    assert_eq!((letters.len(), letters[0].message.as_slice()), (1, b"no job".as_slice()));
    assert_eq!(letters[0].reason.reason, "MaxDeliveryCountExceeded");
    assert_eq!(broker.counts(JOBS).dead_letter, 1, "the look left it there");
}

/// The job without what the queue adds to it.
fn as_sent(delivery: &Delivery) -> Job {
    let mut job = delivery.job.clone();
    job.history.first_enqueued = None;
    job
}

async fn end_as_dead(queue: &dyn Queue) {
    let delivery = receive(queue, 1).await.remove(0);
    let proof = Prover::new().prove(&delivery.job).await;
    let reason = DeadLetterReason { reason: "RetriesExhausted".into(), description: "x".into() };
    queue.settle(vec![delivery.dead_letter(proof, reason)]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_jobs_leave_the_queue_with_or_without_a_place_to_set_them_aside() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let queue = plain(&broker);
    queue.send(jobs(2)).await.unwrap();
    end_as_dead(&queue).await;
    assert_eq!((broker.counts(JOBS).completed, broker.counts(DEAD).active), (1, 0));
    end_as_dead(&broker::https_queue(&broker)).await;
    assert_eq!((broker.counts(JOBS).completed, broker.counts(DEAD).active), (2, 1));
    // A place that is not there: the broker's own dead letters are left.
    let settings = ServiceBusSettings {
        dead_letter_queue: Some("nowhere".to_owned()),
        ..broker::https_settings(&broker)
    };
    let lost = HttpsQueue::new(&settings, None).unwrap();
    lost.send(vec![job("b", "third")]).await.unwrap();
    while broker.counts(JOBS).dead_letter == 0 {
        end_as_dead(&lost).await;
    }
    assert_eq!(broker.counts(JOBS).completed, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_manage_only_the_counts_are_missing() {
    let broker = without_manage().await;
    let queue = plain(&broker);
    let admin = ServiceBusAdmin::new(&broker::settings(&broker), None).unwrap();
    assert!(matches!(admin.inspect().await, QueueInspection::Hidden(_)));
    admin.check_access().await.unwrap();
    queue.send(jobs(2)).await.unwrap();
    let refused = queue.depth().await.unwrap_err().to_string();
    assert!(refused.contains("the Manage right"), "{refused}");
    let held = receive(&queue, 2).await;
    queue.settle(completions(held).await).await.unwrap();
    assert!(queue.receive(1, AT_ONCE).await.unwrap().is_empty());
    assert_eq!(queue.depth().await.unwrap(), QueueDepth::default(), "a drain can end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_reaches_nothing() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let string = broker.connection_string().replace("SAS_KEY_VALUE", "another");
    let settings = ServiceBusSettings {
        connection_string: Some(string.into()),
        ..broker::https_settings(&broker)
    };
    let queue = HttpsQueue::new(&settings, None).unwrap();
    assert!(matches!(queue.send(jobs(1)).await, Err(QueueError::Refused(_))));
    assert!(ServiceBusAdmin::new(&settings, None).unwrap().check_access().await.is_err());
    let prepared = ServiceBusAdmin::new(&settings, None).unwrap().provision(10).await;
    assert!(matches!(prepared[0], ProvisionResult::ToCreate { .. }), "{prepared:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_set_is_the_only_way_out() {
    let broker = broker::start_for_https(broker::jobs()).await;
    let proxy = Proxy::start(Some(broker.addr())).await;
    // A name that nobody but the proxy knows.
    let string = broker.connection_string().replace(&broker.addr().to_string(), "hub.invalid:80");
    let settings = ServiceBusSettings {
        connection_string: Some(string.into()),
        proxy: Some(proxy.url().into()),
        patience_seconds: 5,
        ..broker::https_settings(&broker)
    };
    let queue = HttpsQueue::new(&settings, None).unwrap();
    queue.send(jobs(5)).await.unwrap();
    let held = receive(&queue, 5).await;
    queue.settle(completions(held).await).await.unwrap();
    assert_eq!(broker.counts(JOBS).completed, 5);
    assert!(proxy.passed() >= 1);
    let without = HttpsQueue::new(&ServiceBusSettings { proxy: None, ..settings }, None).unwrap();
    assert!(matches!(without.send(jobs(1)).await, Err(QueueError::Unavailable(_))));
}

/// Brings the crate's requests to the broker as they are, its own signatures included.
#[derive(Debug)]
struct Direct {
    client: reqwest::Client,
    to: String,
}

#[async_trait]
impl HttpClient for Direct {
    async fn execute_request(&self, request: &Request) -> azure_core_rest::Result<Response> {
        let method = reqwest::Method::from_bytes(request.method().as_ref().as_bytes()).unwrap();
        let mut out =
            self.client.request(method, format!("http://{}{}", self.to, request.path_and_query()));
        for (name, value) in request.headers().iter() {
            out = out.header(name.as_str(), value.as_str());
        }
        let Body::Bytes(body) = request.body() else { panic!("the crate streams nothing") };
        let answer = out.body(body.clone()).send().await.unwrap();
        let status = StatusCode::try_from(answer.status().as_u16()).unwrap();
        let mut headers = Headers::new();
        for (name, value) in answer.headers() {
            headers.insert(name.as_str().to_owned(), value.to_str().unwrap().to_owned());
        }
        let body = answer.bytes().await.unwrap();
        Ok(Response::new(status, headers, Box::pin(stream::iter([Ok(body)]))))
    }
}

fn client(broker: &Broker, queue: &str) -> QueueClient {
    let direct = Direct {
        client: promptmill::http_client::builder().build().unwrap(),
        to: broker.addr().to_string(),
    };
    let (name, key) = ("RootManageSharedAccessKey", "SAS_KEY_VALUE".to_owned());
    QueueClient::new(Arc::new(direct), "any", queue, name, key).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_crate_alone_gets_what_it_expects() {
    let broker = broker::start(broker::jobs()).await;
    let client = client(&broker, JOBS);
    for body in ["one", "zwei 二"] {
        let broker_properties = SettableBrokerProperties {
            message_id: Some("same".to_owned()),
            ..SettableBrokerProperties::default()
        };
        let options = SendMessageOptions {
            broker_properties: Some(broker_properties),
            ..SendMessageOptions::default()
        };
        client.send_message(body, Some(options)).await.unwrap();
    }
    assert_eq!(broker.counts(JOBS).duplicates, 1, "its message ids are seen");
    client.send_message("zwei 二", None).await.unwrap();
    let first = client.peek_lock_message2(Some(AT_ONCE)).await.unwrap();
    assert_eq!((*first.status(), first.body().as_str()), (StatusCode::Created, "one"));
    let properties = first.broker_properties().unwrap();
    assert_eq!((properties.delivery_count, properties.message_id.as_str()), (1, "same"));
    first.renew_message_lock().await.unwrap();
    first.unlock_message().await.unwrap();
    assert!(first.delete_message().await.is_err(), "its lock is gone");
    let again = client.peek_lock_message2(Some(AT_ONCE)).await.unwrap();
    assert_eq!(again.broker_properties().unwrap().delivery_count, 2);
    again.delete_message().await.unwrap();
    assert_eq!(client.receive_and_delete_message().await.unwrap(), "zwei 二");
    let nothing = client.peek_lock_message2(Some(AT_ONCE)).await.unwrap();
    assert_eq!(*nothing.status(), StatusCode::NoContent);
    assert_eq!(broker.counts(JOBS).completed, 2);
}

fn configured(broker: &Broker, queue: &str, endpoint: &str) -> Place {
    let place = Place::new();
    place.write(
        "promptmill.toml",
        format!(
            "[queue.service_bus]\nconnection_string = \"{}\"\nqueue = \"{queue}\"\n\
             transport = \"https\"\ndead_letter_queue = \"{queue}-dead\"\n\
             [[deployments]]\nname = \"sim\"\nendpoint = \"{endpoint}\"\n",
            broker.connection_string()
        ),
    );
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_create_check_and_work_a_queue_over_https() {
    let simulator =
        simulator::start("127.0.0.1:0".parse().unwrap(), simulator::SimulatorSettings::default());
    let simulator = simulator.await.unwrap();
    let broker = broker::start_for_https(QueueSettings::new("other")).await;
    let place = configured(&broker, "night", &format!("http://{}/v1", simulator.addr()));
    let missing = place.run(&["check"]);
    assert_eq!(missing.code, Some(3));
    assert!(missing.out.contains("there is no queue 'night'"), "{}", missing.out);
    let init = place.run(&["init"]);
    assert_eq!(init.code, Some(0), "{}", init.err);
    assert!(init.out.contains("'night', created now"), "{}", init.out);
    assert!(init.out.contains("'night-dead', created now"), "{}", init.out);
    assert!(!place.run(&["init"]).out.contains("created now"), "what is there stays");
    let check = place.run(&["check"]);
    assert_eq!(check.code, Some(0), "{}", check.out);
    let seen = "locks last 300 s, 10 deliveries, duplicate detection on; 0 active";
    assert!(check.out.contains(seen) && !check.out.contains("warning"), "{}", check.out);
    place.write("in.jsonl", chats(40));
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "x"]).code, Some(0));
    assert_eq!(broker.counts("night").active, 40);
    let worked = place.run(&["work", "--drain"]);
    assert_eq!(worked.code, Some(0), "{}", worked.err);
    assert!(worked.err.contains("40 succeeded"), "{}", worked.err);
    assert_eq!((broker.counts("night").completed, simulator.ledger().billed.requests), (40, 40));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_warns_of_a_queue_that_does_not_fit_and_goes_on_without_rights() {
    let short = QueueSettings {
        lock: Duration::from_secs(30),
        max_delivery_count: 3,
        ..QueueSettings::new(JOBS)
    };
    let broker = broker::start_for_https(short).await;
    let check = configured(&broker, JOBS, "http://127.0.0.1:9/v1").run(&["check"]);
    assert!(check.out.starts_with("ok: queue\n"), "{}", check.out);
    assert_eq!(check.out.matches("warning: ").count(), 3, "{}", check.out);
    let broker = without_manage().await;
    let place = configured(&broker, JOBS, "http://127.0.0.1:9/v1");
    let check = place.run(&["check"]);
    assert!(check.out.starts_with("ok: queue\n"), "{}", check.out);
    assert!(check.out.contains("can't be read from here"), "{}", check.out);
    let init = place.run(&["init"]);
    assert_eq!(init.code, Some(0));
    assert!(init.err.contains("with duplicate detection"), "{}", init.err);
}

/// How fast a queue is emptied: `cargo test --release --test backends service_bus_https -- --ignored
/// --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a check"]
#[expect(clippy::print_stdout, reason = "the figures are what it is run for")]
async fn throughput() {
    const COUNT: usize = 5_000;
    const CHUNK: usize = 256;
    let broker = broker::start_for_https(QueueSettings::new(JOBS)).await;
    let queue = broker::https_queue(&broker);
    let started = Instant::now();
    for chunk in jobs(COUNT).chunks(1_000) {
        queue.send(chunk.to_vec()).await.unwrap();
    }
    let sent = started.elapsed();
    let (mut left, mut receiving, mut settling) = (COUNT, AT_ONCE, AT_ONCE);
    while left > 0 {
        let started = Instant::now();
        let received = queue.receive(CHUNK, LONG).await.unwrap();
        receiving += started.elapsed();
        left -= received.len();
        // Proofs come from a store, whose speed is not what is measured here.
        let settlements = completions(received).await;
        let started = Instant::now();
        queue.settle(settlements).await.unwrap();
        settling += started.elapsed();
    }
    let rate = |took: Duration| COUNT as f64 / took.as_secs_f64();
    println!(
        "send: {:.0}/s, receive: {:.0}/s, settle: {:.0}/s",
        rate(sent),
        rate(receiving),
        rate(settling)
    );
}
