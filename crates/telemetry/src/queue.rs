//! A queue that is watched: what is sent, handed out and settled, and how long it takes.
//!
//! It stands around any queue and changes one thing: the `traceparent` in a job's history, which names
//! the step that sent the job, and from the hand-out on the span of its processing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use jiff::Timestamp;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanKind, Tracer};
use opentelemetry_sdk::trace::Span;
use tokio::time::Instant;

use super::span::{self, Begin};
use super::{Telemetry, active, names};
use domain::job::{Amendment, Job, TraceParent};
use queue::sight::{Sight, Sought};
use queue::{
    DeadLetter, Delivery, Depth, LockToken, Postponement, Queue, QueueError, Sent, Settlement,
    SettlementKind,
};

/// Hand-outs of which nothing was heard for so long are no longer ours, whatever became of them. They
/// are looked through only if there are many.
const LONGEST_OPEN: Duration = Duration::from_secs(6 * 3_600);
const MANY_OPEN: usize = 10_000;

/// What a queue is called by those who watch.
#[derive(Debug, Clone)]
pub struct Labels {
    /// A value of `messaging.system`.
    pub system: &'static str,
    pub destination: String,
}

impl Labels {
    /// The embedded queue, for which the conventions have no name.
    pub fn local() -> Self {
        Self { system: "promptmill", destination: "local".into() }
    }

    pub fn service_bus(queue: &str) -> Self {
        Self { system: "servicebus", destination: queue.to_owned() }
    }
}

/// The queue as it is, or watched if telemetry is on.
pub fn observed(queue: Arc<dyn Queue>, labels: Labels) -> Arc<dyn Queue> {
    match active() {
        Some(telemetry) => {
            Arc::new(Observed { inner: queue, telemetry, labels, open: Mutex::default() })
        }
        None => queue,
    }
}

struct Observed {
    inner: Arc<dyn Queue>,
    telemetry: &'static Telemetry,
    labels: Labels,
    /// What is handed out and not settled.
    open: Mutex<HashMap<LockToken, Processing>>,
}

/// One hand-out of a job.
struct Processing {
    span: Span,
    since: Instant,
}

impl Observed {
    fn attributes(&self, name: &'static str, kind: &'static str) -> Vec<KeyValue> {
        vec![
            KeyValue::new(names::SYSTEM, self.labels.system),
            KeyValue::new(names::DESTINATION, self.labels.destination.clone()),
            KeyValue::new(names::OPERATION_NAME, name),
            KeyValue::new(names::OPERATION_TYPE, kind),
        ]
    }

    fn about(&self, name: &'static str, kind: &'static str, job: &Job) -> Vec<KeyValue> {
        let mut attributes = self.attributes(name, kind);
        attributes.push(KeyValue::new(names::MESSAGE_ID, job.id.to_string()));
        attributes.push(KeyValue::new(names::CONVERSATION_ID, job.batch_id.to_string()));
        attributes
    }

    fn name(&self, operation: &str) -> String {
        format!("{operation} {}", self.labels.destination)
    }

    /// Measures an operation of the queue itself.
    fn measure<T>(
        &self,
        (name, kind): (&'static str, &'static str),
        began: Instant,
        result: &Result<T, QueueError>,
    ) {
        let mut attributes = self.attributes(name, kind);
        if let Err(error) = result {
            attributes.push(KeyValue::new(names::ERROR_TYPE, error_type(error)));
        }
        let seconds = began.elapsed().as_secs_f64();
        self.telemetry.instruments.queue_duration.record(seconds, &attributes);
    }

    /// One span a job, so that each job is a trace of its own.
    fn sending(&self, jobs: &mut [Job]) -> Vec<Span> {
        let at = SystemTime::now();
        let begin = |job: &mut Job| {
            let span = self.telemetry.begin(Begin {
                name: self.name("send"),
                kind: SpanKind::Producer,
                parent: job.history.traceparent,
                at,
                attributes: self.about("send", "send", job),
            });
            job.history.traceparent = Some(span::traceparent(&span));
            span
        };
        jobs.iter_mut().map(begin).collect()
    }

    /// What was lost and never told of would otherwise stay for ever.
    fn forget_old(&self) {
        let mut open = self.open();
        if open.len() > MANY_OPEN {
            open.retain(|_, processing| processing.since.elapsed() < LONGEST_OPEN);
        }
    }

    fn received(&self, began: SystemTime, deliveries: &mut [Delivery]) {
        let links = deliveries.iter().filter_map(|delivery| delivery.job.history.traceparent);
        let links = links.map(|parent| Link::with_context(span::span_context(parent))).collect();
        let mut attributes = self.attributes("receive", "receive");
        self.telemetry.instruments.consumed.add(deliveries.len() as u64, &attributes);
        attributes.push(KeyValue::new(names::BATCH_COUNT, count(deliveries.len())));
        let builder = SpanBuilder::from_name(self.name("receive"))
            .with_kind(SpanKind::Client)
            .with_start_time(began)
            .with_links(links)
            .with_attributes(attributes);
        let none = opentelemetry::Context::new();
        self.telemetry.tracer.build_with_context(builder, &none).end();
        self.forget_old();
        for delivery in deliveries {
            self.begin_processing(delivery);
        }
    }

    fn begin_processing(&self, delivery: &mut Delivery) {
        let mut attributes = self.about("process", "process", &delivery.job);
        attributes.push(KeyValue::new(names::DELIVERY_COUNT, i64::from(delivery.count)));
        if let Some(at) = delivery.job.history.first_enqueued {
            attributes.push(KeyValue::new(names::ENQUEUED_TIME, at.as_second()));
        }
        let span = self.telemetry.begin(Begin {
            name: self.name("process"),
            kind: SpanKind::Consumer,
            parent: delivery.job.history.traceparent,
            at: SystemTime::now(),
            attributes,
        });
        delivery.job.history.traceparent = Some(span::traceparent(&span));
        let processing = Processing { span, since: Instant::now() };
        self.open().insert(delivery.lock, processing);
    }

    /// Ends the processing of a delivery; `how` is the disposition, or why there is none.
    fn end_processing(&self, lock: LockToken, how: Result<&'static str, &'static str>) {
        let Some(Processing { mut span, since }) = self.open().remove(&lock) else { return };
        let mut attributes = self.attributes("process", "process");
        match how {
            Ok(disposition) => span.set_attribute(KeyValue::new(names::DISPOSITION, disposition)),
            Err(why) => {
                span::fail(&mut span, why.to_owned());
                attributes.push(KeyValue::new(names::ERROR_TYPE, why));
            }
        }
        span.end();
        let seconds = since.elapsed().as_secs_f64();
        self.telemetry.instruments.process_duration.record(seconds, &attributes);
    }

    /// Tells of deliveries that left our hands, with the queue's answer.
    fn let_go(
        &self,
        gone: Vec<(LockToken, &'static str)>,
        (began, at): (Instant, SystemTime),
        result: &Result<(), QueueError>,
    ) {
        self.measure(("settle", "settle"), began, result);
        let error = result.as_ref().err().map(error_type);
        for (lock, disposition) in gone {
            self.settled(self.parent_of(lock), disposition, at, error);
            self.end_processing(lock, error.map_or(Ok(disposition), Err));
        }
    }

    fn settled(
        &self,
        parent: Option<TraceParent>,
        disposition: &'static str,
        at: SystemTime,
        error: Option<&'static str>,
    ) {
        // Lost meanwhile: there is nobody to tell of.
        let Some(parent) = parent else { return };
        let mut attributes = self.attributes(disposition, "settle");
        attributes.push(KeyValue::new(names::DISPOSITION, disposition));
        let name = self.name("settle");
        let kind = SpanKind::Client;
        let begin = Begin { name, kind, parent: Some(parent), at, attributes };
        let mut span = self.telemetry.begin(begin);
        if let Some(error) = error {
            span::fail(&mut span, error.to_owned());
        }
        span.end();
    }

    fn parent_of(&self, lock: LockToken) -> Option<TraceParent> {
        self.open().get(&lock).map(|processing| span::traceparent(&processing.span))
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<LockToken, Processing>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Queue for Observed {
    async fn send(&self, mut jobs: Vec<Job>) -> Result<Sent, QueueError> {
        let began = Instant::now();
        let mut spans = self.sending(&mut jobs);
        let result = self.inner.send(jobs).await;
        self.measure(("send", "send"), began, &result);
        match &result {
            Ok(sent) => {
                let attributes = self.attributes("send", "send");
                self.telemetry.instruments.sent.add(sent.accepted, &attributes);
            }
            Err(error) => {
                spans.iter_mut().for_each(|span| span::fail(span, error_type(error).to_owned()));
            }
        }
        spans.iter_mut().for_each(|span| span.end());
        result
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let (began, at) = (Instant::now(), SystemTime::now());
        let mut result = self.inner.receive(max, wait).await;
        // Of an empty queue it would only tell how long we were ready to wait.
        if !result.as_ref().is_ok_and(Vec::is_empty) {
            self.measure(("receive", "receive"), began, &result);
        }
        if let Ok(deliveries) = &mut result
            && !deliveries.is_empty()
        {
            self.received(at, deliveries);
        }
        result
    }

    async fn renew(&self, locks: &[LockToken]) -> Result<Vec<Option<Timestamp>>, QueueError> {
        let renewed = self.inner.renew(locks).await?;
        let lost = locks.iter().zip(&renewed).filter(|(_, until)| until.is_none());
        lost.for_each(|(lock, _)| self.end_processing(*lock, Err("lock_lost")));
        Ok(renewed)
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<(), QueueError> {
        let now = (Instant::now(), SystemTime::now());
        let disposition = |settlement: &Settlement| match settlement.kind() {
            SettlementKind::Complete => "complete",
            SettlementKind::DeadLetter(_) => "dead_letter",
        };
        let gone = settlements.iter().map(|s| (s.lock(), disposition(s))).collect();
        let result = self.inner.settle(settlements).await;
        self.let_go(gone, now, &result);
        result
    }

    async fn postpone(&self, postponements: Vec<Postponement>) -> Result<(), QueueError> {
        let now = (Instant::now(), SystemTime::now());
        let gone = postponements.iter().map(|p| (p.lock(), "defer")).collect();
        let result = self.inner.postpone(postponements).await;
        self.let_go(gone, now, &result);
        result
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        let now = (Instant::now(), SystemTime::now());
        let result = self.inner.abandon(locks).await;
        self.let_go(locks.iter().map(|lock| (*lock, "abandon")).collect(), now, &result);
        result
    }

    async fn depth(&self) -> Result<Depth, QueueError> {
        self.inner.depth().await
    }

    async fn look(&self, sought: &Sought) -> Result<Sight, QueueError> {
        self.inner.look(sought).await
    }

    async fn dead_letters(&self, from: i64, max: usize) -> Result<Vec<DeadLetter>, QueueError> {
        self.inner.dead_letters(from, max).await
    }

    async fn resubmit(
        &self,
        numbers: &[i64],
        amendment: &Amendment,
    ) -> Result<Vec<i64>, QueueError> {
        self.inner.resubmit(numbers, amendment).await
    }

    async fn discard(&self, numbers: &[i64]) -> Result<Vec<i64>, QueueError> {
        self.inner.discard(numbers).await
    }

    async fn close(&self) {
        self.inner.close().await;
        // What is still open was not settled by us; its spans end here.
        self.open().clear();
    }
}

fn error_type(error: &QueueError) -> &'static str {
    match error {
        QueueError::Unavailable(_) => "unavailable",
        QueueError::Refused(_) => "refused",
        QueueError::TooLarge { .. } => "too_large",
    }
}

fn count(of: usize) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}
