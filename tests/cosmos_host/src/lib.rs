//! Cosmos DB on this machine, for tests: the in-memory emulator of the SDK's own authors behind a
//! real HTTP port, and the faults that a test asks for.
//!
//! A package of its own, so that the internal feature of the SDK that it needs is never part of the
//! program. It knows nothing of promptmill. The emulator checks no keys and never expires items.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{self, Body};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use azure_core::http::{Method, Request as CosmosRequest, Url};
use azure_data_cosmos_driver::in_memory_emulator::{
    InMemoryEmulatorHttpClient, VirtualAccountConfig, VirtualRegion,
};
use rand::RngExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The well-known key of every Cosmos DB emulator.
const KEY: &str =
    "C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==";
const LARGEST_REQUEST: usize = 8 << 20;
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Which requests for items are refused with 429.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Throttle {
    #[default]
    Never,
    /// This part of the writes, drawn at random.
    Writes(f64),
    /// This part of the reads and queries, drawn at random.
    Reads(f64),
    /// All that comes when this second's request units are spent.
    RequestUnitsPerSecond(f64),
}

#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub throttle: Throttle,
}

/// A running server; it ends with this handle.
pub struct Host {
    address: SocketAddr,
    shared: Arc<Shared>,
    pause: watch::Sender<bool>,
    server: JoinHandle<()>,
}

struct Shared {
    emulator: InMemoryEmulatorHttpClient,
    region: Url,
    faults: Mutex<Faults>,
    paused: watch::Receiver<bool>,
}

struct Faults {
    throttle: Throttle,
    /// The second that is being spent, and how much of it is.
    second: (Instant, f64),
    throttled: u64,
    charged: f64,
    answers_to_lose: u64,
}

/// Starts a server with an empty account; port 0 takes a free one.
///
/// # Errors
/// If the port is taken.
pub async fn start(address: SocketAddr, settings: Settings) -> Result<Host, Error> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let region: Url = format!("http://{address}/").parse()?;
    let account = VirtualAccountConfig::new(vec![VirtualRegion::new("Local", region.clone())])?;
    let (pause, paused) = watch::channel(false);
    let faults = Faults {
        throttle: settings.throttle,
        second: (Instant::now(), 0.0),
        throttled: 0,
        charged: 0.0,
        answers_to_lose: 0,
    };
    let shared = Arc::new(Shared {
        emulator: InMemoryEmulatorHttpClient::try_new(account)?,
        region,
        faults: Mutex::new(faults),
        paused,
    });
    let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
    let server = tokio::spawn(async move {
        // It runs until the handle aborts it; what it could fail with is a closed port.
        let _ = axum::serve(listener, router).await;
    });
    Ok(Host { address, shared, pause, server })
}

impl Host {
    pub fn endpoint(&self) -> String {
        format!("http://{}/", self.address)
    }

    pub fn key(&self) -> &'static str {
        KEY
    }

    pub fn throttle(&self, throttle: Throttle) {
        self.shared.faults().throttle = throttle;
    }

    /// Requests that were refused with 429 so far.
    pub fn throttled(&self) -> u64 {
        self.shared.faults().throttled
    }

    /// Request units so far, by the emulator's model of them.
    pub fn charged(&self) -> f64 {
        self.shared.faults().charged
    }

    /// Carries out the next writes, but answers them with 500.
    pub fn lose_answers(&self, writes: u64) {
        self.shared.faults().answers_to_lose = writes;
    }

    /// Lets requests wait, unanswered, until [`Host::resume`].
    pub fn pause(&self) {
        self.pause.send_replace(true);
    }

    pub fn resume(&self) {
        self.pause.send_replace(false);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Faults {
    /// How long to wait, for a request that is refused.
    fn refuse(&mut self, is_write: bool, now: Instant) -> Option<Duration> {
        let pause = match self.throttle {
            Throttle::Never => None,
            Throttle::Writes(part) => {
                (is_write && rand::rng().random_bool(part)).then_some(REFUSED_PAUSE)
            }
            Throttle::Reads(part) => {
                (!is_write && rand::rng().random_bool(part)).then_some(REFUSED_PAUSE)
            }
            Throttle::RequestUnitsPerSecond(most) => {
                let end = self.second.0 + Duration::from_secs(1);
                if now >= end {
                    self.second = (now, 0.0);
                }
                (self.second.1 >= most).then(|| end - now)
            }
        };
        self.throttled += u64::from(pause.is_some());
        pause
    }

    fn loses(&mut self, is_write: bool) -> bool {
        let loses = is_write && self.answers_to_lose > 0;
        self.answers_to_lose -= u64::from(loses);
        loses
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let mut paused = shared.paused.clone();
    // Fails only when the host is gone, and then nobody waits for the answer.
    let _ = paused.wait_for(|paused| !paused).await;
    match forward(&shared, request).await {
        Ok(response) => response,
        Err(error) => plain(StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

async fn forward(shared: &Shared, request: Request) -> Result<Response<Body>, Error> {
    let is_query = request.headers().contains_key("x-ms-documentdb-isquery")
        || request.headers().contains_key("x-ms-documentdb-query");
    let of_items = request.uri().path().contains("/docs");
    let is_write = of_items && request.method() != "GET" && !is_query;
    if of_items && let Some(pause) = shared.faults().refuse(is_write, Instant::now()) {
        return Ok(refusal(pause));
    }
    let answer = shared.emulator.execute_request(&translate(shared, request).await?).await?;
    let answer = answer.try_into_raw_response().await?;
    if shared.faults().loses(is_write) {
        return Ok(plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer is lost".into()));
    }
    let mut response = Response::new(Body::from(answer.body().to_vec()));
    *response.status_mut() = StatusCode::from_u16(u16::from(answer.status()))?;
    for (name, value) in answer.headers().iter() {
        if name.as_str() == "x-ms-request-charge" {
            let charge = value.as_str().parse().unwrap_or(0.0);
            let mut faults = shared.faults();
            faults.second.1 += charge;
            faults.charged += charge;
        }
        // The length is that of the body as it is sent here.
        if name.as_str() != "content-length" && name.as_str() != "transfer-encoding" {
            let name = HeaderName::try_from(name.as_str())?;
            response.headers_mut().insert(name, HeaderValue::from_str(value.as_str())?);
        }
    }
    Ok(response)
}

/// The request as the emulator takes it: to its region, without a slash at the end.
async fn translate(shared: &Shared, request: Request) -> Result<CosmosRequest, Error> {
    let (head, body) = request.into_parts();
    let mut url = shared.region.clone();
    let path = head.uri.path().trim_end_matches('/');
    url.set_path(if path.is_empty() { "/" } else { path });
    url.set_query(head.uri.query());
    let method = match head.method.as_str() {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "PATCH" => Method::Patch,
        "HEAD" => Method::Head,
        other => return Err(format!("no such method: {other}").into()),
    };
    let mut translated = CosmosRequest::new(url, method);
    for (name, value) in &head.headers {
        translated.insert_header(name.as_str().to_owned(), value.to_str()?.to_owned());
    }
    let body = body::to_bytes(body, LARGEST_REQUEST).await?;
    if !body.is_empty() {
        translated.set_body(body.to_vec());
    }
    Ok(translated)
}

fn refusal(pause: Duration) -> Response<Body> {
    let message = r#"{"code":"TooManyRequests","message":"Request rate is large."}"#;
    let mut response = plain(StatusCode::TOO_MANY_REQUESTS, message.into());
    let headers = response.headers_mut();
    headers.insert("x-ms-substatus", HeaderValue::from_static("3200"));
    headers.insert("x-ms-retry-after-ms", HeaderValue::from(pause.as_millis().max(1) as u64));
    headers.insert("x-ms-request-charge", HeaderValue::from_static("0.38"));
    response
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
