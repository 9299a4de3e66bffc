//! The namespace over HTTP: one client for the REST transport and for the descriptions of entities.
//!
//! Sends every request to the configured host with a token of ours, through the configured proxy
//! (`proxy`, or what HTTPS_PROXY and NO_PROXY say), and tells transient errors from refusals.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, NoProxy, Proxy};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::cbs::BrokerCredential;
use super::error::BrokerError;
use super::settings::{ResolvedSettings, ServiceBusSettingsError};

/// Time limit of making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit of a whole request; the longest wait that is asked of the service is far below it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Characters that are shown of an error's text.
const LONGEST_DETAIL: usize = 300;

/// One request.
pub(super) struct HttpCall {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A successful response.
pub(super) struct HttpReply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A client of one namespace.
pub(super) struct NamespaceClient {
    client: reqwest::Client,
    /// Scheme, host and port.
    base: String,
    /// Audience of tokens, before the entity's path.
    audience: String,
    credential: BrokerCredential,
    tokens: Mutex<HashMap<String, EntityToken>>,
}

/// A token as header value.
#[derive(Clone)]
struct EntityToken {
    value: HeaderValue,
    renew_at: Timestamp,
}

impl NamespaceClient {
    pub(super) fn new(plan: &ResolvedSettings) -> Result<Self, ServiceBusSettingsError> {
        let mut client = http_client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .tcp_nodelay(true)
            // Gateways drop idle connections after minutes; one that we drop first can't be reset
            // under a request.
            .pool_idle_timeout(REQUEST_TIMEOUT);
        if let Some(proxy) = &plan.proxy {
            // The parser's own message would show the address, which may hold a password.
            let proxy =
                Proxy::all(proxy.expose_secret()).map_err(|_| ServiceBusSettingsError::BadProxy)?;
            client = client.proxy(proxy.no_proxy(NoProxy::from_env()));
        }
        let scheme = if plan.tls { "https" } else { "http" };
        Ok(Self {
            client: client.build().map_err(ServiceBusSettingsError::HttpClient)?,
            base: format!("{scheme}://{}:{}", plan.host, plan.http_port),
            audience: format!("https://{}", plan.host),
            credential: plan.credential.clone(),
            tokens: Mutex::default(),
        })
    }

    /// Sends a request once; a token that has expired meanwhile is replaced.
    pub(super) async fn call(&self, call: HttpCall) -> Result<HttpReply, BrokerError> {
        let (value, is_new) = self.token(entity_of(&call.path)).await?;
        let result = self.send(&call, value).await;
        match result {
            Err(fault) if fault.is_unauthorized() && !is_new => {
                self.tokens.lock().await.remove(entity_of(&call.path));
                let (value, _) = self.token(entity_of(&call.path)).await?;
                self.send(&call, value).await
            }
            other => other,
        }
    }

    async fn send(&self, call: &HttpCall, token: HeaderValue) -> Result<HttpReply, BrokerError> {
        let mut url = format!("{}{}", self.base, call.path);
        if let Some(query) = &call.query {
            url = format!("{url}?{query}");
        }
        let request = self
            .client
            .request(call.method.clone(), url)
            .headers(call.headers.clone())
            .header(AUTHORIZATION, token)
            .body(call.body.clone());
        let mut response = request.send().await.map_err(request_error)?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = response.bytes().await.map_err(request_error)?;
        if status.is_success() {
            return Ok(HttpReply { status: status.as_u16(), headers, body });
        }
        Err(BrokerError::from_status(status.as_u16(), &error_detail(&body)))
    }

    /// Returns a token for an entity, and whether it was made for this request.
    async fn token(&self, entity: &str) -> Result<(HeaderValue, bool), BrokerError> {
        let mut tokens = self.tokens.lock().await;
        let now = Timestamp::now();
        if let Some(token) = tokens.get(entity).filter(|token| token.renew_at > now) {
            return Ok((token.value.clone(), false));
        }
        let token = self.credential.token(&format!("{}{entity}", self.audience)).await?;
        let text = match self.credential {
            BrokerCredential::Sas { .. } => token.text,
            BrokerCredential::Entra(_) => {
                SecretString::from(format!("Bearer {}", token.text.expose_secret()))
            }
        };
        let mut value =
            HeaderValue::from_str(text.expose_secret()).map_err(BrokerError::permanent)?;
        value.set_sensitive(true);
        let life = Duration::try_from(token.expires_at.duration_since(now)).unwrap_or_default();
        let signed = EntityToken { value: value.clone(), renew_at: now + life * 4 / 5 };
        tokens.insert(entity.to_owned(), signed);
        Ok((value, true))
    }
}

/// Returns the entity of a path: keys may be good for one entity alone.
fn entity_of(path: &str) -> &str {
    path.find("/messages").map_or(path, |end| &path[..end])
}

/// Converts an error without response; the library's own message ends before the cause.
fn request_error(error: reqwest::Error) -> BrokerError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    BrokerError::transient(text)
}

/// Returns the service's message, out of its XML where it is XML.
fn error_detail(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let inner = text.split_once("<Detail>").and_then(|(_, rest)| rest.split_once("</Detail>"));
    inner.map_or(&*text, |(detail, _)| detail).chars().take(LONGEST_DETAIL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_for_the_entity_of_a_path() {
        assert_eq!(entity_of("/jobs/messages/head"), "/jobs");
        assert_eq!(entity_of("/t/Subscriptions/s/messages/1/x"), "/t/Subscriptions/s");
        assert_eq!(entity_of("/jobs"), "/jobs");
    }

    #[test]
    fn the_services_words_are_taken_out_of_their_xml() {
        let said = b"<Error><Code>401</Code><Detail>claims required</Detail></Error>";
        assert_eq!(error_detail(said), "claims required");
        assert_eq!(error_detail(b"<html>proxy</html>"), "<html>proxy</html>");
    }
}
