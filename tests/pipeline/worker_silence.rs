//! Deployments that hang: calls that are never answered, heads and bodies that stop coming.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use std::time::Duration;

use promptmill::model::endpoint::{Endpoint, EndpointConfig};
use promptmill::model::verdict::Verdict;
use promptmill::model::{CallTimeouts, ModelClient};
use promptmill::simulator::{FaultRates, SimulatedLatency};
use promptmill::worker::WorkerExit;
use test_support::jobs::job;
use test_support::pipeline;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::worker::{Bench, LONG};

/// Far more than a silence takes to be seen, far less than the time-out of a call.
const SOON: Duration = Duration::from_secs(40);

fn client(url: String, timeouts: CallTimeouts) -> ModelClient {
    let endpoint = Endpoint::new(EndpointConfig { url, ..EndpointConfig::default() }).unwrap();
    ModelClient::new(endpoint, timeouts).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_hangs_at_one_deployment_is_answered_by_another_long_before_its_time_out() {
    let bench = Bench::new(200, LONG, SimulatedLatency::default()).await;
    let hanging = pipeline::simulator(FaultRates { rate_hang: 1.0, ..FaultRates::default() }).await;
    let mut worker = bench.worker(Arc::new(bench.store.clone()), 4, 32);
    let mut second = worker.targets[0].clone();
    second.member.name = "hanging".into();
    second.client = client(format!("http://{}/v1", hanging.addr()), CallTimeouts::whole(10 * LONG));
    worker.targets.push(second);
    let ran = tokio::time::timeout(SOON, worker.run(CancellationToken::new()));
    assert_eq!(ran.await.expect("it ends soon").unwrap(), WorkerExit::Drained);
    assert_eq!(bench.succeeded().await, 200);
    let hung = hanging.ledger().requests;
    assert!((3..=6).contains(&hung), "four calls and a probe or two: {hung}");
}

/// Answers one request with these bytes and then with nothing more.
async fn stalling(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut read = [0; 4096];
        let _ = stream.read(&mut read).await;
        stream.write_all(answer).await.unwrap();
        // Until the client is gone.
        while stream.read(&mut read).await.is_ok_and(|n| n > 0) {}
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_and_a_body_that_stop_coming_have_time_limits_of_their_own() {
    const LIMIT: Option<Duration> = Some(Duration::from_millis(50));
    let plain = CallTimeouts::whole(LONG);
    let of_body = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices\"";
    for (answer, timeouts, expected) in [
        (&b""[..], CallTimeouts { first_byte: LIMIT, ..plain }, "no answer came"),
        (&of_body[..], CallTimeouts { idle: LIMIT, ..plain }, "no more of the answer came"),
    ] {
        let called = client(stalling(answer).await, timeouts).call(&job("b", "1")).await;
        let Verdict::Transient { error, .. } = called.verdict else {
            panic!("{:?}", called.verdict);
        };
        assert_eq!(error.failure.code, "timeout");
        assert!(error.failure.message.starts_with(expected), "{}", error.failure.message);
    }
}
