//! A collector that others wrote, and what it was sent.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// The receiver of `tests/peers/otlp.py`; it ends with this value.
pub struct Receiver {
    child: Child,
    pub url: String,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Receiver {
    /// None where there is no interpreter for it.
    pub fn start() -> Option<Self> {
        let python = std::env::var("PROMPTMILL_PEER_PYTHON").ok().filter(|p| !p.is_empty())?;
        let mut child = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/otlp.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let into = lines.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                into.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Some(Self { child, url: format!("http://127.0.0.1:{}", port.trim()), lines })
    }

    /// Everything that was accepted, as one text.
    pub fn text(&self) -> String {
        self.lines.lock().unwrap().iter().map(|line| format!("{line}\n")).collect()
    }

    pub fn spans(&self) -> Vec<Span> {
        let lines = self.lines.lock().unwrap();
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

    /// The points of one metric, from all processes, the latest last: attributes and point.
    pub fn points(&self, metric: &str) -> Vec<(HashMap<String, Value>, Value)> {
        let lines = self.lines.lock().unwrap();
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

impl Drop for Receiver {
    fn drop(&mut self) {
        // It ends when its input does; the collector behind it ends with it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
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
