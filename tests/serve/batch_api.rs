//! The HTTP server: OpenAI's own clients run batches on it, and whoever may not is kept out.
//!
//! The clients are the packages `openai` of Python (`PROMPTMILL_PEER_PYTHON`) and JavaScript
//! (`PROMPTMILL_PEER_NODE_MODULES`); without them their tests say that they did not run.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "what did not run is told")]

use std::process::Command;
use test_support as support;

use promptmill::simulator::{self, SimulatedLatency, Simulator, SimulatorSettings};
use reqwest::{Client, Method, StatusCode, header};
use serde_json::Value;
use support::cli::{Place, Running, chats};

const OPERATOR: &str = "operator-0123456789abcdef";
const SUBMITTER: &str = "submitter-0123456789abcdef";
const READER: &str = "reader-0123456789abcdef";

fn peer(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        println!("did not run: {name} is not set");
    }
    value
}

async fn simulator() -> Simulator {
    let latency = SimulatedLatency { base_ms: 20.0, ..SimulatedLatency::default() };
    let settings = SimulatorSettings { latency, ..SimulatorSettings::default() };
    simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap()
}

fn place(simulator: &Simulator, tokens: bool) -> Place {
    let token = |name: &str, role: &str, token: &str| {
        format!("[[serve.tokens]]\nname = \"{name}\"\nrole = \"{role}\"\ntoken = \"{token}\"\n")
    };
    let tokens = if tokens {
        token("night", "operate", OPERATOR)
            + &token("app", "submit", SUBMITTER)
            + &token("board", "read", READER)
    } else {
        String::new()
    };
    let place = Place::new();
    let config = format!(
        "[state]\nlock_seconds = 5\n[serve]\nlisten = \"127.0.0.1:0\"\n\
         [serve.limits]\nfile_mib = 1\n{tokens}\
         [[deployments]]\nname = \"sim\"\nendpoint = \"http://{}/v1\"\nconcurrency = 8\n",
        simulator.addr()
    );
    place.write("promptmill.toml", config);
    place
}

fn end(processes: impl IntoIterator<Item = Running>) {
    for mut process in processes {
        process.signal("TERM");
        let ended = process.wait();
        assert!(!ended.log.contains("元気"), "no prompt is logged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_runs_batches() {
    let Some(python) = peer("PROMPTMILL_PEER_PYTHON") else { return };
    let simulator = simulator().await;
    let place = place(&simulator, true);
    let mut server = place.spawn(&["serve"]);
    let url = server.address().await;
    let worker = place.spawn(&["work"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/openai_batches.py");
    let client = Command::new("timeout").args(["200", &python, script, &url, SUBMITTER]).output();
    let client = client.unwrap();
    println!("{}", String::from_utf8_lossy(&client.stdout));
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    let metrics = metrics(&python, &url);
    let ledger = simulator.ledger();
    assert_eq!(metrics["promptmill_outcomes{ending=failed}"], 1.0, "{metrics}");
    assert_eq!(
        metrics["promptmill_tokens{type=completion}"],
        ledger.billed.usage.completion_tokens as f64
    );
    assert_eq!(metrics["promptmill_queue_jobs{state=active}"], 0.0);
    assert_eq!(metrics["promptmill_workers{}"], 1.0);
    assert_eq!(metrics["promptmill_useful_replicas{}"], 0.0, "nothing is left to do");
    assert!(metrics["promptmill_worker_calls_per_minute{}"].as_f64().unwrap() > 0.0, "{metrics}");
    assert!(metrics["promptmill_deployment_used_tokens{deployment=sim}"].is_f64(), "{metrics}");
    end([server, worker]);
}

/// What Prometheus's own parser reads.
fn metrics(python: &str, url: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/prometheus.py");
    let read = Command::new(python).args([script, url, READER]).output().unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    serde_json::from_slice(&read.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_client_runs_batches() {
    let Some(modules) = peer("PROMPTMILL_PEER_NODE_MODULES") else { return };
    let simulator = simulator().await;
    let place = place(&simulator, true);
    let mut server = place.spawn(&["serve"]);
    let url = server.address().await;
    let worker = place.spawn(&["work"]);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/openai_batches.cjs");
    let client = Command::new("timeout")
        .args(["200", "node", script, &url, SUBMITTER])
        .env("NODE_PATH", modules)
        .output()
        .unwrap();
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    end([server, worker]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_in_the_midst_of_an_intake_leaves_it_to_the_next() {
    let simulator = simulator().await;
    let place = place(&simulator, false);
    let mut first = place.spawn(&["serve"]);
    let url = first.address().await;
    let client = client();
    let file = upload(&client, &url, chats(3_000)).await;
    let batch = format!(
        r#"{{"input_file_id":"{file}","endpoint":"/v1/chat/completions","completion_window":"24h"}}"#
    );
    let made = json(client.post(format!("{url}/v1/batches")).body(batch)).await;
    first.signal("KILL");
    first.wait();
    // The lease of the dead one runs out first.
    let mut second = place.spawn(&["serve"]);
    let url = second.address().await;
    let path = format!("{url}/v1/batches/{}", made["id"].as_str().unwrap());
    let waiting = async {
        loop {
            let batch = json(client.get(&path)).await;
            if batch["status"] == "in_progress" {
                return batch;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    let batch = tokio::time::timeout(std::time::Duration::from_secs(100), waiting).await.unwrap();
    assert_eq!(batch["request_counts"]["total"], 3_000);
    assert_eq!(place.queued(), 3_000);
    end([second]);
}

async fn json(request: reqwest::RequestBuilder) -> Value {
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    serde_json::from_slice(&answer).unwrap()
}

fn client() -> Client {
    promptmill::http_client::builder().no_proxy().build().unwrap()
}

/// A form with one file in it; returns the file's id.
async fn upload(client: &Client, url: &str, text: String) -> String {
    let answer = form(client, url, &text, "batch").await;
    let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    answer["id"].as_str().unwrap().to_owned()
}

async fn form(client: &Client, url: &str, text: &str, purpose: &str) -> reqwest::Response {
    let body = format!(
        "--x\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\n{purpose}\r\n--x\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"a.jsonl\"\r\n\r\n{text}\r\n--x--\r\n"
    );
    let kind = "multipart/form-data; boundary=x";
    let request = client.post(format!("{url}/v1/files")).header(header::CONTENT_TYPE, kind);
    request.body(body).send().await.unwrap()
}

/// A request and the status that it gets.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16);

async fn check(url: &str, cases: &[Case<'_>]) {
    let client = client();
    for (method, path, headers, body, expected) in cases {
        let method: Method = method.parse().unwrap();
        let mut request = client.request(method.clone(), format!("{url}{path}"));
        for (name, value) in *headers {
            request = request.header(*name, *value);
        }
        let answer = request.body((*body).to_owned()).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert_eq!(status, *expected, "{method} {path} {headers:?}: {text}");
        if status >= 400 {
            let error: Value = serde_json::from_str(&text).unwrap();
            assert!(error["error"]["message"].is_string(), "{text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_brings_no_token_or_a_lesser_one_is_kept_out() {
    let simulator = simulator().await;
    let place = place(&simulator, true);
    let mut server = place.spawn(&["serve"]);
    let url = server.address().await;
    let bearer = |token: &str| format!("Bearer {token}");
    let (operator, submitter, reader) = (bearer(OPERATOR), bearer(SUBMITTER), bearer(READER));
    let wrong = bearer("wrong-0123456789abcdef");
    let operator: &[_] = &[("authorization", operator.as_str())];
    let submitter: &[_] = &[("authorization", submitter.as_str())];
    let reader: &[_] = &[("authorization", reader.as_str())];
    let wrong: &[_] = &[("authorization", wrong.as_str())];
    let cases: &[Case<'_>] = &[
        ("GET", "/livez", &[], "", 200),
        ("GET", "/readyz", &[], "", 200),
        ("GET", "/", &[], "", 200),
        ("GET", "/v1/batches", &[], "", 401),
        ("GET", "/v1/batches", wrong, "", 401),
        ("GET", "/metrics", wrong, "", 401),
        ("GET", "/dashboard/overview", &[], "", 401),
        ("GET", "/v1/batches", &[("authorization", "Basic YTpi")], "", 401),
        ("GET", "/v1/batches", reader, "", 200),
        ("GET", "/metrics", reader, "", 200),
        ("GET", "/scaling", wrong, "", 401),
        ("GET", "/scaling", reader, "", 200),
        ("POST", "/v1/batches", reader, "{}", 403),
        ("DELETE", "/v1/files/file-1", reader, "", 403),
        ("POST", "/dashboard/batches/b/pause", reader, "", 403),
        ("POST", "/dashboard/batches/b/pause", submitter, "", 403),
        ("POST", "/dashboard/dead-letters/drop", submitter, r#"{"all":true}"#, 403),
        ("POST", "/dashboard/batches/b/pause", operator, "", 404),
        ("POST", "/dashboard/dead-letters/retry", operator, "{}", 400),
        ("POST", "/dashboard/dead-letters/retry", operator, r#"{"all":true,"x":1}"#, 400),
        ("POST", "/dashboard/dead-letters/retry", operator, r#"{"all":true}"#, 200),
        ("POST", "/v1/batches", submitter, "{", 400),
        ("POST", "/v1/batches", submitter, r#"{"input_file_id":"file-1"}"#, 400),
        ("POST", "/v1/files", submitter, "no form", 400),
        ("GET", "/v1/files/..%2f..%2fetc%2fpasswd", reader, "", 404),
        ("GET", "/v1/batches/batch_1", reader, "", 404),
        ("GET", "/v1/batches?limit=0", reader, "", 400),
        ("GET", "/v1/batches?limit=many", reader, "", 400),
        ("GET", "/v1/nothing", reader, "", 404),
        ("PUT", "/v1/batches", submitter, "", 405),
    ];
    check(&url, cases).await;
    let huge = format!(r#"{{"input_file_id":"{}"}}"#, "x".repeat(1 << 20));
    check(&url, &[("POST", "/v1/batches", submitter, &huge, 413)]).await;
    end([server]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_pages_of_other_sites_are_kept_out() {
    let simulator = simulator().await;
    let place = place(&simulator, false);
    let mut server = place.spawn(&["serve"]);
    let url = server.address().await;
    let host = url.strip_prefix("http://").unwrap();
    let same = format!("http://{host}");
    let cases: &[Case<'_>] = &[
        ("GET", "/v1/batches", &[], "", 200),
        ("GET", "/v1/batches", &[("host", "evil.example")], "", 403),
        ("POST", "/v1/batches", &[("origin", "https://evil.example")], "{}", 403),
        ("POST", "/v1/batches", &[("sec-fetch-site", "cross-site")], "{}", 403),
        ("POST", "/dashboard/dead-letters/drop", &[("origin", "null")], r#"{"all":true}"#, 403),
        ("POST", "/v1/batches", &[("origin", &same)], "{}", 400),
        ("POST", "/v1/batches", &[("sec-fetch-site", "same-origin")], "{}", 400),
    ];
    check(&url, cases).await;
    let client = client();
    let too_large = form(&client, &url, &"x".repeat((1 << 20) + 1), "batch").await;
    assert_eq!(too_large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(form(&client, &url, "x", "fine-tune").await.status(), StatusCode::BAD_REQUEST);
    end([server]);
    let open = place.run(&["serve", "--listen", "0.0.0.0:0"]);
    assert_eq!(open.code, Some(2), "{}", open.err);
    assert!(open.err.contains("set at least one token"), "{}", open.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_body_takes_the_server_down() {
    let simulator = simulator().await;
    let place = place(&simulator, false);
    let mut server = place.spawn(&["serve"]);
    let url = server.address().await;
    let client = client();
    let mut dice = 7_u64;
    let mut roll = || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize
    };
    let whole = br#"{"input_file_id":"file-1","endpoint":"/v1/chat/completions","completion_window":"24h","metadata":{"a":"b"}}"#;
    let paths =
        ["/v1/batches", "/v1/files", "/dashboard/dead-letters/retry", "/v1/batches/x/cancel"];
    let kinds = ["application/json", "multipart/form-data; boundary=x", "multipart/form-data", "x"];
    for _ in 0..300 {
        let mut body = whole.to_vec();
        for _ in 0..=roll() % 8 {
            let at = roll() % body.len();
            match roll() % 3 {
                0 => body[at] = roll() as u8,
                1 => body.truncate(at + 1),
                _ => body.splice(at..at, (0..roll() % 64).map(|n| n as u8)).for_each(drop),
            }
        }
        let request = client
            .post(format!("{url}{}", paths[roll() % paths.len()]))
            .header(header::CONTENT_TYPE, kinds[roll() % kinds.len()]);
        let status = request.body(body).send().await.unwrap().status();
        assert!(status.is_client_error(), "{status}");
    }
    check(&url, &[("GET", "/readyz", &[], "", 200)]).await;
    end([server]);
}
