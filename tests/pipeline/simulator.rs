//! The simulator over the wire: what a caller sees, and what the ledger says about it.

#![expect(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::process::Command;
use std::time::Duration;

use promptmill::simulator::{
    self, FaultRates, LedgerSnapshot, SimulatedLatency, Simulator, SimulatorSettings,
};
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};

const CLASSIC: &str = "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21";

/// A simulator and somebody who calls it.
struct Host {
    sim: Simulator,
    client: Client,
}

async fn start(settings: SimulatorSettings) -> Host {
    let sim = simulator::start(([127, 0, 0, 1], 0).into(), settings).await.unwrap();
    Host { sim, client: promptmill::http_client::builder().no_proxy().build().unwrap() }
}

impl Host {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.sim.addr())
    }

    async fn post(&self, path: &str, body: &Value) -> reqwest::Result<Response> {
        let request = self.client.post(self.url(path)).header("api-key", "k");
        request.body(body.to_string()).send().await
    }

    fn ledger(&self) -> LedgerSnapshot {
        self.sim.ledger()
    }
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn chat(prompt: &str) -> Value {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": prompt}], "max_tokens": 20})
}

fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

/// The JSON of each server-sent event.
fn events(text: &str) -> Vec<Value> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn every_url_shape_answers_with_usage() {
    let host = start(SimulatorSettings::default()).await;
    for path in [CLASSIC, "/openai/v1/chat/completions", "/v1/chat/completions"] {
        let response = host.post(path, &chat("hello")).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let body = json_of(response).await;
        assert_eq!(body["object"], "chat.completion");
        assert_eq!(body["model"], "gpt-4o-2024-08-06", "the version, not the deployment");
        assert_eq!(body["usage"]["prompt_tokens"], 8, "'hello' and its framing");
        assert!(body["usage"]["completion_tokens"].as_u64().unwrap() <= 20);
    }
    let input = json!({"model": "gpt-4o", "input": "hello"});
    for path in ["/openai/v1/responses", "/openai/responses?api-version=2025-04-01-preview"] {
        let body = json_of(host.post(path, &input).await.unwrap()).await;
        assert_eq!(body["object"], "response");
        assert_eq!(body["usage"]["input_tokens"], 8);
    }
    let path = "/openai/deployments/text-embedding-3-small/embeddings?api-version=2024-10-21";
    let input = json!({"input": ["one", "two words"], "dimensions": 8});
    let body = json_of(host.post(path, &input).await.unwrap()).await;
    assert_eq!(body["data"][1]["embedding"].as_array().unwrap().len(), 8);
    assert_eq!(body["usage"]["total_tokens"], 3);

    let ledger = host.ledger();
    assert_eq!((ledger.requests, ledger.answered, ledger.billed.requests), (6, 6, 6));
    assert_eq!(ledger.prompts, 3, "one for each API");
    assert_eq!(ledger.billed_more_than_once.prompts, 2);
    assert_eq!(ledger.billed_more_than_once.excess_requests, 3);
}

#[tokio::test]
async fn answers_bring_the_headers_that_callers_pace_themselves_by() {
    let settings =
        SimulatorSettings { tpm: Some(60_000), rpm: Some(600), ..SimulatorSettings::default() };
    let host = start(settings).await;
    let request = host.client.post(host.url(CLASSIC)).header("x-ms-client-request-id", "mine");
    let response = request.body(chat("hello").to_string()).send().await.unwrap();
    assert_eq!(header(&response, "x-ms-client-request-id"), Some("mine"));
    assert_eq!(header(&response, "x-ms-deployment-name"), Some("gpt-4o"));
    assert_eq!(header(&response, "x-ratelimit-limit-tokens"), Some("60000"));
    assert_eq!(header(&response, "x-ratelimit-remaining-tokens"), Some("59972"), "8 + 20 booked");
    assert_eq!(header(&response, "x-ratelimit-limit-requests"), Some("600"));
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), Some("599"));
    for name in [
        "apim-request-id",
        "x-request-id",
        "x-ms-region",
        "azureml-model-session",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
    ] {
        assert!(header(&response, name).is_some(), "{name}");
    }
}

#[tokio::test]
async fn a_full_window_refuses_and_says_when_to_come_back() {
    let window = Duration::from_millis(500);
    let settings =
        SimulatorSettings { tpm: Some(60 * 120), window, ..SimulatorSettings::default() };
    let host = start(settings).await;
    // A window has 60 tokens, and each of these is booked with 28.
    let mut refused = None;
    for _ in 0..5 {
        let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(response);
            break;
        }
    }
    let refused = refused.expect("the third in a window is too many");
    let wait: u64 = header(&refused, "retry-after-ms").unwrap().parse().unwrap();
    assert!((1..=500).contains(&wait), "{wait}");
    assert_eq!(header(&refused, "retry-after"), Some("1"));
    assert_eq!(json_of(refused).await["error"]["code"], "429");

    tokio::time::sleep(Duration::from_millis(wait)).await;
    let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "it came back when it was told to");

    let ledger = host.ledger();
    assert!(ledger.windows.iter().all(|w| w.window.charged <= 60), "{:?}", ledger.windows);
    assert_eq!(ledger.refused.by_tokens, 1);
}

#[tokio::test]
async fn a_request_that_never_fits_is_told_to_come_back_tomorrow() {
    let host = start(SimulatorSettings { tpm: Some(27), ..SimulatorSettings::default() }).await;
    let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response, "retry-after"), Some("86400"));
}

#[tokio::test]
async fn a_quota_changes_while_it_runs() {
    let host = start(SimulatorSettings { tpm: Some(27), ..SimulatorSettings::default() }).await;
    host.sim.set_quota(Some(1_000), None);
    let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    host.sim.set_quota(None, Some(0));
    let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(host.ledger().refused.by_requests, 1);
}

#[tokio::test]
async fn each_deployment_has_its_own_quota() {
    let host = start(SimulatorSettings { tpm: Some(30), ..SimulatorSettings::default() }).await;
    for (name, status) in [("one", 200), ("two", 200), ("one", 429)] {
        let path = CLASSIC.replace("gpt-4o", name);
        let response = host.post(&path, &chat("hello")).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}");
    }
}

#[tokio::test]
async fn responses_can_bring_rate_headers_without_meaning() {
    let odd_rate_headers = true;
    let host = start(SimulatorSettings {
        tpm: Some(1_000),
        odd_rate_headers,
        ..SimulatorSettings::default()
    })
    .await;
    let input = json!({"model": "gpt-4o", "input": "hello", "max_output_tokens": 20});
    let response = host.post("/openai/v1/responses", &input).await.unwrap();
    assert_eq!(header(&response, "x-ratelimit-remaining-tokens"), Some("-1"));
    assert_eq!(header(&response, "x-ratelimit-reset-tokens"), Some("0"));
    let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
    assert_eq!(header(&response, "x-ratelimit-remaining-tokens"), Some("944"), "28 + 28 booked");
}

#[tokio::test]
async fn a_caller_who_hangs_up_pays_all_the_same() {
    let latency = SimulatedLatency { base_ms: 60_000.0, ..SimulatedLatency::default() };
    let host = start(SimulatorSettings { latency, ..SimulatorSettings::default() }).await;
    let call = host.client.post(host.url(CLASSIC)).body(chat("hello").to_string());
    let call = tokio::spawn(call.send());
    while host.ledger().requests == 0 {
        tokio::task::yield_now().await;
    }
    call.abort();
    let ledger = host.ledger();
    assert_eq!((ledger.answered, ledger.billed.requests), (0, 1));
}

#[tokio::test]
async fn a_chat_stream_ends_with_usage_and_done() {
    let host = start(SimulatorSettings::default()).await;
    let mut body = chat("hello");
    let whole = json_of(host.post(CLASSIC, &body).await.unwrap()).await;
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let response = host.post(CLASSIC, &body).await.unwrap();
    assert!(header(&response, "content-type").unwrap().starts_with("text/event-stream"));
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    let chunks = events(&text);
    assert_eq!(chunks[0]["choices"], json!([]), "the prompt's filter verdicts come first");
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
    let text: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(host.ledger().prompts, 1, "streamed or not, it is the same prompt");
}

#[tokio::test]
async fn a_stream_takes_its_time_and_is_counted_when_it_is_over() {
    let latency = SimulatedLatency { base_ms: 50.0, per_token_ms: 10.0, sigma: 0.0 };
    let host = start(SimulatorSettings { latency, ..SimulatorSettings::default() }).await;
    let mut body = chat("hello");
    body["stream"] = true.into();
    let before = tokio::time::Instant::now();
    let mut response = host.post(CLASSIC, &body).await.unwrap();
    let mut pieces = 0;
    while response.chunk().await.unwrap().is_some() {
        pieces += 1;
    }
    let tokens = host.ledger().billed.usage.completion_tokens;
    assert!(before.elapsed() >= Duration::from_millis(50 + 6 * tokens), "{tokens} tokens");
    assert!(pieces > 2, "{pieces}");
    assert_eq!(host.ledger().answered, 1);
}

#[tokio::test]
async fn a_responses_stream_ends_with_the_whole_response() {
    let host = start(SimulatorSettings::default()).await;
    let body = json!({"model": "gpt-5", "input": "hello", "stream": true});
    let text = host.post("/openai/v1/responses", &body).await.unwrap().text().await.unwrap();
    let events = events(&text);
    assert_eq!(events[0]["type"], "response.created");
    let last = &events.last().unwrap();
    assert_eq!(last["type"], "response.completed");
    let usage = &last["response"]["usage"];
    assert!(usage["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn requests_that_can_never_pass_get_the_service_s_codes() {
    let deployments = vec!["gpt-4o".to_owned(), "o3".to_owned()];
    let host =
        start(SimulatorSettings { deployments, max_context: 100, ..SimulatorSettings::default() })
            .await;
    let v1 = "/openai/v1/chat/completions";
    let with = |field: &str, value: Value| {
        let mut body = chat("hello");
        body[field] = value;
        body
    };
    for (path, body, status, code) in [
        (v1, chat("x [[content_filter]]"), 400, json!("content_filter")),
        (v1, chat("x [[context_length_exceeded]]"), 400, json!("context_length_exceeded")),
        (v1, chat(&"word ".repeat(100)), 400, json!("context_length_exceeded")),
        (v1, with("model", json!("o3")), 400, json!("unsupported_parameter")),
        (v1, with("model", json!("gpt-9")), 404, json!("DeploymentNotFound")),
        (v1, json!({"model": "gpt-4o"}), 400, json!(null)),
        ("/openai/deployments/gpt-4o/chat/completions", chat("x"), 404, json!("404")),
    ] {
        let response = host.post(path, &body).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{body}");
        let error = &json_of(response).await["error"];
        assert_eq!(error["code"], code, "{error}");
    }
    let ledger = host.ledger();
    assert_eq!(ledger.rejected["content_filter"], 1);
    assert_eq!(ledger.rejected["context_length_exceeded"], 2);
    assert_eq!(ledger.admitted.requests, 0);
}

#[tokio::test]
async fn the_wrong_key_is_shown_the_door() {
    let settings =
        SimulatorSettings { api_key: Some("secret".into()), ..SimulatorSettings::default() };
    let host = start(settings).await;
    let response = host.post(CLASSIC, &chat("hello")).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(json_of(response).await["error"]["code"], "401");
    for (name, value) in [("api-key", "secret"), ("authorization", "Bearer secret")] {
        let request = host.client.post(host.url(CLASSIC)).header(name, value);
        let response = request.body(chat("hello").to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{name}");
    }
}

#[tokio::test]
async fn a_reset_is_a_reset_and_is_billed_only_after_the_work() {
    for (faults, billed) in [
        (FaultRates { rate_reset_before: 1.0, ..FaultRates::default() }, 0),
        (FaultRates { rate_reset_after: 1.0, ..FaultRates::default() }, 1),
    ] {
        let host = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
        let error = host.post(CLASSIC, &chat("hello")).await.unwrap_err();
        let mut source = error.source();
        let mut kind = None;
        while let Some(error) = source {
            kind = error.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
            source = error.source();
        }
        assert_eq!(kind, Some(io::ErrorKind::ConnectionReset), "{error:?}");
        let ledger = host.ledger();
        assert_eq!((ledger.answered, ledger.billed.requests), (0, billed));
    }
}

#[tokio::test]
async fn a_truncated_answer_starts_well_and_is_billed() {
    let faults = FaultRates { rate_truncate: 1.0, ..FaultRates::default() };
    let host = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
    for stream in [false, true] {
        let mut body = chat("hello");
        body["stream"] = stream.into();
        let mut response = host.post(CLASSIC, &body).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let first = response.chunk().await.unwrap().expect("half of it arrives");
        assert!(first.starts_with(if stream { b"data: {" } else { b"{\"id\":" }));
        assert!(response.chunk().await.is_err(), "the rest is missed, stream: {stream}");
    }
    let ledger = host.ledger();
    assert_eq!((ledger.answered, ledger.billed.requests, ledger.faults.truncate), (0, 2, 2));
}

#[tokio::test]
async fn a_hang_never_answers() {
    let faults = FaultRates { rate_hang: 1.0, ..FaultRates::default() };
    let host = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
    let call = host.client.post(host.url(CLASSIC)).body(chat("hello").to_string());
    let call = tokio::spawn(call.send());
    while host.ledger().faults.hang == 0 {
        tokio::task::yield_now().await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), call).await.is_err());
    let ledger = host.ledger();
    assert_eq!((ledger.billed.requests, ledger.faults.hang), (1, 1));
}

#[tokio::test]
async fn the_same_seed_brings_the_same_faults_whatever_the_order() {
    let mut runs = Vec::new();
    for reversed in [false, true] {
        let faults = FaultRates::spread(0.6);
        let host =
            start(SimulatorSettings { seed: 3, faults, ..SimulatorSettings::default() }).await;
        let mut prompts: Vec<_> = (0..60).map(|i| format!("prompt {i}")).collect();
        if reversed {
            prompts.reverse();
        }
        let mut ends = BTreeSet::new();
        for prompt in prompts {
            for attempt in 0..3 {
                let status = match host.post(CLASSIC, &chat(&prompt)).await {
                    Ok(response) => {
                        let status = response.status().as_u16();
                        response.bytes().await.map_or(1, |_| status)
                    }
                    Err(_) => 0,
                };
                ends.insert((prompt.clone(), attempt, status));
            }
        }
        let kinds: BTreeSet<_> = ends.iter().map(|(_, _, status)| *status).collect();
        assert_eq!(kinds, BTreeSet::from([0, 1, 200, 408, 500, 503]));
        runs.push(ends);
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test]
async fn the_ledger_can_be_read_and_reset_over_http() {
    let host = start(SimulatorSettings::default()).await;
    for prompt in ["a", "b", "b"] {
        host.post(CLASSIC, &chat(prompt)).await.unwrap().bytes().await.unwrap();
    }
    let url = host.url("/ledger");
    let totals = json_of(host.client.get(&url).send().await.unwrap()).await;
    assert_eq!(totals["prompts"], 2);
    assert_eq!(totals["billed_more_than_once"], json!({"prompts": 1, "excess_requests": 1}));
    assert_eq!(totals, serde_json::to_value(host.ledger()).unwrap());

    let lines = host.client.get(format!("{url}?prompts=true")).send().await.unwrap();
    let lines = lines.text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["prompt"] == "b").unwrap();
    assert_eq!(
        (&line["arrived"], &line["billed"], &line["answered"]),
        (&json!(2), &json!(2), &json!(2))
    );
    assert_eq!(lines.len(), 2);

    host.client.delete(&url).send().await.unwrap();
    assert_eq!(host.ledger().requests, 0);
}

#[tokio::test]
async fn shutting_down_frees_the_port_and_ends_what_hangs() {
    let faults = FaultRates { rate_hang: 1.0, ..FaultRates::default() };
    let host = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await;
    let addr = host.sim.addr();
    let call = host.client.post(host.url(CLASSIC)).body(chat("hello").to_string());
    let call = tokio::spawn(call.send());
    while host.ledger().requests == 0 {
        tokio::task::yield_now().await;
    }
    host.sim.shutdown().await;
    assert!(call.await.unwrap().is_err());
    simulator::start(addr, SimulatorSettings::default()).await.expect("the port is free again");
}

#[tokio::test]
async fn bad_settings_are_named_before_anything_starts() {
    let settings = SimulatorSettings { window: Duration::ZERO, ..SimulatorSettings::default() };
    let error = simulator::start(([127, 0, 0, 1], 0).into(), settings).await.unwrap_err();
    assert!(error.to_string().contains("window"), "{error}");
}

/// OpenAI's own Python client understands every answer. It needs an interpreter that has the
/// package `openai`, named by `PROMPTMILL_PEER_PYTHON`, and says so where there is none.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "a test that did not run says so")]
async fn the_openai_sdk_understands_it() {
    let Ok(python) = std::env::var("PROMPTMILL_PEER_PYTHON") else {
        eprintln!("not run: PROMPTMILL_PEER_PYTHON is not set");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/openai_sdk.py");
    let api_key = Some("peer-key".into());
    let open = SimulatorSettings { api_key: api_key.clone(), ..SimulatorSettings::default() };
    let full = SimulatorSettings {
        api_key,
        tpm: Some(1_000),
        rpm: Some(0),
        ..SimulatorSettings::default()
    };
    for (settings, more) in [(open, None), (full, Some("--full"))] {
        let host = start(settings).await;
        let mut command = Command::new(&python);
        command.arg(script).arg(host.url("")).args(more);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
