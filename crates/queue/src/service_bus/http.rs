//! The namespace over HTTP: one client for the REST transport and for the descriptions of entities.
//!
//! Puts every request on the configured host with a token of ours, takes the way out that is set
//! (a `proxy`, or what HTTPS_PROXY and NO_PROXY say), and tells passing trouble from refusals.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Method, NoProxy, Proxy};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::cbs::Credential;
use super::fault::Fault;
use super::settings::{Plan, SettingsError};

/// The time a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A whole request; the longest wait that is asked of the service is far below it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What is shown of an error's text.
const LONGEST_DETAIL: usize = 300;

/// What is asked.
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What was answered with success.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A client of one namespace.
pub(super) struct Http {
    client: reqwest::Client,
    /// Scheme, host and port.
    base: String,
    /// What tokens are for: the entity's path goes behind it.
    audience: String,
    credential: Credential,
    tokens: Mutex<HashMap<String, Signed>>,
}

/// A token, as it stands in the header.
#[derive(Clone)]
struct Signed {
    value: HeaderValue,
    renew_at: Timestamp,
}

impl Http {
    pub(super) fn new(plan: &Plan) -> Result<Self, SettingsError> {
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("promptmill/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            // Gateways drop idle connections after minutes; one that we drop first can't be reset
            // under a request.
            .pool_idle_timeout(REQUEST_TIMEOUT);
        if let Some(proxy) = &plan.proxy {
            // The parser's own words would show the address, which may hold a password.
            let proxy = Proxy::all(proxy.expose_secret()).map_err(|_| SettingsError::BadProxy)?;
            client = client.proxy(proxy.no_proxy(NoProxy::from_env()));
        }
        let scheme = if plan.tls { "https" } else { "http" };
        Ok(Self {
            client: client.build().map_err(SettingsError::HttpClient)?,
            base: format!("{scheme}://{}:{}", plan.host, plan.http_port),
            audience: format!("https://{}", plan.host),
            credential: plan.credential.clone(),
            tokens: Mutex::default(),
        })
    }

    /// Asks once; a token that has ended meanwhile is replaced.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Fault> {
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

    async fn send(&self, call: &Call, token: HeaderValue) -> Result<Answer, Fault> {
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
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = response.bytes().await.map_err(failed)?;
        if status.is_success() {
            return Ok(Answer { status: status.as_u16(), headers, body });
        }
        Err(Fault::answered(status.as_u16(), &detail(&body)))
    }

    /// A token for an entity, and whether it was made for this request.
    async fn token(&self, entity: &str) -> Result<(HeaderValue, bool), Fault> {
        let mut tokens = self.tokens.lock().await;
        let now = Timestamp::now();
        if let Some(token) = tokens.get(entity).filter(|token| token.renew_at > now) {
            return Ok((token.value.clone(), false));
        }
        let token = self.credential.token(&format!("{}{entity}", self.audience)).await?;
        let text = match self.credential {
            Credential::Sas { .. } => token.text,
            Credential::Entra(_) => {
                SecretString::from(format!("Bearer {}", token.text.expose_secret()))
            }
        };
        let mut value = HeaderValue::from_str(text.expose_secret()).map_err(Fault::last)?;
        value.set_sensitive(true);
        let life = Duration::try_from(token.ends.duration_since(now)).unwrap_or_default();
        let signed = Signed { value: value.clone(), renew_at: now + life * 4 / 5 };
        tokens.insert(entity.to_owned(), signed);
        Ok((value, true))
    }
}

/// The entity that a path is about: keys may be good for one entity alone.
fn entity_of(path: &str) -> &str {
    path.find("/messages").map_or(path, |end| &path[..end])
}

/// No answer came; the library's own words end before the cause.
fn failed(error: reqwest::Error) -> Fault {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    Fault::passing(text)
}

/// What the service says in words, out of its XML where it is that.
fn detail(body: &[u8]) -> String {
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
        assert_eq!(detail(said), "claims required");
        assert_eq!(detail(b"<html>proxy</html>"), "<html>proxy</html>");
    }
}
