//! Where a job's processor time goes, station by station: its line is parsed, its tokens are counted,
//! its request is built, the answer is read; the embedded queue takes it and hands it out, the embedded
//! store records it, the queue forgets it. (`admission.rs` has the station between.)
//!
//! Processor time and not the clock: what the disk takes to make a commit durable is the disk's.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cpu_time::ProcessTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use promptmill::intake::{BatchTerms, LineOptions, read_line};
use promptmill::job::{Api, BatchId, Job};
use promptmill::model::endpoint::{Endpoint, EndpointConfig};
use promptmill::model::{CallResult, CallTimeouts, ModelClient, RawResponse, ServiceTier};
use promptmill::outcome::{Outcome, OutcomeStatus, TokenUsage};
use promptmill::queue::local::LocalQueue;
use promptmill::queue::{Delivery, Queue, Settlement};
use promptmill::sqlite::Database;
use promptmill::store::OutcomeStore;
use promptmill::store::local::LocalStore;
use promptmill::tokens;
use reqwest::header::HeaderMap;

/// Jobs that go through the embedded parts together.
const GROUP: usize = 500;

const ENGLISH: &str =
    "The harbour town sold its ferry and bought a bridge that nobody had asked for. ";
const JAPANESE: &str = "港町は渡し船を売って、誰も頼んでいない橋を買った。";

fn reading() -> LineOptions {
    let terms = BatchTerms::default();
    let max_line_bytes = 1 << 20;
    LineOptions {
        default_model: None,
        models: None,
        must_limit_output: false,
        max_line_bytes,
        terms,
    }
}

/// A line of a batch file with some kilobyte of text.
fn line(n: usize, text: &str) -> String {
    let text = text.repeat(1_000 / text.len());
    format!(
        r#"{{"custom_id":"job-{n}","method":"POST","url":"/v1/chat/completions","body":{{"model":"gpt-4.1-mini","max_completion_tokens":200,"messages":[{{"role":"system","content":"Translate what follows."}},{{"role":"user","content":"{n}: {text}"}}]}}}}"#
    )
}

fn job(batch: &BatchId, n: usize) -> Job {
    let line = line(n, ENGLISH);
    read_line(&line, &reading()).expect("a job").into_job(batch, n as u64)
}

fn intake(c: &mut Criterion) {
    let reading = reading();
    let mut group = c.benchmark_group("intake");
    let english = line(0, ENGLISH);
    group.throughput(Throughput::Bytes(english.len() as u64));
    group.bench_function("parse a line", |b| {
        b.iter(|| read_line(black_box(&english), &reading).expect("a job"));
    });
    for (name, text) in [("English", ENGLISH), ("Japanese", JAPANESE)] {
        let line = line(0, text);
        let batch = "bench".parse().expect("a name");
        let job = read_line(&line, &reading).expect("a job").into_job(&batch, 0);
        let prompt = job.estimate.map_or(0, |estimate| estimate.prompt);
        group.throughput(Throughput::Elements(prompt.into()));
        group.bench_function(format!("count {prompt} tokens of {name}"), |b| {
            b.iter(|| tokens::estimate(job.api, &job.model, black_box(&job.body)));
        });
    }
    group.finish();
}

fn model(c: &mut Criterion) {
    let batch = "bench".parse().expect("a name");
    let job = job(&batch, 0);
    let given = EndpointConfig {
        url: "https://resource.openai.azure.com".into(),
        deployment: Some("mini".into()),
        key: Some("k".repeat(32).into()),
        ..EndpointConfig::default()
    };
    let endpoint = Endpoint::new(given).expect("an endpoint");
    let client =
        ModelClient::new(endpoint, CallTimeouts::whole(Duration::from_secs(60))).expect("a client");
    let mut group = c.benchmark_group("call");
    group.throughput(Throughput::Elements(1));
    group.bench_function("build a request", |b| {
        b.iter(|| client.request(black_box(&job)).build().expect("a request"));
    });
    let headers: HeaderMap = [
        ("content-type", "application/json"),
        ("apim-request-id", "5d1f2a7e-0c1b-4f5e-9a53-2f9a1f0f8e11"),
        ("x-ratelimit-limit-tokens", "1000000"),
        ("x-ratelimit-remaining-tokens", "400000"),
        ("x-ratelimit-reset-tokens", "30"),
    ]
    .into_iter()
    .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
    .collect();
    let body = answer();
    group.bench_function("read a response", |b| {
        b.iter(|| {
            let raw =
                RawResponse::Response { status: 200, headers: headers.clone(), body: body.clone() };
            CallResult::judge((Api::ChatCompletions, ServiceTier::AsAsked), black_box(raw))
        });
    });
    group.finish();
}

/// An answer of some two hundred tokens.
fn answer() -> Bytes {
    let text = ENGLISH.repeat(12);
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1790000000,"model":"gpt-4.1-mini","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null}},"finish_reason":"stop","logprobs":null}}],"usage":{{"prompt_tokens":220,"completion_tokens":200,"total_tokens":420,"prompt_tokens_details":{{"cached_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0}}}},"service_tier":"default","system_fingerprint":"fp_1"}}"#
    )
    .into()
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// What the worker or the input would do.
    Between,
    Enqueue,
    Receive,
    Record,
    Settle,
}

/// A queue and a store in one file, and how many jobs went through them.
struct Embedded {
    queue: LocalQueue,
    store: LocalStore,
    batch: BatchId,
    jobs: usize,
}

impl Embedded {
    fn open(directory: &Path) -> Self {
        let database = Database::open(directory).expect("a state file");
        let queue = LocalQueue::new(database.clone(), Duration::from_secs(60));
        let store = LocalStore::new(database);
        Self { queue, store, batch: "bench".parse().expect("a name"), jobs: 0 }
    }

    /// Brings a group of jobs from the input to its end; returns what one stage of that took.
    async fn turn(&mut self, watched: Stage) -> Duration {
        let mut clock = StageClock { watched, running: None, spent: Duration::ZERO };
        let jobs = (self.jobs..self.jobs + GROUP).map(|n| job(&self.batch, n)).collect();
        self.jobs += GROUP;
        clock.enter(Stage::Enqueue);
        self.queue.send(jobs).await.expect("sent");
        clock.enter(Stage::Receive);
        let deliveries = self.queue.receive(GROUP, Duration::ZERO).await.expect("received");
        clock.enter(Stage::Between);
        assert_eq!(deliveries.len(), GROUP);
        let outcomes = Arc::new(deliveries.iter().map(outcome).collect());
        clock.enter(Stage::Record);
        let proofs = self.store.record(outcomes).await.expect("recorded");
        clock.enter(Stage::Settle);
        let settled = deliveries.into_iter().zip(proofs).map(|(d, proof)| d.complete(proof));
        let settled: Vec<Settlement> = settled.collect();
        self.queue.settle(settled).await.expect("settled");
        clock.enter(Stage::Between);
        clock.spent
    }
}

/// Counts the processor time of one stage.
struct StageClock {
    watched: Stage,
    running: Option<ProcessTime>,
    spent: Duration,
}

impl StageClock {
    fn enter(&mut self, stage: Stage) {
        self.spent += self.running.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.running = (stage == self.watched).then(ProcessTime::now);
    }
}

fn outcome(delivery: &Delivery) -> Outcome {
    let Job { id, batch_id, custom_id, position, model, .. } = &delivery.job;
    Outcome {
        job_id: *id,
        batch_id: batch_id.clone(),
        custom_id: custom_id.clone(),
        position: *position,
        digest: delivery.job.digest(),
        ending: OutcomeStatus::Succeeded,
        status_code: Some(200),
        request_id: Some("5d1f2a7e-0c1b-4f5e-9a53-2f9a1f0f8e11".into()),
        body: Some(answer()),
        failure: None,
        usage: TokenUsage { prompt: 220, completion: 200, ..TokenUsage::default() },
        service_tier: Some("default".into()),
        finish: None,
        flaw: None,
        attempts: 1,
        throttled: 0,
        deployment: "mini".into(),
        model: model.clone(),
        latency_ms: 900,
        finished_at: Timestamp::now(),
        deadline: None,
        metadata: None,
    }
}

fn embedded(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let directory = tempfile::tempdir().expect("a folder");
    let mut parts = runtime.block_on(async { Embedded::open(directory.path()) });
    let mut group = c.benchmark_group(format!("embedded queue and store, {GROUP} jobs a commit"));
    group.throughput(Throughput::Elements(GROUP as u64)).sample_size(20);
    let stages = [
        ("enqueue", Stage::Enqueue),
        ("receive", Stage::Receive),
        ("record", Stage::Record),
        ("settle", Stage::Settle),
    ];
    for (name, stage) in stages {
        group.bench_function(name, |b| {
            b.iter_custom(|turns| {
                runtime.block_on(async {
                    let mut spent = Duration::ZERO;
                    for _ in 0..turns {
                        spent += parts.turn(stage).await;
                    }
                    spent
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, intake, model, embedded);
criterion_main!(benches);
