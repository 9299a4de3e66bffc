//! Ten thousand random replies in simulated time: the worker lives, each job ends exactly once, and no
//! job and no second costs more calls than docs/replies.md states.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use promptmill::admission::PoolMember;
use promptmill::admission::deployment::DeploymentLimits;
use promptmill::model::endpoint::{Endpoint, EndpointConfig};
use promptmill::model::{CallTimeouts, ModelClient};
use promptmill::outcome::OutcomeStatus;
use promptmill::queue::Queue;
use promptmill::queue::local::LocalQueue;
use promptmill::sqlite::Database;
use promptmill::store::local::LocalStore;
use promptmill::store::{OutcomeReader, SortOrder};
use promptmill::telemetry::WorkerProgress;
use promptmill::worker::{Worker, WorkerExit, WorkerSettings, WorkerTarget, all_queued};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use test_support::jobs::job;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const JOBS: usize = 4_700;
const MAX_ATTEMPTS: u32 = 8;
/// While the disk is waited for simulated time flies.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

const STATUSES: [u16; 22] = [
    200, 200, 200, 204, 302, 400, 401, 403, 404, 408, 409, 410, 413, 418, 422, 424, 429, 429, 499,
    500, 503, 599,
];
const NO_ATTEMPT: [u16; 9] = [302, 400, 401, 403, 404, 410, 418, 422, 429];
const BODIES: [&[u8]; 12] = [
    b"",
    b"{}",
    b"{\"choices\":[",
    b"<html>Log in</html>",
    b"{\"error\":{\"code\":502,\"message\":\"upstream\"}}",
    b"{\"error\":{\"code\":\"content_filter\",\"message\":\"m\"}}",
    b"{\"error\":{\"code\":\"model_not_found\",\"message\":\"no such model\"}}",
    b"{\"error\":{\"message\":\"Please retry after 86400 seconds.\"}}",
    b"{\"status\":\"queued\",\"output\":[]}",
    b"{\"choices\":[{\"message\":{\"content\":\"caf\xe9\"},\"finish_reason\":\"length\"}],\"usage\":7}",
    b"\x1f\x8b\x08not gzip",
    b"\xff\xfe\x00",
];
const WAITS: [&str; 7] = ["0", "-1", "0.5", "86400", "Wed, 21 Oct 2015 07:28:00 GMT", "", "soon"];

/// The endpoint's books.
#[derive(Default)]
struct Books {
    /// By request.
    calls: HashMap<String, u32>,
    /// Those of them that count as no attempt: refusals that may pass.
    waits: HashMap<String, u32>,
}

/// One answer in three is good; the others are anything.
fn reply(rng: &mut SmallRng) -> (u16, Vec<u8>) {
    let (status, body) = if rng.random_bool(0.35) {
        (200, &br#"{"choices":[{"message":{"content":"ok"},"finish_reason":"stop"}]}"#[..])
    } else {
        (*STATUSES.choose(rng).unwrap(), *BODIES.choose(rng).unwrap())
    };
    let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
    if rng.random_bool(0.1) {
        head += &format!("retry-after: {}\r\n", WAITS.choose(rng).unwrap());
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    if rng.random_bool(0.05) {
        bytes.truncate(rng.random_range(0..bytes.len()));
    }
    (status, bytes)
}

/// Answers the requests of one connection, until a reply that is cut off.
async fn serve(stream: TcpStream, books: Rc<RefCell<Books>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut length, mut line) = (0, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(told) = lower.strip_prefix("content-length:") {
                length = told.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let text = String::from_utf8(body).unwrap();
        let (status, bytes) = {
            let mut books = books.borrow_mut();
            let seen = books.calls.entry(text.clone()).or_default();
            *seen += 1;
            let seed = xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), u64::from(*seen));
            let (status, bytes) = reply(&mut SmallRng::seed_from_u64(seed));
            if NO_ATTEMPT.contains(&status) {
                *books.waits.entry(text).or_default() += 1;
            }
            (status, bytes)
        };
        let is_cut = !bytes.ends_with(b"}") || status == 204;
        if stream.get_mut().write_all(&bytes).await.is_err() || is_cut {
            return;
        }
    }
}

fn worker(queue: LocalQueue, store: LocalStore, url: &str) -> Worker {
    let endpoint = EndpointConfig { url: url.to_owned(), ..EndpointConfig::default() };
    let endpoint = Endpoint::new(endpoint).unwrap();
    Worker {
        queue: Arc::new(queue),
        store: Arc::new(store),
        targets: vec![WorkerTarget {
            member: PoolMember {
                name: "storm".into(),
                limits: DeploymentLimits { concurrency: 16, ..DeploymentLimits::default() },
                ..PoolMember::default()
            },
            client: ModelClient::new(
                endpoint,
                CallTimeouts {
                    idle: Some(Duration::from_secs(60)),
                    ..CallTimeouts::whole(FOR_EVER)
                },
            )
            .unwrap(),
        }],
        settings: WorkerSettings {
            drain: Some(all_queued()),
            only_batch: None,
            prices: None,
            shared: false,
            max_held: 256,
            max_failure_rate: 1.0,
            max_attempts: MAX_ATTEMPTS,
            max_deliveries: 1_000,
            // Jobs that wait in the queue would wait by the clock on the wall.
            defer_from: FOR_EVER,
            shutdown_grace: FOR_EVER,
            unreachable_after: FOR_EVER,
            spill_after: Duration::ZERO,
        },
        progress: Arc::<WorkerProgress>::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_random_replies_end_each_job_once_and_in_few_calls() {
    let dir = tempfile::tempdir().unwrap();
    let database = Database::open(dir.path()).unwrap();
    let queue = LocalQueue::new(database.clone(), FOR_EVER);
    let store = LocalStore::new(database);
    queue.send((0..JOBS).map(|n| job("b", &format!("job-{n}"))).collect()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let books = Rc::<RefCell<Books>>::default();
    let local = tokio::task::LocalSet::new();
    let shared = books.clone();
    local.spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::task::spawn_local(serve(stream, shared.clone()));
        }
    });
    let mut ends = Vec::new();
    local
        .run_until(async {
            while ends.last() != Some(&WorkerExit::Drained) {
                assert!(ends.len() < 200, "{ends:?}");
                let worker = worker(queue.clone(), store.clone(), &url);
                ends.push(worker.run(CancellationToken::new()).await.unwrap());
            }
        })
        .await;
    let outcomes = store.outcomes(&"b".parse().unwrap(), SortOrder::AsStored).await.unwrap();
    let outcomes: Vec<_> = outcomes.try_collect().await.unwrap();
    let books = books.borrow();
    let replies: u32 = books.calls.values().sum();
    assert_eq!(outcomes.len(), JOBS);
    assert!(replies >= 10_000, "{replies}");
    for (request, calls) in &books.calls {
        let waits = books.waits.get(request).copied().unwrap_or_default();
        assert!(calls - waits <= MAX_ATTEMPTS, "{calls} calls, {waits} waits: {request}");
        assert!(waits <= 12, "{waits} waits: {request}");
    }
    let is_there = |ending| outcomes.iter().any(|outcome| outcome.ending == ending);
    assert!(
        [OutcomeStatus::Succeeded, OutcomeStatus::Failed, OutcomeStatus::Dead].map(is_there)
            == [true; 3]
    );
}
