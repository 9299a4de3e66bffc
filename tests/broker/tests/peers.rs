//! Microsoft's own SDKs against the broker: what they accept, our client may rely on.
//!
//! Needs an interpreter with the packages, named by the environment; says so where there is none.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use service_bus_broker::{Broker, QueueSettings, Settings, TopicSettings};
use tokio::process::Command;

/// Either script is done in half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

async fn broker() -> Broker {
    let queue = |name: &str| QueueSettings { max_delivery_count: 3, ..QueueSettings::new(name) };
    let settings = Settings {
        queues: vec![
            queue("jobs"),
            QueueSettings { duplicate_window: Some(Duration::from_secs(600)), ..queue("unique") },
            QueueSettings { lock: Duration::from_secs(2), ..queue("short") },
        ],
        topics: vec![TopicSettings {
            name: "news".to_owned(),
            subscriptions: vec![queue("all"), queue("other")],
        }],
        ..Settings::default()
    };
    service_bus_broker::start("127.0.0.1:0", settings).await.expect("a free port")
}

/// Runs the script to its end and shows what it printed where it failed.
async fn run(mut peer: Command, script: &str) {
    let broker = broker().await;
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers");
    peer.arg(scripts.join(script))
        .arg(broker.connection_string())
        .args(["jobs", "unique", "short", "news", "all"])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, peer.output())
        .await
        .expect("the script ends in time")
        .expect("the script can be started");
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{script}: {}\n{}", output.status, said.join("\n"));
    let other = broker.counts("news/subscriptions/other");
    assert_eq!(other.active, 1, "the other subscription keeps its copy");
    broker.shutdown().await;
}

/// The environment's value, or a note that the test did not run.
fn peer_from(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        note(&format!("not run: {variable} is not set"));
    }
    value
}

#[expect(clippy::print_stderr, reason = "a test that does not run has to say so somewhere")]
fn note(text: &str) {
    eprintln!("{text}");
}

#[tokio::test]
async fn the_python_sdk_gets_what_it_expects() {
    if let Some(python) = peer_from("PROMPTMILL_PEER_PYTHON") {
        run(Command::new(python), "service_bus_sdk.py").await;
    }
}

#[tokio::test]
async fn the_python_administration_client_reads_and_creates_queues() {
    if let Some(python) = peer_from("PROMPTMILL_PEER_PYTHON") {
        let broker = broker().await;
        let script = "service_bus_admin.py";
        let mut peer = Command::new(python);
        peer.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers").join(script))
            .arg(broker.connection_string())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, peer.output())
            .await
            .expect("the script ends in time")
            .expect("the script can be started");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {}\n{said}", output.status);
        assert_eq!(broker.counts("made").scheduled, 1, "the queue that it made is there for AMQP");
    }
}

#[tokio::test]
async fn the_javascript_sdk_gets_what_it_expects() {
    if let Some(modules) = peer_from("PROMPTMILL_PEER_NODE_MODULES") {
        let mut node = Command::new("node");
        node.env("PEER_NODE_MODULES", modules);
        run(node, "service_bus_sdk.mjs").await;
    }
}
