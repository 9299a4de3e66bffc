//! Client of one endpoint: one request, its redirects, and the answer read to its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};

use super::endpoint::Endpoint;
use super::entra::BearerTokenCache;
use super::response::{LARGEST_ANSWER, RawResponse, ServiceTier, header};
use super::verdict::{JudgedRequest, Verdict};
use super::{body, verdict};
use domain::headers::RateHeaders;
use domain::job::{Api, Job};

/// Most redirects that one call follows.
const MOST_REDIRECTS: usize = 3;

/// Time limit for making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Error in setting up a client.
#[derive(Debug, thiserror::Error)]
pub enum ModelClientError {
    #[error("the HTTP client can't be set up")]
    Setup(#[source] reqwest::Error),
}

/// Time limits of a call. An answer that is not streamed comes at once when it is complete, so its first
/// byte may take as long as the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallTimeouts {
    /// From sending to the last byte.
    pub whole: Duration,
    /// From sending to the answer's head.
    pub first_byte: Option<Duration>,
    /// Between two parts of the answer's body.
    pub idle: Option<Duration>,
}

impl CallTimeouts {
    /// Limits the whole call alone.
    pub fn whole(whole: Duration) -> Self {
        Self { whole, first_byte: None, idle: None }
    }
}

/// Calls one endpoint; clones share its connections.
#[derive(Clone)]
pub struct ModelClient {
    http: reqwest::Client,
    endpoint: Arc<Endpoint>,
    /// Entra ID's tokens, instead of a key.
    bearer_tokens: Option<Arc<BearerTokenCache>>,
    tier: ServiceTier,
    timeouts: CallTimeouts,
}

/// Result of a call: its verdict, and the rate limits of the response.
#[derive(Debug)]
pub struct CallResult {
    pub verdict: Verdict,
    pub rate_limits: RateHeaders,
}

/// Callback for the bytes of an answer's body as they arrive.
pub type ChunkObserver<'a> = &'a mut (dyn FnMut(&[u8]) + Send);

impl CallResult {
    /// Judges the result of a call of this API on this tier.
    pub fn judge((api, tier): (Api, ServiceTier), raw: RawResponse) -> Self {
        Self::judge_request(&JudgedRequest { api, tier, secrets: [None, None] }, raw)
    }

    fn judge_request(request: &JudgedRequest<'_>, raw: RawResponse) -> Self {
        let rate_limits = match &raw {
            RawResponse::Response { headers, .. } => RateHeaders::read(headers),
            _ => RateHeaders::default(),
        };
        Self { verdict: verdict::judge(request, raw, SystemTime::now()), rate_limits }
    }
}

impl ModelClient {
    /// Creates a client.
    ///
    /// # Errors
    /// If TLS can't be set up.
    pub fn new(endpoint: Endpoint, timeouts: CallTimeouts) -> Result<Self, ModelClientError> {
        let http = http_client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeouts.whole)
            // Only the worker retries; and so nothing keeps a copy of the request.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .tcp_nodelay(true)
            // Gateways drop idle connections after minutes; a connection that we drop first can't
            // be reset under a request.
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(ModelClientError::Setup)?;
        Ok(Self {
            http,
            endpoint: Arc::new(endpoint),
            bearer_tokens: None,
            tier: ServiceTier::AsAsked,
            timeouts,
        })
    }

    /// Uses Entra ID's tokens instead of a key.
    #[must_use]
    pub fn with_bearer_tokens(self, tokens: BearerTokenCache) -> Self {
        Self { bearer_tokens: Some(Arc::new(tokens)), ..self }
    }

    /// Asks for a service tier.
    #[must_use]
    pub fn with_tier(self, tier: ServiceTier) -> Self {
        Self { tier, ..self }
    }

    /// Returns the endpoint's URL, without a key.
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

    /// Fetches the service's own time from its `Date` header, without a key and without a job.
    pub async fn server_time(&self) -> Option<SystemTime> {
        let response = self.http.get(self.base().clone()).send().await.ok()?;
        let date = response.headers().get(reqwest::header::DATE)?.to_str().ok()?;
        httpdate::parse_http_date(date).ok()
    }

    /// Makes one call and judges how it ended.
    pub async fn call(&self, job: &Job) -> CallResult {
        self.call_watched(job, &mut |_| {}).await
    }

    /// Makes a call like [`Self::call`], and passes on the answer's bytes as they arrive.
    pub async fn call_watched(&self, job: &Job, watch: ChunkObserver<'_>) -> CallResult {
        let (raw, token) = self.send(job, watch).await;
        let key = self.endpoint.headers().values().next();
        let secrets = [key, token.as_ref()];
        CallResult::judge_request(&JudgedRequest { api: job.api, tier: self.tier, secrets }, raw)
    }

    /// Builds the request as it is sent, except for Entra ID's token.
    pub fn request(&self, job: &Job) -> reqwest::RequestBuilder {
        let deployment = self.endpoint.deployment_for(&job.model);
        self.request_to(self.endpoint.url(job.api, deployment), job, deployment)
    }

    fn request_to(&self, url: url::Url, job: &Job, deployment: &str) -> reqwest::RequestBuilder {
        self.http
            .post(url)
            .headers(self.endpoint.headers().clone())
            .header("x-ms-client-request-id", job.id.to_string())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body::prepare(job, deployment, self.tier))
    }

    /// Sends the request; returns the response and the token that it was sent with. A 401 to a
    /// token is asked again with a new one, if there is one: tokens are withdrawn before they end.
    async fn send(
        &self,
        job: &Job,
        watch: ChunkObserver<'_>,
    ) -> (RawResponse, Option<HeaderValue>) {
        let Some(tokens) = &self.bearer_tokens else {
            return (self.exchange(job, None, watch).await, None);
        };
        let token = match tokens.header().await {
            Ok(token) => token,
            Err(why) => return (RawResponse::NoToken(why), None),
        };
        let raw = self.exchange(job, Some(&token), watch).await;
        if !matches!(raw, RawResponse::Response { status: 401, .. }) {
            return (raw, Some(token));
        }
        match tokens.replace(&token).await {
            Some(fresh) => (self.exchange(job, Some(&fresh), watch).await, Some(fresh)),
            None => (raw, Some(token)),
        }
    }

    /// Sends the request, and again where the same host redirects it to.
    async fn exchange(
        &self,
        job: &Job,
        token: Option<&HeaderValue>,
        watch: ChunkObserver<'_>,
    ) -> RawResponse {
        let deployment = self.endpoint.deployment_for(&job.model);
        let mut url = self.endpoint.url(job.api, deployment);
        let mut followed = 0;
        loop {
            let request = self.request_to(url.clone(), job, deployment);
            let request = match token {
                Some(token) => request.header(AUTHORIZATION, token),
                None => request,
            };
            let response = match within(self.timeouts.first_byte, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) if error.is_connect() => return RawResponse::NoConnection(error),
                Ok(Err(error)) => return RawResponse::Broken { status: None, error },
                Err(waited) => return RawResponse::Silent { status: None, waited },
            };
            let status = response.status().as_u16();
            let Some(target) = redirect_target(&response, &url) else {
                return read(response, self.timeouts.idle, watch).await;
            };
            followed += 1;
            if followed > MOST_REDIRECTS || !may_follow(status, &url, &target) {
                let mut shown = target;
                shown.set_query(None);
                return RawResponse::Redirected { status, to: shown.into() };
            }
            url = target;
        }
    }
}

/// Returns where a redirect leads, if it is one.
fn redirect_target(response: &reqwest::Response, from: &url::Url) -> Option<url::Url> {
    let location = header(response.headers(), LOCATION.as_str());
    from.join(location.filter(|_| response.status().is_redirection())?).ok()
}

/// Returns whether the same request, with its key, may go there: to the same host, not less safely,
/// and only if it stays the same request (RFC 9110: 307 and 308).
fn may_follow(status: u16, from: &url::Url, to: &url::Url) -> bool {
    let is_same_port = from.port_or_known_default() == to.port_or_known_default();
    let is_safer = from.scheme() == "http" && to.scheme() == "https";
    let is_same_place = from.scheme() == to.scheme() && is_same_port || is_safer;
    matches!(status, 307 | 308) && from.host() == to.host() && is_same_place
}

/// Waits for a step of a call; an error tells the time after which it was given up.
async fn within<T>(limit: Option<Duration>, step: impl Future<Output = T>) -> Result<T, Duration> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, step).await.map_err(|_| limit),
        None => Ok(step.await),
    }
}

async fn read(
    mut response: reqwest::Response,
    idle: Option<Duration>,
    watch: ChunkObserver<'_>,
) -> RawResponse {
    let status = response.status().as_u16();
    let headers = std::mem::take(response.headers_mut());
    let mut body: Option<bytes::BytesMut> = None;
    let mut first = Bytes::new();
    loop {
        let chunk = match within(idle, response.chunk()).await {
            Ok(chunk) => chunk,
            Err(waited) => return RawResponse::Silent { status: Some(status), waited },
        };
        if let Ok(Some(bytes)) = &chunk {
            watch(bytes);
        }
        match chunk {
            Ok(Some(chunk)) if first.is_empty() && body.is_none() => first = chunk,
            Ok(Some(chunk)) => {
                let whole = body.get_or_insert_with(|| std::mem::take(&mut first).into());
                if whole.len() + chunk.len() > LARGEST_ANSWER {
                    return RawResponse::TooLarge { status };
                }
                whole.extend_from_slice(&chunk);
            }
            Ok(None) => break,
            Err(error) => return RawResponse::Broken { status: Some(status), error },
        }
    }
    let body = body.map_or(first, bytes::BytesMut::freeze);
    RawResponse::Response { status, headers, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_along_on_its_own_host_alone() {
        let may = |status, from: &str, to: &str| {
            let from: url::Url = from.parse().unwrap();
            let to = from.join(to).unwrap();
            may_follow(status, &from, &to)
        };
        let from = "https://r.openai.azure.com/openai/v1/chat/completions";
        assert!(may(307, from, "/openai/v1/chat/completions/"));
        assert!(may(308, from, "https://R.openai.azure.com/x?api-version=1"));
        assert!(may(307, "http://gateway/v1", "https://gateway/v1"));
        for elsewhere in [
            "https://evil.example/openai/v1",
            "//evil.example/",
            "http://r.openai.azure.com/",
            "https://r.openai.azure.com:8443/",
            "https://r.openai.azure.com.evil.example/",
            "file:///etc/passwd",
        ] {
            assert!(!may(307, from, elsewhere), "{elsewhere}");
        }
        for other in [301, 302, 303] {
            assert!(!may(other, from, "/v2"), "{other} makes it another request");
        }
    }
}
