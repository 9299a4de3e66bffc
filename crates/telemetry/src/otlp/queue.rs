//! Instrumented queue: spans and durations of sending, handing out and settling.
//!
//! It wraps any queue and changes one thing: the `traceparent` in a job's history. After sending it
//! names the span that sent the job, and from the hand-out on the span of its processing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use jiff::Timestamp;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanKind, Tracer};
use opentelemetry_sdk::trace::Span;
use tokio::time::Instant;

use super::active::{Telemetry, active};
use super::names;
use super::span::{self, SpanStart};
use crate::QueueLabels;
use domain::job::{Amendment, Job, TraceParent};
use domain::mutex::lock;
use queue::peek::{PeekFilter, PeekResult};
use queue::{
    DeadLetter, DeferOrder, Delivery, LockToken, Queue, QueueDepth, QueueError, SendCounts,
    Settlement, SettlementKind,
};

/// Age after which an unsettled hand-out is dropped. Hand-outs are searched for old ones only if
/// there are many.
const MAX_OPEN_AGE: Duration = Duration::from_secs(6 * 3_600);
const MANY_OPEN: usize = 10_000;

/// Returns the queue unchanged, or instrumented if telemetry is on.
pub fn instrument_queue(queue: Arc<dyn Queue>, labels: QueueLabels) -> Arc<dyn Queue> {
    match active() {
        Some(telemetry) => {
            Arc::new(InstrumentedQueue { inner: queue, telemetry, labels, open: Mutex::default() })
        }
        None => queue,
    }
}

struct InstrumentedQueue {
    inner: Arc<dyn Queue>,
    telemetry: &'static Telemetry,
    labels: QueueLabels,
    /// Deliveries handed out and not settled.
    open: Mutex<HashMap<LockToken, OpenDelivery>>,
}

/// One hand-out of a job.
struct OpenDelivery {
    span: Span,
    since: Instant,
}

impl InstrumentedQueue {
    fn attributes(&self, name: &'static str, kind: &'static str) -> Vec<KeyValue> {
        vec![
            KeyValue::new(names::SYSTEM, self.labels.system),
            KeyValue::new(names::DESTINATION, self.labels.destination.clone()),
            KeyValue::new(names::OPERATION_NAME, name),
            KeyValue::new(names::OPERATION_TYPE, kind),
        ]
    }

    fn job_attributes(&self, name: &'static str, kind: &'static str, job: &Job) -> Vec<KeyValue> {
        let mut attributes = self.attributes(name, kind);
        attributes.push(KeyValue::new(names::MESSAGE_ID, job.id.to_string()));
        attributes.push(KeyValue::new(names::CONVERSATION_ID, job.batch_id.to_string()));
        attributes
    }

    fn name(&self, operation: &str) -> String {
        format!("{operation} {}", self.labels.destination)
    }

    /// Records the duration of a queue operation.
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

    /// Begins one span a job, so that each job is a trace of its own.
    fn begin_send_spans(&self, jobs: &mut [Job]) -> Vec<Span> {
        let at = SystemTime::now();
        let begin = |job: &mut Job| {
            let span = self.telemetry.begin_span(SpanStart {
                name: self.name("send"),
                kind: SpanKind::Producer,
                parent: job.history.traceparent,
                at,
                attributes: self.job_attributes("send", "send", job),
            });
            job.history.traceparent = Some(span::traceparent(&span));
            span
        };
        jobs.iter_mut().map(begin).collect()
    }

    /// Drops old hand-outs; those lost without a report would otherwise stay for ever.
    fn forget_old(&self) {
        let mut open = self.open();
        if open.len() > MANY_OPEN {
            open.retain(|_, processing| processing.since.elapsed() < MAX_OPEN_AGE);
        }
    }

    fn record_receive(&self, began: SystemTime, deliveries: &mut [Delivery]) {
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
        let mut attributes = self.job_attributes("process", "process", &delivery.job);
        attributes.push(KeyValue::new(names::DELIVERY_COUNT, i64::from(delivery.count)));
        if let Some(at) = delivery.job.history.first_enqueued {
            attributes.push(KeyValue::new(names::ENQUEUED_TIME, at.as_second()));
        }
        let span = self.telemetry.begin_span(SpanStart {
            name: self.name("process"),
            kind: SpanKind::Consumer,
            parent: delivery.job.history.traceparent,
            at: SystemTime::now(),
            attributes,
        });
        delivery.job.history.traceparent = Some(span::traceparent(&span));
        let processing = OpenDelivery { span, since: Instant::now() };
        self.open().insert(delivery.lock, processing);
    }

    /// Ends the processing of a delivery; `how` is the disposition, or why there is none.
    fn end_processing(&self, lock: LockToken, how: Result<&'static str, &'static str>) {
        let Some(OpenDelivery { mut span, since }) = self.open().remove(&lock) else { return };
        let mut attributes = self.attributes("process", "process");
        match how {
            Ok(disposition) => span.set_attribute(KeyValue::new(names::DISPOSITION, disposition)),
            Err(why) => {
                span::mark_failed(&mut span, why.to_owned());
                attributes.push(KeyValue::new(names::ERROR_TYPE, why));
            }
        }
        span.end();
        let seconds = since.elapsed().as_secs_f64();
        self.telemetry.instruments.process_duration.record(seconds, &attributes);
    }

    /// Records the end of deliveries that left our hands, with the queue's answer.
    fn end_deliveries(
        &self,
        gone: Vec<(LockToken, &'static str)>,
        (began, at): (Instant, SystemTime),
        result: &Result<(), QueueError>,
    ) {
        self.measure(("settle", "settle"), began, result);
        let error = result.as_ref().err().map(error_type);
        for (lock, disposition) in gone {
            self.record_settle(self.parent_of(lock), disposition, at, error);
            self.end_processing(lock, error.map_or(Ok(disposition), Err));
        }
    }

    fn record_settle(
        &self,
        parent: Option<TraceParent>,
        disposition: &'static str,
        at: SystemTime,
        error: Option<&'static str>,
    ) {
        // The hand-out is no longer open: there is no span to attach to.
        let Some(parent) = parent else { return };
        let mut attributes = self.attributes(disposition, "settle");
        attributes.push(KeyValue::new(names::DISPOSITION, disposition));
        let name = self.name("settle");
        let kind = SpanKind::Client;
        let begin = SpanStart { name, kind, parent: Some(parent), at, attributes };
        let mut span = self.telemetry.begin_span(begin);
        if let Some(error) = error {
            span::mark_failed(&mut span, error.to_owned());
        }
        span.end();
    }

    fn parent_of(&self, lock: LockToken) -> Option<TraceParent> {
        self.open().get(&lock).map(|processing| span::traceparent(&processing.span))
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<LockToken, OpenDelivery>> {
        lock(&self.open)
    }
}

#[async_trait]
impl Queue for InstrumentedQueue {
    fn keeps_one_of_each(&self) -> bool {
        self.inner.keeps_one_of_each()
    }

    async fn send(&self, mut jobs: Vec<Job>) -> Result<SendCounts, QueueError> {
        let began = Instant::now();
        let mut spans = self.begin_send_spans(&mut jobs);
        let result = self.inner.send(jobs).await;
        self.measure(("send", "send"), began, &result);
        match &result {
            Ok(sent) => {
                let attributes = self.attributes("send", "send");
                self.telemetry.instruments.sent.add(sent.accepted, &attributes);
            }
            Err(error) => {
                spans
                    .iter_mut()
                    .for_each(|span| span::mark_failed(span, error_type(error).to_owned()));
            }
        }
        spans.iter_mut().for_each(|span| span.end());
        result
    }

    async fn receive(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        let (began, at) = (Instant::now(), SystemTime::now());
        let mut result = self.inner.receive(max, wait).await;
        // For an empty queue it would only measure how long we were ready to wait.
        if !result.as_ref().is_ok_and(Vec::is_empty) {
            self.measure(("receive", "receive"), began, &result);
        }
        if let Ok(deliveries) = &mut result
            && !deliveries.is_empty()
        {
            self.record_receive(at, deliveries);
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
        self.end_deliveries(gone, now, &result);
        result
    }

    async fn defer(&self, postponements: Vec<DeferOrder>) -> Result<(), QueueError> {
        let now = (Instant::now(), SystemTime::now());
        let gone = postponements.iter().map(|p| (p.lock(), "defer")).collect();
        let result = self.inner.defer(postponements).await;
        self.end_deliveries(gone, now, &result);
        result
    }

    async fn abandon(&self, locks: &[LockToken]) -> Result<(), QueueError> {
        let now = (Instant::now(), SystemTime::now());
        let result = self.inner.abandon(locks).await;
        self.end_deliveries(locks.iter().map(|lock| (*lock, "abandon")).collect(), now, &result);
        result
    }

    async fn depth(&self) -> Result<QueueDepth, QueueError> {
        self.inner.depth().await
    }

    async fn peek(&self, sought: &PeekFilter) -> Result<PeekResult, QueueError> {
        self.inner.peek(sought).await
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
        // Deliveries still open were not settled by us; their spans end here.
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
