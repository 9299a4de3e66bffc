//! A collector that others wrote, and what it was sent.

use std::collections::HashMap;

use serde_json::Value;

use crate::peer::Peer;

/// The receiver of `tests/peers/otlp.py`.
pub struct Receiver(Peer);

impl Receiver {
    /// None where there is no interpreter for it.
    pub fn start() -> Option<Self> {
        Peer::start("otlp.py", &[]).map(Self)
    }

    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Everything that was accepted, as one text.
    pub fn text(&self) -> String {
        self.0.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn spans(&self) -> Vec<Span> {
        let lines = self.0.lines();
        let requests = lines.iter().filter(|line| line["path"] == "/v1/traces");
        let mut spans = Vec::new();
        for request in requests {
            for resource in many(&request["request"]["resourceSpans"]) {
                let about = attributes(&resource["resource"]["attributes"]);
                for scope in many(&resource["scopeSpans"]) {
                    spans.extend(many(&scope["spans"]).iter().map(|span| Span::new(span, &about)));
                }
            }
        }
        spans
    }

    /// All metrics: name, unit and kind of data.
    pub fn metrics(&self) -> Vec<(String, String, &'static str)> {
        let lines = self.0.lines();
        let requests = lines.iter().filter(|line| line["path"] == "/v1/metrics");
        let resources = requests.flat_map(|line| many(&line["request"]["resourceMetrics"]));
        let scopes = resources.flat_map(|resource| many(&resource["scopeMetrics"]));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = |metric: &Value| {
            let kinds = ["sum", "gauge", "histogram"];
            kinds.into_iter().find(|kind| metric.get(kind).is_some()).unwrap()
        };
        let metrics = scopes.flat_map(|scope| many(&scope["metrics"]));
        metrics.map(|metric| (text(&metric["name"]), text(&metric["unit"]), kind(metric))).collect()
    }

    /// The points of one metric, from all processes, the latest last: attributes and point.
    pub fn points(&self, metric: &str) -> Vec<(HashMap<String, Value>, Value)> {
        let lines = self.0.lines();
        let requests = lines.iter().filter(|line| line["path"] == "/v1/metrics");
        let mut points = Vec::new();
        for request in requests {
            for resource in many(&request["request"]["resourceMetrics"]) {
                for scope in many(&resource["scopeMetrics"]) {
                    let found = many(&scope["metrics"]).iter().filter(|m| m["name"] == metric);
                    for kind in found.flat_map(|m| ["sum", "gauge", "histogram"].map(|k| &m[k])) {
                        let of = |p: &Value| (attributes(&p["attributes"]), p.clone());
                        points.extend(many(&kind["dataPoints"]).iter().map(of));
                    }
                }
            }
        }
        points
    }
}

#[derive(Debug, Clone)]
pub struct Span {
    pub name: String,
    pub kind: String,
    pub trace: String,
    pub id: String,
    /// Empty of the first of a trace.
    pub parent: String,
    pub is_error: bool,
    pub links: usize,
    pub attributes: HashMap<String, Value>,
    pub resource: HashMap<String, Value>,
}

impl Span {
    fn new(span: &Value, resource: &HashMap<String, Value>) -> Self {
        let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
        Self {
            name: text("name"),
            kind: text("kind"),
            trace: text("traceId"),
            id: text("spanId"),
            parent: text("parentSpanId"),
            is_error: span["status"]["code"] == "STATUS_CODE_ERROR",
            links: many(&span["links"]).len(),
            attributes: attributes(&span["attributes"]),
            resource: resource.clone(),
        }
    }

    pub fn text(&self, name: &str) -> &str {
        self.attributes.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number, which OTLP writes as text.
    pub fn number(&self, name: &str) -> Option<i64> {
        self.attributes.get(name)?.as_str()?.parse().ok()
    }
}

fn many(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Names and values, without the types around these.
fn attributes(list: &Value) -> HashMap<String, Value> {
    let value = |typed: &Value| typed.as_object().and_then(|o| o.values().next()).cloned();
    let pair = |kv: &Value| {
        (kv["key"].as_str().unwrap().to_owned(), value(&kv["value"]).unwrap_or_default())
    };
    many(list).iter().map(pair).collect()
}
