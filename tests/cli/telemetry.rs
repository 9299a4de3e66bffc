//! Telemetry, held against OpenTelemetry's own classes and a collector that others wrote.
//!
//! Needs a Python interpreter with `opentelemetry-proto` and `rotel`, named by PROMPTMILL_PEER_PYTHON;
//! says so where there is none.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stderr, reason = "who runs the tests learns what did not run")]

use std::collections::{BTreeSet, HashMap, HashSet};
use test_support as support;

use promptmill::simulator::{FaultRates, SimulatorSettings};
use serde_json::Value;
use support::broker;
use support::cli::{Ended, Place, chat};
use support::otlp::{Receiver, Span};
use support::service::Service;

const JOBS: usize = 40;

/// In every prompt, and so in every answer of the simulator's echo.
const PROMPT: &str = "a-word-that-only-a-prompt-has";

fn receiver() -> Option<Receiver> {
    let receiver = Receiver::start();
    if receiver.is_none() {
        eprintln!("not run: PROMPTMILL_PEER_PYTHON is not set");
    }
    receiver
}

fn place(service: &Service, more: &str) -> Place {
    let place = Place::new();
    let lines =
        (0..JOBS).map(|i| format!("{}\n", chat(&format!("j{i}"), &format!("{PROMPT} {i}"), 16)));
    place.write("in.jsonl", lines.collect::<String>());
    let deployment = format!(
        "[[deployments]]\nname = \"east\"\nendpoint = \"{}\"\ntpm = 9000000\n",
        service.url()
    );
    place.write("promptmill.toml", format!("{more}{deployment}"));
    place
}

/// Every process by itself; all log JSON, of everything.
fn through(place: &Place, env: &[(&str, &str)]) -> Vec<Ended> {
    let commands: [&[&str]; 2] = [&["enqueue", "in.jsonl", "--batch", "b"], &["work", "--drain"]];
    let run = |args: &&[&str]| {
        let mut command = place.command(args);
        command.args(["--log-format", "json"]).envs(env.iter().copied());
        let ended = Ended::from(command.output().unwrap());
        assert!(matches!(ended.code, Some(0 | 1)), "{}", ended.log);
        ended
    };
    commands.iter().map(run).collect()
}

#[test]
fn a_job_is_one_trace_over_two_processes_by_the_conventions() {
    let Some(receiver) = receiver() else { return };
    let faults = FaultRates { rate_500: 0.2, rate_429: 0.1, ..FaultRates::default() };
    let service = Service::start(SimulatorSettings { faults, ..SimulatorSettings::default() });
    let place = place(&service, "");
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken-of-entra"),
    ];
    let ends = through(&place, &env);

    let spans = receiver.spans();
    let sent: Vec<_> = spans.iter().filter(|span| span.name == "send local").collect();
    assert_eq!(sent.len(), JOBS);
    let traces: HashSet<_> = sent.iter().map(|span| &span.trace).collect();
    assert_eq!(traces.len(), JOBS, "each job is a trace of its own");
    for send in sent {
        let trace: Vec<_> = spans.iter().filter(|span| span.trace == send.trace).collect();
        a_whole_trace(&trace);
    }
    let calls = spans.iter().filter(|span| span.name.starts_with("chat ")).count();
    assert_eq!(calls as u64, service.ledger().requests, "each call is a span");
    assert!(spans.iter().any(|span| span.is_error), "faults are told");

    measurements(&receiver, &service);
    documented(&receiver);
    let log: String = ends.iter().map(|ended| ended.log.clone()).collect();
    for line in log.lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<Value>(line).unwrap();
    }
    assert!(log.contains(r#""message":"call ended""#), "the log is JSON");
    assert!(!log.contains("telemetry can't be sent"), "the collector takes everything");
    assert!(!receiver.text().contains(PROMPT) && !log.contains(PROMPT), "no prompt is told");
}

/// The spans of one job: their order, names, kinds and attributes.
fn a_whole_trace(trace: &[&Span]) {
    let find = |name: &str| trace.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let one = |name: &str| match find(name).as_slice() {
        [one] => **one,
        several => panic!("{} spans '{name}' in {trace:#?}", several.len()),
    };
    let (send, process) = (one("send local"), one("process local"));
    let (record, settle) = (one("record"), one("settle local"));
    let calls = find("chat gpt-4.1-mini");
    assert!(!calls.is_empty() && calls.len() + 4 == trace.len(), "{trace:#?}");
    assert_eq!((send.parent.as_str(), &process.parent), ("", &send.id));
    let children = calls.iter().map(|call| **call).chain([record, settle]);
    children.for_each(|child| assert_eq!(child.parent, process.id, "{child:#?}"));

    let kinds =
        [(send, "PRODUCER"), (process, "CONSUMER"), (record, "INTERNAL"), (settle, "CLIENT")];
    for (span, kind) in kinds {
        assert_eq!(span.kind, format!("SPAN_KIND_{kind}"), "{}", span.name);
    }
    for (span, operation) in [(send, "send"), (process, "process"), (settle, "settle")] {
        assert_eq!(span.text("messaging.operation.type"), operation);
        assert_eq!(span.text("messaging.system"), "promptmill");
        assert_eq!(span.text("messaging.destination.name"), "local");
    }
    assert_eq!(send.text("messaging.message.id"), process.text("messaging.message.id"));
    assert_eq!(process.text("messaging.message.conversation_id"), "b");
    assert_eq!(process.number("messaging.servicebus.message.delivery_count"), Some(1));
    assert_eq!(settle.text("messaging.servicebus.disposition_status"), "complete");
    assert_eq!(record.text("promptmill.ending"), "succeeded");
    assert_ne!(send.resource["service.instance.id"], process.resource["service.instance.id"]);
    assert_eq!(send.resource["service.name"], "promptmill");

    let (answered, failed): (Vec<&Span>, Vec<&Span>) =
        calls.iter().copied().partition(|call| !call.is_error);
    assert_eq!(answered.len(), 1);
    failed.iter().for_each(|call| assert_ne!(call.text("error.type"), "", "{call:#?}"));
    let call = answered[0];
    assert_eq!(call.kind, "SPAN_KIND_CLIENT");
    assert_eq!(call.text("gen_ai.operation.name"), "chat");
    assert_eq!(call.text("gen_ai.provider.name"), "openai");
    assert_eq!(call.text("gen_ai.request.model"), "gpt-4.1-mini");
    assert_eq!(call.text("server.address"), "127.0.0.1");
    assert!(call.number("server.port").is_some());
    assert_eq!(call.number("gen_ai.request.max_tokens"), Some(16));
    assert!(call.number("gen_ai.usage.input_tokens").unwrap() > 0);
    assert!(call.number("gen_ai.usage.output_tokens").unwrap() > 0);
    assert_eq!(call.number("http.response.status_code"), Some(200));
    // A refusal for quota is no try.
    let tries = failed.iter().filter(|call| call.text("error.type") != "429").count();
    assert_eq!(call.number("promptmill.try"), Some(tries as i64 + 1));
    assert!(call.attributes.contains_key("gen_ai.response.finish_reasons"));
}

fn measurements(receiver: &Receiver, service: &Service) {
    let ledger = service.ledger();
    let sum = |metric: &str, field: &str, of: &dyn Fn(&HashMap<String, Value>) -> bool| -> f64 {
        let points = receiver.points(metric);
        let points = points.iter().filter(|(attributes, _)| of(attributes));
        let value = |point: &Value| match &point[field] {
            Value::String(text) => text.parse::<f64>().unwrap(),
            other => other.as_f64().unwrap(),
        };
        points.map(|(_, point)| value(point)).sum()
    };
    let any = |_: &HashMap<String, Value>| true;
    let jobs = JOBS as f64;
    assert_eq!(
        sum("promptmill.outcomes", "asInt", &|a| a["promptmill.ending"] == "succeeded"),
        jobs
    );
    assert_eq!(sum("messaging.client.sent.messages", "asInt", &any), jobs);
    assert_eq!(sum("messaging.client.consumed.messages", "asInt", &any), jobs);
    assert_eq!(sum("messaging.process.duration", "count", &any), jobs);
    assert_eq!(sum("gen_ai.client.operation.duration", "count", &any), ledger.requests as f64);
    let input = |a: &HashMap<String, Value>| a["gen_ai.token.type"] == "input";
    let output = |a: &HashMap<String, Value>| a["gen_ai.token.type"] == "output";
    assert_eq!(
        sum("gen_ai.client.token.usage", "sum", &input),
        ledger.billed.usage.prompt_tokens as f64
    );
    assert_eq!(
        sum("gen_ai.client.token.usage", "sum", &output),
        ledger.billed.usage.completion_tokens as f64
    );
    // Refusals lower what is learnt of it.
    for (attributes, point) in receiver.points("promptmill.quota.limit") {
        assert_eq!(attributes["promptmill.deployment"], "east");
        let limit = point["asDouble"].as_f64().unwrap();
        assert!(limit > 0.0 && limit <= 9e6, "{limit}");
    }
    for metric in ["quota.limit", "quota.used", "quota.share", "in_flight", "held"] {
        assert!(!receiver.points(&format!("promptmill.{metric}")).is_empty(), "{metric}");
    }
}

/// Every metric is in the document's table, with the name that Prometheus gives it by its rules, and no
/// other metric is.
fn documented(receiver: &Receiver) {
    let prometheus = |(name, unit, kind): (String, String, &str)| {
        let suffix = match (unit.as_str(), kind) {
            ("s", _) => "_seconds",
            ("1", "gauge") => "_ratio",
            (_, "sum") => "_total",
            _ => "",
        };
        let translated = format!("{}{suffix}", name.replace('.', "_"));
        (name, translated)
    };
    let told: BTreeSet<_> = receiver.metrics().into_iter().map(prometheus).collect();
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let row = |line: &str| -> Option<(String, String)> {
        let cells: Vec<_> = line.strip_prefix("| `")?.strip_suffix("` |")?.split('|').collect();
        (cells.len() == 4).then(|| (cell(cells[0]), cell(cells[3])))
    };
    let document = include_str!("../../docs/telemetry.md");
    let metrics = document.split("## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
    assert_eq!(told, metrics.lines().filter_map(row).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn over_service_bus_a_trace_goes_on_where_others_began_it() {
    let Some(receiver) = receiver() else { return };
    let simulator =
        promptmill::simulator::start("127.0.0.1:0".parse().unwrap(), SimulatorSettings::default());
    let simulator = simulator.await.unwrap();
    let broker = broker::start(broker::jobs()).await;
    let place = Place::new();
    place.write("in.jsonl", format!("{}\n", chat("ours", PROMPT, 16)));
    let text = format!(
        "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n\
         [[deployments]]\nendpoint = \"http://{}/openai/v1\"\n",
        broker::JOBS,
        broker.connection_string(),
        simulator.addr()
    );
    place.write("promptmill.toml", text);
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url())];
    let step = |args: &[&str]| {
        let ended = Ended::from(place.command(args).envs(env).output().unwrap());
        assert_eq!(ended.code, Some(0), "{}", ended.err);
    };
    step(&["enqueue", "in.jsonl", "--batch", "b"]);
    let python = std::env::var("PROMPTMILL_PEER_PYTHON").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/service_bus_trace.py");
    let output = std::process::Command::new("timeout")
        .args(["60", &python, script, &broker.connection_string(), broker::JOBS])
        .arg(format!("00-{}-{}-01", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    step(&["work", "--drain"]);

    let spans = receiver.spans();
    let find = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let (send, call) = (find("send jobs"), find("chat gpt-4.1-mini"));
    assert_eq!(send.trace, call.trace);
    assert_eq!(call.text("gen_ai.provider.name"), "azure.ai.openai");
    assert_eq!(send.text("messaging.system"), "servicebus");
    // OTLP's JSON has ids in base64.
    let theirs = find("embeddings text-embedding-3-small");
    assert_eq!(theirs.trace, "CvdlGRbNQ92ESOshHIAxnA==");
    let process: Vec<_> = spans.iter().filter(|span| span.name == "process jobs").collect();
    assert_eq!(process.len(), 2);
    assert!(process.iter().any(|span| span.parent == "t61rcWkgMzE="), "of their span");
    let receives = spans.iter().filter(|span| span.name == "receive jobs");
    assert_eq!(receives.map(|span| span.links).sum::<usize>(), 2, "a link to each message");
}

#[test]
fn content_is_told_to_those_who_switched_it_on() {
    let Some(receiver) = receiver() else { return };
    let service = Service::start(SimulatorSettings::default());
    let telemetry = format!("[telemetry]\nendpoint = \"{}\"\ncontent = true\n", receiver.url());
    let place = place(&service, &telemetry);
    through(&place, &[("OTEL_SERVICE_NAME", "night-shift")]);
    let spans = receiver.spans();
    let call = spans.iter().find(|span| span.name.starts_with("chat ")).unwrap();
    let input: Value = serde_json::from_str(call.text("gen_ai.input.messages")).unwrap();
    assert_eq!(input[0]["role"], "user");
    assert!(input[0]["parts"][0]["content"].as_str().unwrap().starts_with(PROMPT), "{input}");
    let output: Value = serde_json::from_str(call.text("gen_ai.output.messages")).unwrap();
    assert_eq!(output[0]["role"], "assistant");
    assert_eq!(call.resource["service.name"], "night-shift");
}

#[test]
fn of_a_sampled_part_the_traces_are_whole() {
    let Some(receiver) = receiver() else { return };
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, "");
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url()),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.5"),
    ];
    through(&place, &env);
    let spans = receiver.spans();
    let sent = spans.iter().filter(|span| span.name == "send local").count();
    assert!((1..JOBS).contains(&sent), "{sent} of {JOBS}");
    for name in ["process local", "chat gpt-4.1-mini", "record", "settle local"] {
        assert_eq!(spans.iter().filter(|span| span.name == name).count(), sent, "{name}");
    }
}

#[test]
fn a_receiver_that_is_away_costs_telemetry_and_nothing_else() {
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, "");
    // A port that was free a moment ago refuses; the other takes connections and never answers.
    let refuses = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [refuses, silent.local_addr().unwrap()] {
        let began = tokio::time::Instant::now();
        let url = format!("http://{address}");
        let ends = through(&place, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &url)]);
        assert!(ends.iter().all(|ended| ended.code == Some(0)));
        assert!(ends.iter().any(|ended| ended.log.contains("telemetry")), "it is told once");
        assert!(began.elapsed().as_secs() < 60);
    }
    let results = place.run(&["results", "b", "--out", "o", "--errors", "e"]);
    assert_eq!(results.code, Some(0), "{}", results.err);
    assert_eq!(place.ids("o").len(), JOBS);
}

#[test]
fn what_can_not_be_sent_as_asked_is_told_at_start() {
    let place = Place::new();
    let mut command = place.command(&["status"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let ended = Ended::from(command.output().unwrap());
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"), "{}", ended.err);
}
