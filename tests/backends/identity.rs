//! Entra ID in place of keys: a managed identity's tokens on the calls to the model.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use test_support as support;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::routing::get;
use promptmill::simulator::{SimulatedLatency, SimulatorSettings};
use serde_json::json;
use support::cli::{Ended, Place, chats};
use support::service::Service;

const TOKEN: &str = "t0ken-of-entra";

/// The identity endpoint of App Service and Container Apps: `IDENTITY_ENDPOINT`, `IDENTITY_HEADER`
/// (Azure docs: "managed identity REST endpoint reference", 2019-08-01).
#[derive(Clone, Default)]
struct IdentityEndpoint {
    asked: Arc<AtomicU64>,
    resources: Arc<Mutex<Vec<String>>>,
    lifetime_s: i64,
}

async fn token(
    State(endpoint): State<IdentityEndpoint>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> String {
    assert_eq!(headers["x-identity-header"], "header-secret");
    endpoint.asked.fetch_add(1, Ordering::Relaxed);
    let query = query.unwrap();
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    let resource = pairs.find(|(key, _)| key == "resource").unwrap().1.into_owned();
    endpoint.resources.lock().unwrap().push(resource.clone());
    let ends = jiff::Timestamp::now().as_second() + endpoint.lifetime_s;
    json!({
        "access_token": TOKEN,
        "expires_on": ends.to_string(),
        "resource": resource,
        "token_type": "Bearer",
    })
    .to_string()
}

/// Serves in a runtime that lives as long as the returned value.
fn serve(endpoint: IdentityEndpoint) -> (SocketAddr, tokio::runtime::Runtime) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().route("/msi/token", get(token)).with_state(endpoint);
    runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
    (address, runtime)
}

fn place(url: &str, more: &str) -> Place {
    let place = Place::new();
    let text = format!(
        "[[deployments]]\nendpoint = \"{url}\"\nconcurrency = 2\n\
         credential = {{ managed_identity = {{}} }}\n{more}"
    );
    place.write("promptmill.toml", text).write("in.jsonl", chats(40));
    place
}

fn run(place: &Place, identity: SocketAddr) -> Ended {
    let mut command = place.command(&["--log", "trace", "run", "in.jsonl"]);
    command.env("IDENTITY_ENDPOINT", format!("http://{identity}/msi/token"));
    command.env("IDENTITY_HEADER", "header-secret");
    Ended::from(command.output().unwrap())
}

#[test]
fn a_managed_identitys_tokens_open_the_deployment_and_are_renewed_in_a_run() {
    let settings = SimulatorSettings {
        api_key: Some(TOKEN.into()),
        latency: SimulatedLatency { base_ms: 150.0, ..SimulatedLatency::default() },
        ..SimulatorSettings::default()
    };
    let service = Service::start(settings);
    let endpoint = IdentityEndpoint { lifetime_s: 2, ..IdentityEndpoint::default() };
    let (address, _runtime) = serve(endpoint.clone());
    let ended = run(&place(&service.url(), ""), address);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(endpoint.asked.load(Ordering::Relaxed) > 1, "a token of 2 s was renewed");
    assert_eq!(endpoint.resources.lock().unwrap()[0], "https://ai.azure.com");
    for secret in [TOKEN, "header-secret"] {
        assert!(!ended.log.contains(secret) && !ended.out.contains(secret), "{}", ended.err);
    }
}

#[test]
fn the_scope_can_be_set() {
    let service = Service::start(SimulatorSettings {
        api_key: Some(TOKEN.into()),
        ..SimulatorSettings::default()
    });
    let endpoint = IdentityEndpoint { lifetime_s: 3_600, ..IdentityEndpoint::default() };
    let (address, _runtime) = serve(endpoint.clone());
    let scope = "token_scope = \"https://cognitiveservices.azure.com/.default\"\n";
    let ended = run(&place(&service.url(), scope), address);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(*endpoint.resources.lock().unwrap(), ["https://cognitiveservices.azure.com"]);
}

#[test]
fn without_an_identity_the_run_ends_and_says_so() {
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service.url(), "[worker]\nunreachable_after_seconds = 1\n");
    let closed = "127.0.0.1:9".parse().unwrap();
    let ended = run(&place, closed);
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    assert!(ended.err.contains("Entra ID gives no token"), "{}", ended.err);
    assert_eq!(service.ledger().requests, 0);
    assert_eq!(place.queued(), 40, "nothing is lost");
}
