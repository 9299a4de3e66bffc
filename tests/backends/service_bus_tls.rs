//! The Service Bus queue as it is in the cloud: TLS, tokens from Entra ID, and a proxy on the way.
//!
//! Which certificates are trusted is the process's, so the test that trusts ours runs in a child of
//! its own, to which the environment names them.

#![allow(clippy::unwrap_used, reason = "part of tests")]

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use test_support as support;

use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::time::OffsetDateTime;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use promptmill::queue::service_bus::https::HttpsQueue;
use promptmill::queue::service_bus::{ServiceBusQueue, ServiceBusSettings, ServiceBusTransport};
use promptmill::queue::{Queue, QueueError};
use support::broker::{self, JOBS};
use support::certificates;
use support::jobs::{Prover, job};
use support::proxy::Proxy;
use support::relay::{Front, Relay};
use tokio::process::Command;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

const LONG: Duration = Duration::from_secs(60);

/// Tells the child where the certificates are.
const FOLDER: &str = "PROMPTMILL_TEST_CERTIFICATES";

fn tls(folder: &Path) -> Front {
    let chain = CertificateDer::pem_file_iter(folder.join("server.pem")).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Front::Tls(TlsAcceptor::from(Arc::new(config.unwrap())))
}

/// Gives tokens that are good for some seconds, and counts them.
#[derive(Debug, Default)]
struct Entra {
    given: AtomicUsize,
}

const TOKEN_LIFE: Duration = Duration::from_secs(3);

#[async_trait::async_trait]
impl TokenCredential for Entra {
    async fn get_token(
        &self,
        scopes: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        assert_eq!(scopes, ["https://servicebus.azure.net/.default"]);
        self.given.fetch_add(1, Ordering::SeqCst);
        let ends = OffsetDateTime::now_utc() + TOKEN_LIFE;
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{}}}"#, ends.unix_timestamp()));
        Ok(AccessToken::new(format!("x.{claims}.y"), ends))
    }
}

fn settings(port: u16) -> ServiceBusSettings {
    ServiceBusSettings {
        connection_string: None,
        namespace: Some(format!("localhost:{port}")),
        patience_seconds: 2,
        ..ServiceBusSettings::new(String::new(), JOBS)
    }
}

fn queue(port: u16, entra: Arc<Entra>) -> ServiceBusQueue {
    ServiceBusQueue::new(&settings(port), Some(entra)).unwrap()
}

/// Runs one of the tests below in a process that trusts the certificates.
async fn in_a_child(test: &str, folder: &Path, variables: &[(&str, String)]) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", &format!("service_bus_tls::{test}"), "--ignored"])
        .env("SSL_CERT_FILE", folder.join("ca.pem"))
        .env(FOLDER, folder)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(LONG, child.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_carries_jobs_on_entra_tokens_for_those_who_trust_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path());
    in_a_child("in_a_process_that_trusts_the_certificate", folder.path(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_goes_by_the_proxy_that_the_environment_names() {
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path());
    let proxy = Proxy::start(None).await;
    let variables = [("HTTPS_PROXY", proxy.url()), ("NO_PROXY", String::new())];
    in_a_child("in_a_process_behind_a_proxy", folder.path(), &variables).await;
    assert!(proxy.tunnels() >= 1, "nothing came by the proxy");
    let passed = proxy.tunnels();
    let variables = [("HTTPS_PROXY", proxy.url()), ("NO_PROXY", "localhost".to_owned())];
    in_a_child("in_a_process_behind_a_proxy", folder.path(), &variables).await;
    assert_eq!(proxy.tunnels(), passed, "NO_PROXY is heeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above"]
async fn in_a_process_behind_a_proxy() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let broker = broker::start(broker::jobs()).await;
    let relay = Relay::start(tls(folder.as_ref()), broker.addr()).await;
    let entra = Arc::new(Entra::default());
    let settings =
        ServiceBusSettings { transport: ServiceBusTransport::Https, ..settings(relay.addr.port()) };
    let queue = HttpsQueue::new(&settings, Some(entra.clone())).unwrap();
    queue.send(vec![job("b", "a")]).await.unwrap();
    let delivery = queue.receive(1, LONG).await.unwrap().remove(0);
    let proof = Prover::new().prove(&delivery.job).await;
    queue.settle(vec![delivery.complete(proof)]).await.unwrap();
    queue.close().await;
    assert_eq!(broker.counts(JOBS).completed, 1);
    assert!(relay.accepted() >= 1 && entra.given.load(Ordering::SeqCst) >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by the test above"]
async fn in_a_process_that_trusts_the_certificate() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let broker = broker::start(broker::jobs()).await;
    let relay = Relay::start(tls(folder.as_ref()), broker.addr()).await;
    let entra = Arc::new(Entra::default());
    let queue = queue(relay.addr.port(), entra.clone());
    let prover = Prover::new();
    let end = tokio::time::Instant::now() + TOKEN_LIFE * 2;
    let mut rounds = 0;
    while tokio::time::Instant::now() < end {
        queue.send(vec![job("b", &rounds.to_string())]).await.unwrap();
        let delivery = queue.receive(1, LONG).await.unwrap().remove(0);
        let proof = prover.prove(&delivery.job).await;
        queue.settle(vec![delivery.complete(proof)]).await.unwrap();
        rounds += 1;
    }
    queue.close().await;
    assert_eq!(broker.counts(JOBS).completed, rounds);
    assert_eq!(relay.accepted(), 1, "one connection outlived its first token");
    assert!(entra.given.load(Ordering::SeqCst) >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_nobody_vouches_for_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    certificates::make(folder.path());
    let broker = broker::start(broker::jobs()).await;
    let relay = Relay::start(tls(folder.path()), broker.addr()).await;
    let queue = queue(relay.addr.port(), Arc::default());
    let error = timeout(LONG, queue.send(vec![job("b", "a")])).await.unwrap().unwrap_err();
    assert!(matches!(error, QueueError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("certificate"), "{error}");
}
