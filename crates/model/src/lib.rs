//! The call: one HTTP request to one OpenAI-shaped endpoint, and what its end means.
//!
//! No retry and no waiting here: the worker decides from the [`verdict`]. Azure's deployments path,
//! Azure's `/openai/v1`, an API Management gateway and any OpenAI-compatible server differ in data
//! only ([`endpoint`]).

mod body;
pub mod endpoint;
mod stream;
pub mod tokens;
pub mod verdict;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};

use domain::headers::RateHeaders;
use domain::job::{Api, Job};
use domain::outcome::Usage;
use endpoint::Endpoint;
use tokens::Tokens;
use verdict::Verdict;

/// Answers longer than this are taken for a fault of the server, so that one of them can't use up
/// the memory. The largest models answer with well under 4 MB of text.
const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

/// The time a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why no client can be had.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("the HTTP client can't be set up")]
    Setup(#[source] reqwest::Error),
}

/// Calls one endpoint; clones share its connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    endpoint: Arc<Endpoint>,
    /// Instead of a key.
    tokens: Option<Arc<Tokens>>,
    tier: Tier,
}

/// The service tier that calls ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tier {
    /// What the job's body says, or the deployment's own.
    #[default]
    AsAsked,
    /// `service_tier: "flex"`: half the price, when there is room.
    Flex,
}

/// The end of a call: what it means, and what the response told of the limits.
#[derive(Debug)]
pub struct Called {
    pub verdict: Verdict,
    pub told: RateHeaders,
}

/// A 2xx response, read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub status: u16,
    /// The service's own id of the request.
    pub request_id: Option<String>,
    /// One JSON object; a stream's events are put together to what the call without `stream`
    /// would have returned.
    pub body: Bytes,
    pub usage: Usage,
    /// What it is billed as, if the service said so.
    pub service_tier: Option<Box<str>>,
}

/// Whom a call hands the bytes of its answer's body as they come in.
pub type Watch<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

/// What came back before anybody judged it.
#[derive(Debug)]
pub enum Raw {
    Response {
        status: u16,
        headers: HeaderMap,
        body: Bytes,
    },
    /// Nothing was sent: no connection.
    NoConnection(reqwest::Error),
    /// Nothing was sent: Entra ID gave no token.
    NoToken(String),
    /// Something was sent, and no whole answer came.
    Broken {
        status: Option<u16>,
        error: reqwest::Error,
    },
    TooLarge,
}

impl Called {
    /// Makes sense of what came back from a call of this API on this tier.
    pub fn judge(asked: (Api, Tier), raw: Raw) -> Self {
        let told = match &raw {
            Raw::Response { headers, .. } => RateHeaders::read(headers),
            _ => RateHeaders::default(),
        };
        Self { verdict: verdict::judge(asked, raw, SystemTime::now()), told }
    }
}

impl Client {
    /// `request_timeout` bounds a whole call, from sending to the last byte.
    ///
    /// # Errors
    /// If TLS can't be set up.
    pub fn new(endpoint: Endpoint, request_timeout: Duration) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(request_timeout)
            .redirect(reqwest::redirect::Policy::none())
            // Only the worker tries again; and so nothing keeps a copy of the request.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .tcp_nodelay(true)
            // Gateways drop idle connections after minutes; a connection that we drop first can't
            // be reset under a request.
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { http, endpoint: Arc::new(endpoint), tokens: None, tier: Tier::AsAsked })
    }

    /// Comes with Entra ID's tokens instead of a key.
    #[must_use]
    pub fn with_tokens(self, tokens: Tokens) -> Self {
        Self { tokens: Some(Arc::new(tokens)), ..self }
    }

    /// Asks for a service tier.
    #[must_use]
    pub fn with_tier(self, tier: Tier) -> Self {
        Self { tier, ..self }
    }

    /// The endpoint's URL, without a key.
    pub fn base(&self) -> &url::Url {
        self.endpoint.base()
    }

    /// See [`Endpoint::speaks_azure`].
    pub fn speaks_azure(&self) -> bool {
        self.endpoint.speaks_azure()
    }

    /// See [`Endpoint::quota_key`].
    pub fn quota_key(&self, model: Option<&str>) -> String {
        self.endpoint.quota_key(model)
    }

    /// The service's own time, as its `Date` header tells it, without a key and without a job.
    pub async fn clock(&self) -> Option<SystemTime> {
        let response = self.http.get(self.base().clone()).send().await.ok()?;
        let date = response.headers().get(reqwest::header::DATE)?.to_str().ok()?;
        httpdate::parse_http_date(date).ok()
    }

    /// Makes one call and judges how it ended.
    pub async fn call(&self, job: &Job) -> Called {
        self.call_watched(job, &mut |_| {}).await
    }

    /// As [`Self::call`], and tells of the answer while it comes in.
    pub async fn call_watched(&self, job: &Job, watch: Watch<'_>) -> Called {
        let raw = self.send(job, watch).await;
        Called::judge((job.api, self.tier), raw)
    }

    /// The request as it goes out, but for Entra ID's token.
    pub fn request(&self, job: &Job) -> reqwest::RequestBuilder {
        let deployment = self.endpoint.deployment_for(&job.model);
        self.http
            .post(self.endpoint.url(job.api, deployment))
            .headers(self.endpoint.headers().clone())
            .header("x-ms-client-request-id", job.id.to_string())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body::prepare(job, deployment, self.tier))
    }

    async fn send(&self, job: &Job, watch: Watch<'_>) -> Raw {
        let mut request = self.request(job);
        if let Some(tokens) = &self.tokens {
            match tokens.header().await {
                Ok(header) => request = request.header(AUTHORIZATION, header),
                Err(why) => return Raw::NoToken(why),
            }
        }
        match request.send().await {
            Ok(response) => read(response, watch).await,
            Err(error) if error.is_connect() => Raw::NoConnection(error),
            Err(error) => Raw::Broken { status: None, error },
        }
    }
}

async fn read(mut response: reqwest::Response, watch: Watch<'_>) -> Raw {
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    let mut body: Option<bytes::BytesMut> = None;
    let mut first = Bytes::new();
    loop {
        let chunk = response.chunk().await;
        if let Ok(Some(bytes)) = &chunk {
            watch(bytes);
        }
        match chunk {
            Ok(Some(chunk)) if first.is_empty() && body.is_none() => first = chunk,
            Ok(Some(chunk)) => {
                let whole = body.get_or_insert_with(|| std::mem::take(&mut first).into());
                if whole.len() + chunk.len() > LARGEST_ANSWER {
                    return Raw::TooLarge;
                }
                whole.extend_from_slice(&chunk);
            }
            Ok(None) => break,
            Err(error) => return Raw::Broken { status: Some(status), error },
        }
    }
    let body = body.map_or(first, bytes::BytesMut::freeze);
    Raw::Response { status, headers, body }
}
