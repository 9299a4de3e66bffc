//! Spans with a parent from a job's `traceparent`.

use std::time::SystemTime;

use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::Span;

use super::active::Telemetry;
use super::names::ERROR_TYPE;
use domain::job::TraceParent;

/// Initial state of a span.
pub(super) struct SpanStart {
    pub(super) name: String,
    pub(super) kind: SpanKind,
    /// `None` begins a trace.
    pub(super) parent: Option<TraceParent>,
    pub(super) at: SystemTime,
    pub(super) attributes: Vec<KeyValue>,
}

impl Telemetry {
    pub(super) fn begin_span(&self, begin: SpanStart) -> Span {
        let builder = SpanBuilder::from_name(begin.name)
            .with_kind(begin.kind)
            .with_start_time(begin.at)
            .with_attributes(begin.attributes);
        self.tracer.build_with_context(builder, &context(begin.parent))
    }
}

/// Returns the span's `traceparent`, for the spans that follow it in a message.
pub(super) fn traceparent(span: &Span) -> TraceParent {
    let context = span.span_context();
    TraceParent {
        trace_id: context.trace_id().to_bytes(),
        span_id: context.span_id().to_bytes(),
        flags: context.trace_flags().to_u8(),
    }
}

pub(super) fn span_context(parent: TraceParent) -> SpanContext {
    SpanContext::new(
        TraceId::from_bytes(parent.trace_id),
        SpanId::from_bytes(parent.span_id),
        TraceFlags::new(parent.flags),
        true,
        TraceState::NONE,
    )
}

fn context(parent: Option<TraceParent>) -> Context {
    // Not the thread's own context: that may hold another task's span.
    match parent {
        Some(parent) => Context::new().with_remote_span_context(span_context(parent)),
        None => Context::new(),
    }
}

/// Marks the span as failed. `kind` has few values, by the conventions.
pub(super) fn mark_failed(span: &mut Span, kind: String) {
    span.set_status(Status::error(""));
    span.set_attribute(KeyValue::new(ERROR_TYPE, kind));
}
