//! What the broker breaks on demand, seen by a client that keeps strictly to AMQP.

use std::time::Duration;

use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::types::messaging::{Message, Modified, Outcome, Properties};
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Connection, Delivery, Receiver, Sender, Session};
use service_bus_broker::{Broker, Loss, QueueSettings, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(5);
/// Long enough for an answer on a local socket that would have come.
const BRIEF: Duration = Duration::from_millis(200);

async fn broker(change: impl FnOnce(&mut Settings)) -> Broker {
    let mut settings = Settings {
        queues: vec![QueueSettings::new("jobs")],
        check_tokens: false,
        ..Settings::default()
    };
    change(&mut settings);
    service_bus_broker::start("127.0.0.1:0", settings).await.expect("a free port")
}

/// The silence in milliseconds after which the client gives the broker up.
const CLIENT_PATIENCE: u32 = 500;

/// One connection with a sender and a receiver on `jobs`. Dropping the handles ends it.
struct Client {
    sender: Sender,
    receiver: Receiver,
    _session: fe2o3_amqp::session::SessionHandle<()>,
    _connection: fe2o3_amqp::connection::ConnectionHandle<()>,
}

async fn connect(broker: &Broker) -> Result<Client, Box<dyn std::error::Error>> {
    let url = format!("amqp://{}", broker.addr());
    let mut connection = Connection::builder()
        .container_id("faults")
        .idle_time_out(CLIENT_PATIENCE)
        .open(url.as_str())
        .await?;
    let mut session = Session::begin(&mut connection).await?;
    let sender = Sender::attach(&mut session, "to-jobs", "jobs").await?;
    let mut receiver = Receiver::builder()
        .name("from-jobs")
        .source("jobs")
        .credit_mode(CreditMode::Manual)
        .attach(&mut session)
        .await?;
    receiver.set_credit(100).await?;
    Ok(Client { sender, receiver, _session: session, _connection: connection })
}

async fn send(client: &mut Client, text: &str) {
    let outcome = client.sender.send(text.to_owned()).await.expect("an answer");
    assert!(matches!(outcome, Outcome::Accepted(_)));
}

async fn receive(client: &mut Client) -> Delivery<Value> {
    timeout(SOON, client.receiver.recv()).await.expect("a message in time").expect("a link")
}

/// Waits until the counts are as they should be: settlements are not confirmed to this client.
async fn until(broker: &Broker, reached: impl Fn(service_bus_broker::Counts) -> bool) {
    let counts = || broker.counts("jobs");
    let reached = async {
        while !reached(counts()) {
            tokio::task::yield_now().await;
        }
    };
    let reached = timeout(SOON, reached).await;
    assert!(reached.is_ok(), "the counts stay at {:?}", counts());
}

#[tokio::test]
async fn a_message_goes_through() {
    let broker = broker(|_| ()).await;
    let mut client = connect(&broker).await.unwrap();
    send(&mut client, "hello").await;
    let delivery = receive(&mut client).await;
    assert_eq!(delivery.body(), &Value::String("hello".to_owned()));
    client.receiver.accept(&delivery).await.unwrap();
    until(&broker, |counts| counts.completed == 1).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn messages_of_many_frames_pass_both_ways() {
    let broker = broker(|settings| settings.max_message_size = 1 << 20).await;
    let mut client = connect(&broker).await.unwrap();
    let large = "prompt ".repeat(100_000);
    send(&mut client, &large).await;
    let delivery = receive(&mut client).await;
    assert_eq!(delivery.body(), &Value::String(large));
}

#[tokio::test]
async fn a_client_is_told_why_its_link_went() {
    let broker = broker(|_| ()).await;
    for condition in ["com.microsoft:server-busy", "amqp:link:stolen"] {
        let mut client = connect(&broker).await.unwrap();
        broker.detach_links("jobs", condition);
        let error = timeout(SOON, client.receiver.recv::<Value>()).await.unwrap().unwrap_err();
        let text = format!("{error:?}").to_lowercase();
        let name = condition.rsplit(':').next().unwrap();
        assert!(text.contains(name), "{text}");
    }
}

#[tokio::test]
async fn a_paused_broker_is_away_until_it_resumes() {
    let broker = broker(|_| ()).await;
    let mut client = connect(&broker).await.unwrap();
    send(&mut client, "kept").await;
    broker.pause();
    // This client may also wait for ever on a send that its connection's end overtook.
    let lost = timeout(BRIEF, client.sender.send("lost")).await;
    assert!(!matches!(lost, Ok(Ok(_))), "{lost:?}");
    let refused = timeout(SOON, connect(&broker)).await.unwrap();
    assert!(refused.is_err());
    broker.resume();
    // The first client had it under its lock.
    broker.expire_locks("jobs");
    let mut client = connect(&broker).await.unwrap();
    let delivery = receive(&mut client).await;
    assert_eq!(delivery.body(), &Value::String("kept".to_owned()));
}

#[tokio::test]
async fn dropped_connections_leave_their_locks_behind() {
    let broker = broker(|_| ()).await;
    let mut client = connect(&broker).await.unwrap();
    send(&mut client, "a").await;
    receive(&mut client).await;
    broker.drop_connections();
    assert!(timeout(SOON, client.receiver.recv::<Value>()).await.unwrap().is_err());
    let mut client = connect(&broker).await.unwrap();
    assert!(timeout(BRIEF, client.receiver.recv::<Value>()).await.is_err());
    broker.expire_locks("jobs");
    let delivery = receive(&mut client).await;
    let header = delivery.message().header.as_ref().unwrap();
    assert_eq!(header.delivery_count, 1);
}

#[tokio::test]
async fn a_lost_settlement_is_done_or_not_as_the_test_wants() {
    let broker = broker(|_| ()).await;
    let mut client = connect(&broker).await.unwrap();
    broker.lose_next_settlements(1, Loss::Order);
    for text in ["order lost", "confirmation lost"] {
        send(&mut client, text).await;
        let delivery = receive(&mut client).await;
        client.receiver.accept(&delivery).await.unwrap();
        // Nothing tells that an order was lost but that nothing happens.
        sleep(BRIEF).await;
        broker.lose_next_settlements(1, Loss::Confirmation);
    }
    let counts = broker.counts("jobs");
    assert_eq!((counts.locked, counts.completed), (1, 1));
}

#[tokio::test]
async fn a_lost_send_is_stored_or_not_as_the_test_wants() {
    let broker = broker(|settings| {
        settings.queues[0].duplicate_window = Some(Duration::from_secs(60));
    })
    .await;
    let mut client = connect(&broker).await.unwrap();
    for (loss, stored) in [(Loss::Order, 0), (Loss::Confirmation, 1)] {
        broker.lose_next_sends(1, loss);
        let properties = Properties::builder().message_id("same".to_owned()).build();
        let message = Message::builder().properties(properties).value("x".to_owned()).build();
        let unanswered = timeout(BRIEF, client.sender.send(message)).await;
        assert!(unanswered.is_err(), "{loss:?}");
        let counts = broker.counts("jobs");
        assert_eq!(counts.active + counts.locked, stored);
    }
}

#[tokio::test]
async fn without_a_token_there_is_no_link() {
    let broker = broker(|settings| settings.check_tokens = true).await;
    let refused = timeout(SOON, connect(&broker)).await.unwrap();
    let text = format!("{:?}", refused.err().expect("no token was put"));
    assert!(text.to_lowercase().contains("unauthorized"), "{text}");
}

#[tokio::test]
async fn ended_tokens_take_the_links_along() {
    let broker = broker(|_| ()).await;
    let mut client = connect(&broker).await.unwrap();
    broker.expire_tokens();
    let error = timeout(SOON, client.receiver.recv::<Value>()).await.unwrap().unwrap_err();
    assert!(format!("{error:?}").to_lowercase().contains("unauthorized"), "{error:?}");
}

#[tokio::test]
async fn abandoning_and_dead_lettering_change_the_counts() {
    let broker = broker(|settings| settings.queues[0].max_delivery_count = 2).await;
    let mut client = connect(&broker).await.unwrap();
    send(&mut client, "a").await;
    for _ in 0..2 {
        let delivery = receive(&mut client).await;
        let abandon =
            Modified { delivery_failed: None, undeliverable_here: None, message_annotations: None };
        client.receiver.modify(&delivery, abandon).await.unwrap();
    }
    until(&broker, |counts| counts.dead_letter == 1).await;
}

#[tokio::test]
async fn quiet_connections_live_by_heartbeats_and_dead_ones_end() {
    let broker = broker(|settings| settings.idle_timeout = Duration::from_millis(500)).await;
    let mut client = connect(&broker).await.unwrap();
    let mut dead = TcpStream::connect(broker.addr()).await.unwrap();
    dead.write_all(b"AMQP\x00\x01\x00\x00").await.unwrap();
    let mut said = Vec::new();
    timeout(SOON, dead.read_to_end(&mut said)).await.expect("the silent one is dropped").unwrap();
    assert_eq!(said, b"AMQP\x00\x01\x00\x00");
    sleep(Duration::from_millis(u64::from(CLIENT_PATIENCE) * 2)).await;
    send(&mut client, "still here").await;
}

/// Twenty thousand messages in and out: the broker must not be what a benchmark measures.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_messages_pass_quickly() {
    const MESSAGES: usize = 20_000;
    let broker = broker(|_| ()).await;
    let mut client = connect(&broker).await.unwrap();
    let started = tokio::time::Instant::now();
    let mut waiting = Vec::with_capacity(MESSAGES);
    for number in 0..MESSAGES {
        waiting.push(client.sender.send_batchable(format!("job {number}")).await.unwrap());
    }
    for sent in waiting {
        sent.await.unwrap();
    }
    let sent = started.elapsed();
    client.receiver.set_credit(u32::try_from(MESSAGES).unwrap()).await.unwrap();
    for _ in 0..MESSAGES {
        let delivery = receive(&mut client).await;
        client.receiver.accept(&delivery).await.unwrap();
    }
    until(&broker, |counts| counts.completed == MESSAGES as u64).await;
    note(sent, started.elapsed() - sent, MESSAGES);
    // Far above what it takes, even unoptimised on a busy machine.
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[expect(clippy::print_stderr, reason = "the figures are worth seeing with --nocapture")]
fn note(sending: Duration, receiving: Duration, messages: usize) {
    let rate = |time: Duration| messages as f64 / time.as_secs_f64();
    eprintln!("{:.0} sends/s, {:.0} receives and completes/s", rate(sending), rate(receiving));
}
