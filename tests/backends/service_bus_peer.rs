//! Jobs exchanged with Microsoft's own SDK, which knows nothing of promptmill.
//!
//! Needs a Python interpreter with `azure-servicebus`, named by PROMPTMILL_PEER_PYTHON; says so
//! where there is none.

#![allow(clippy::unwrap_used, reason = "part of tests")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use test_support as support;

use promptmill::job::{Api, TokenEstimate};
use promptmill::queue::{DeadLetterReason, Queue};
use service_bus_broker::Broker;
use support::broker::{self, JOBS};
use support::jobs::{Prover, job};
use tokio::process::Command;
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(60);

#[expect(clippy::print_stderr, reason = "a test that does not run has to say so somewhere")]
fn python() -> Option<String> {
    let python = std::env::var("PROMPTMILL_PEER_PYTHON").ok().filter(|value| !value.is_empty());
    if python.is_none() {
        eprintln!("not run: PROMPTMILL_PEER_PYTHON is not set");
    }
    python
}

async fn run(python: &str, broker: &Broker, what: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/service_bus_jobs.py");
    let mut peer = Command::new(python);
    peer.arg(script).args([&broker.connection_string(), JOBS, what]);
    peer.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LONG, peer.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_from_the_python_sdk_are_worked_like_ours() {
    let Some(python) = python() else { return };
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    run(&python, &broker, "send").await;
    let mut jobs = Vec::new();
    while jobs.len() < 3 {
        let received = timeout(LONG, queue.receive(5, LONG)).await.unwrap().unwrap();
        jobs.extend(received.into_iter().map(|delivery| delivery.job));
    }
    let names: Vec<_> = jobs.iter().map(|job| job.custom_id.as_str()).collect();
    assert_eq!(names, ["minimal", "full", "later"]);
    assert!(jobs[0].body.windows(6).any(|part| part == "経理".as_bytes()));
    assert_eq!((jobs[0].api, jobs[0].estimate), (Api::ChatCompletions, None));
    let full = &jobs[1];
    assert_eq!((full.api, full.position, full.priority), (Api::Embeddings, 7, 3));
    assert_eq!(full.estimate, Some(TokenEstimate { prompt: 2, max_output: 0 }));
    assert_eq!(full.metadata.as_deref(), Some(r#"{"team": "営業"}"#));
    let letters = queue.dead_letters(0, 5).await.unwrap();
    assert_eq!((letters.len(), letters[0].reason.reason.as_str()), (1, "NotAJob"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_sdk_reads_our_jobs_and_our_dead_letters() {
    let Some(python) = python() else { return };
    let broker = broker::start(broker::jobs()).await;
    let queue = broker::queue(&broker);
    queue.send(vec![job("from-rust", "aside")]).await.unwrap();
    let aside = queue.receive(1, LONG).await.unwrap().remove(0);
    let proof = Prover::new().prove(&aside.job).await;
    let reason = DeadLetterReason {
        reason: "RetriesExhausted".into(),
        description: "8 回の試行".into(),
    };
    queue.settle(vec![aside.dead_letter(proof, reason)]).await.unwrap();
    queue.send(["0", "1", "2"].map(|id| job("from-rust", id)).into()).await.unwrap();
    run(&python, &broker, "receive").await;
    assert_eq!(queue.depth().await.unwrap().pending(), 0);
}
