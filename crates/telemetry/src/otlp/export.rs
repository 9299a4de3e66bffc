//! Exporters: OTLP over HTTP, by the same client and TLS as everything else.
//!
//! The SDK's own threads collect and encode; the requests run on our tokio runtime. An unreachable
//! receiver is logged once, and again when it is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::{info, warn};
use uuid::Uuid;

use crate::settings::{ExportPlan, SignalTarget, TelemetryError};

/// Spans that wait to be sent: some seconds of a fast worker. `OTEL_BSP_MAX_QUEUE_SIZE` is used
/// instead where it is set.
const SPAN_QUEUE_SIZE: usize = 16_384;

/// Longest answer that is read: no receiver of OTLP sends a longer one.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Builds the tracer and meter providers, with their exporters.
pub(super) fn providers(
    plan: &ExportPlan,
) -> Result<(SdkTracerProvider, SdkMeterProvider), TelemetryError> {
    let resource = resource(plan);
    let mut tracers = SdkTracerProvider::builder().with_resource(resource.clone());
    match &plan.traces {
        Some(signal) => {
            let http = OtlpHttpClient::new("traces", signal.timeout)?;
            let exporter = SpanExporter::builder().with_http().with_http_client(http);
            let exporter = with_url(exporter, signal).build()?;
            let mut limits = BatchConfigBuilder::default();
            if std::env::var_os("OTEL_BSP_MAX_QUEUE_SIZE").is_none() {
                limits = limits.with_max_queue_size(SPAN_QUEUE_SIZE);
            }
            let batches = BatchSpanProcessor::builder(exporter).with_batch_config(limits.build());
            tracers = tracers.with_span_processor(batches.build());
        }
        None => tracers = tracers.with_sampler(opentelemetry_sdk::trace::Sampler::AlwaysOff),
    }
    let mut meters = SdkMeterProvider::builder().with_resource(resource);
    if let Some(signal) = &plan.metrics {
        let http = OtlpHttpClient::new("metrics", signal.timeout)?;
        let exporter = MetricExporter::builder().with_http().with_http_client(http);
        meters = meters.with_periodic_exporter(with_url(exporter, signal).build()?);
    }
    Ok((tracers.build(), meters.build()))
}

fn with_url<B: WithExportConfig>(exporter: B, signal: &SignalTarget) -> B {
    let exporter = exporter.with_timeout(signal.timeout);
    match &signal.url {
        Some(url) => exporter.with_endpoint(url),
        None => exporter,
    }
}

/// Returns the resource. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` override the file.
fn resource(plan: &ExportPlan) -> Resource {
    let own = [
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(own)
        .with_service_name(plan.service_name.clone())
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// HTTP client that sends on our runtime, from any thread.
#[derive(Debug)]
struct OtlpHttpClient {
    signal: &'static str,
    http: reqwest::Client,
    runtime: Handle,
    failing: AtomicBool,
}

impl OtlpHttpClient {
    fn new(signal: &'static str, timeout: Duration) -> Result<Self, TelemetryError> {
        let http =
            http_client::builder().timeout(timeout).build().map_err(TelemetryError::Client)?;
        Ok(Self { signal, http, runtime: Handle::current(), failing: AtomicBool::new(false) })
    }

    fn log_state_change(&self, trouble: Option<String>) {
        let before = self.failing.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(why) if !before => {
                warn!(signal = self.signal, why, "telemetry can't be sent and is dropped");
            }
            None if before => info!(signal = self.signal, "telemetry is sent again"),
            _ => {}
        }
    }
}

#[async_trait]
impl HttpClient for OtlpHttpClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut request = reqwest::Request::try_from(request)?;
        // Any header that the variables set may be a key, which no log must show.
        request.headers_mut().values_mut().for_each(|value| value.set_sensitive(true));
        // The calling thread has no runtime of its own.
        let sent = self.runtime.spawn(send(self.http.clone(), request)).await?;
        self.log_state_change(match &sent {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the receiver answers with {}", response.status())),
            Err(error) => Some(error.to_string()),
        });
        Ok(sent?)
    }
}

async fn send(
    http: reqwest::Client,
    request: reqwest::Request,
) -> Result<Response<Bytes>, HttpError> {
    // The URL may hold a key.
    let mut answer = http.execute(request).await.map_err(reqwest::Error::without_url)?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_RESPONSE_BYTES {
            return Err("the answer is longer than 1 MiB".into());
        }
    }
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = answer.status();
    *response.headers_mut() = std::mem::take(answer.headers_mut());
    Ok(response)
}
