//! Carries the requests of `azure_messaging_servicebus`, which knows the public cloud's host and
//! shared keys alone: here each goes to the configured host with a token of ours, of a key or of
//! Entra ID, through the configured proxy.
//!
//! Also fixes what the crate can't parse in responses, since a message that is locked and not read
//! is locked for nobody: properties that the service leaves out, a sequence number beyond 32 bits,
//! a body that is no UTF-8 (which is no job either).

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use azure_core_rest::error::{Error, ErrorKind};
use azure_core_rest::headers::{AUTHORIZATION, CONTENT_LENGTH, Headers};
use azure_core_rest::{Body, HttpClient, Request, Response, Result, StatusCode};
use azure_messaging_servicebus::service_bus::QueueClient;
use bytes::Bytes;
use futures_util::stream;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

use crate::service_bus::error::BrokerError;
use crate::service_bus::http::{HttpCall, HttpReply, NamespaceClient};

const BROKER_PROPERTIES: &str = "brokerproperties";

/// Key that the crate signs with, to no effect.
const NO_KEY: &str = "unused";

/// Creates an entity's client whose requests `http` carries.
pub(super) fn queue_client(
    http: &Arc<NamespaceClient>,
    entity: &str,
) -> std::result::Result<QueueClient, BrokerError> {
    let carrier: Arc<dyn HttpClient> = Arc::new(HttpAdapter(http.clone()));
    QueueClient::new(carrier, NO_KEY, entity, NO_KEY, NO_KEY.to_owned()).map_err(broker_error)
}

/// Extracts our error from the crate's.
pub(super) fn broker_error(error: Error) -> BrokerError {
    error.into_downcast::<BrokerError>().unwrap_or_else(BrokerError::transient)
}

struct HttpAdapter(Arc<NamespaceClient>);

impl fmt::Debug for HttpAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpAdapter")
    }
}

#[async_trait]
impl HttpClient for HttpAdapter {
    async fn execute_request(&self, request: &Request) -> Result<Response> {
        let answer = self.0.call(to_call(request)?).await;
        let answer = answer.map_err(|fault| {
            // On a locked message's path nothing but its lock can be missing.
            let fault = if is_locked_message(request.url().path()) {
                fault.missing_as_lock_lost()
            } else {
                fault
            };
            Error::new(ErrorKind::Other, fault)
        })?;
        to_response(answer)
    }
}

/// Returns whether a path is that of one locked message.
fn is_locked_message(path: &str) -> bool {
    path.rsplit_once("/messages/").is_some_and(|(_, rest)| rest.contains('/'))
}

fn to_call(request: &Request) -> Result<HttpCall> {
    let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(ErrorKind::DataConversion, error)
    };
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers().iter() {
        if *name != AUTHORIZATION && *name != CONTENT_LENGTH {
            let name = HeaderName::try_from(name.as_str()).map_err(|e| wrong(e.into()))?;
            headers
                .insert(name, HeaderValue::from_str(value.as_str()).map_err(|e| wrong(e.into()))?);
        }
    }
    let Body::Bytes(body) = request.body() else {
        return Err(wrong("a body that is streamed".into()));
    };
    Ok(HttpCall {
        method: Method::from_bytes(request.method().as_ref().as_bytes())
            .map_err(|e| wrong(e.into()))?,
        path: request.url().path().to_owned(),
        query: request.url().query().map(str::to_owned),
        headers,
        body: body.clone(),
    })
}

fn to_response(answer: HttpReply) -> Result<Response> {
    let status = StatusCode::try_from(answer.status)
        .map_err(|error| Error::with_message(ErrorKind::DataConversion, || error.to_string()))?;
    let mut headers = Headers::new();
    for (name, value) in &answer.headers {
        let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
        let is_brokers = name.as_str() == BROKER_PROPERTIES;
        let text = if is_brokers { complete_properties(&text) } else { text };
        headers.insert(name.as_str().to_owned(), text);
    }
    let body = match String::from_utf8_lossy(&answer.body) {
        std::borrow::Cow::Borrowed(_) => answer.body.clone(),
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    };
    Ok(Response::new(status, headers, Box::pin(stream::iter([Ok(body)]))))
}

/// Adds the broker properties that the crate insists on, and removes what it can't hold. Text that
/// is no JSON object stays for the crate to refuse.
fn complete_properties(text: &str) -> String {
    let Ok(mut properties) = serde_json::from_str::<Map<String, Value>>(text) else {
        return text.to_owned();
    };
    properties.remove("EnqueuedSequenceNumber");
    let usual = [
        ("DeliveryCount", Value::from(1)),
        ("EnqueuedTimeUtc", Value::Null),
        ("MessageId", "".into()),
        ("SequenceNumber", 0.into()),
        ("State", "Active".into()),
        ("TimeToLive", 0.0.into()),
    ];
    for (name, value) in usual {
        properties.entry(name).or_insert(value);
    }
    Value::Object(properties).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use azure_messaging_servicebus::service_bus::BrokerProperties;

    #[test]
    fn what_the_crate_cannot_read_is_mended() {
        let sparse = r#"{"LockToken":"t","LockedUntilUtc":"Wed, 02 Jul 2014 01:32:27 GMT"}"#;
        let large = r#"{"DeliveryCount":3,"EnqueuedSequenceNumber":99999999999,
            "EnqueuedTimeUtc":"Wed, 02 Jul 2014 01:32:27 GMT","LockToken":"t","MessageId":"m",
            "LockedUntilUtc":"Wed, 02 Jul 2014 01:32:27 GMT","SequenceNumber":99999999999,
            "State":"Active","TimeToLive":922337203685.47754}"#;
        for (text, count) in [(sparse, 1), (large, 3)] {
            assert!(text.parse::<BrokerProperties>().is_err(), "{text}");
            let read: BrokerProperties = complete_properties(text).parse().unwrap();
            assert_eq!((read.delivery_count, read.lock_token.as_str()), (count, "t"));
        }
    }

    #[test]
    fn a_locked_message_has_a_path_of_its_own() {
        assert!(is_locked_message("/jobs/messages/1/2b3c"));
        assert!(!is_locked_message("/jobs/messages/head") && !is_locked_message("/jobs/messages"));
    }
}
