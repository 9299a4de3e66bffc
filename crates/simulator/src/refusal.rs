//! Error responses (every status but 200): status, error envelope, and Retry-After.
//!
//! The codes and the envelope are the service's, because callers branch on them; the long texts
//! are shortened. Neighbours: `request` and `service` refuse, `head` adds the headers.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

/// Error response to a refused or failed request.
#[derive(Debug)]
pub struct HttpRefusal {
    pub status: StatusCode,
    /// Error code under which the ledger counts it.
    pub code: &'static str,
    pub body: String,
    pub retry_after: Option<Duration>,
}

impl HttpRefusal {
    pub fn invalid(message: &str, param: Option<&str>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            &json!({
                "message": message, "type": "invalid_request_error", "param": param, "code": null,
            }),
        )
    }

    pub fn unsupported_parameter(param: &str) -> Self {
        let message = format!("Unsupported parameter: '{param}' is not supported with this model.");
        Self::new(
            StatusCode::BAD_REQUEST,
            "unsupported_parameter",
            &json!({
                "message": message, "type": "invalid_request_error", "param": param,
                "code": "unsupported_parameter",
            }),
        )
    }

    pub fn content_filter() -> Self {
        let message = "The response was filtered due to the prompt triggering Azure OpenAI's \
                       content management policy. Please modify your prompt and retry.";
        Self::new(
            StatusCode::BAD_REQUEST,
            "content_filter",
            &json!({
                "message": message, "type": null, "param": "prompt", "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {
                        "hate": {"filtered": false, "severity": "safe"},
                        "jailbreak": {"filtered": false, "detected": false},
                        "self_harm": {"filtered": false, "severity": "safe"},
                        "sexual": {"filtered": false, "severity": "safe"},
                        "violence": {"filtered": true, "severity": "medium"},
                    },
                },
            }),
        )
    }

    pub fn context_length(param: &str, max_context: u32, asked: u64) -> Self {
        let message = format!(
            "This model's maximum context length is {max_context} tokens. However, you requested \
             {asked} tokens. Please reduce the length of the {param} or completion."
        );
        Self::new(
            StatusCode::BAD_REQUEST,
            "context_length_exceeded",
            &json!({
                "message": message, "type": "invalid_request_error", "param": param,
                "code": "context_length_exceeded",
            }),
        )
    }

    pub fn unauthorized() -> Self {
        let message = "Access denied due to invalid subscription key or wrong API endpoint. Make \
                       sure to provide a valid key for an active subscription and use a correct \
                       regional API endpoint for your resource.";
        let error = json!({"code": "401", "message": message});
        Self::new(StatusCode::UNAUTHORIZED, "401", &error)
    }

    pub fn deployment_not_found() -> Self {
        let message = "The API deployment for this resource does not exist. If you created the \
                       deployment within the last 5 minutes, please wait a moment and try again.";
        let error = json!({"code": "DeploymentNotFound", "message": message});
        Self::new(StatusCode::NOT_FOUND, "DeploymentNotFound", &error)
    }

    pub fn no_such_path() -> Self {
        let error = json!({"code": "404", "message": "Resource not found"});
        Self::new(StatusCode::NOT_FOUND, "404", &error)
    }

    pub fn body_too_large() -> Self {
        let error = json!({"code": "413", "message": "The request body is too large."});
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "413", &error)
    }

    pub fn tokens_full(retry_after: Duration) -> Self {
        let seconds = ceil_seconds(retry_after);
        Self::too_many(
            retry_after,
            &format!(
                "Requests have exceeded token rate limit of your current OpenAI S0 pricing tier. \
             Please retry after {seconds} seconds."
            ),
        )
    }

    /// The answer of API Management's token-limit policy.
    pub fn gateway_full(retry_after: Duration) -> Self {
        let seconds = ceil_seconds(retry_after);
        Self::too_many(
            retry_after,
            &format!("Token limit is exceeded. Try again in {seconds} seconds."),
        )
    }

    pub fn requests_full(retry_after: Duration) -> Self {
        let seconds = ceil_seconds(retry_after);
        Self::too_many(
            retry_after,
            &format!("Rate limit is exceeded. Try again in {seconds} seconds."),
        )
    }

    pub fn utilization_full(retry_after: Duration) -> Self {
        let seconds = ceil_seconds(retry_after);
        Self::too_many(
            retry_after,
            &format!(
                "The deployment is above 100 % of its provisioned throughput. \
                 Please retry after {seconds} seconds."
            ),
        )
    }

    /// Has no Retry-After, because nobody knows when there will be room.
    pub fn no_flex_room() -> Self {
        let message = "Flex processing has no capacity for this request at the moment.";
        Self { retry_after: None, ..Self::too_many(Duration::ZERO, message) }
    }

    pub fn no_flex_tier() -> Self {
        let message = "Invalid value for 'service_tier': 'flex' is not supported with this model.";
        Self::invalid(message, Some("service_tier"))
    }

    pub fn busy(retry_after: Duration) -> Self {
        Self::too_many(
            retry_after,
            "The system is currently experiencing high demand and cannot process your request.",
        )
    }

    pub fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "500",
            &json!({
                "code": "InternalServerError", "type": "server_error", "param": null,
                "message": "The server had an error while processing your request.",
            }),
        )
    }

    pub fn unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "503",
            &json!({
                "code": "ServiceUnavailable", "type": "server_error", "param": null,
                "message": "The service is temporarily unable to process your request.",
            }),
        )
    }

    pub fn timeout() -> Self {
        let error = json!({"code": "Timeout", "message": "The operation was timeout."});
        Self::new(StatusCode::REQUEST_TIMEOUT, "408", &error)
    }

    fn too_many(retry_after: Duration, message: &str) -> Self {
        // Formatted by hand: under overload this is the most frequent answer. No text passed here
        // needs escaping.
        let body = format!(r#"{{"error":{{"code":"429","message":"{message}"}}}}"#);
        let status = StatusCode::TOO_MANY_REQUESTS;
        Self { status, code: "429", body, retry_after: Some(retry_after) }
    }

    fn new(status: StatusCode, code: &'static str, error: &Value) -> Self {
        let body = json!({ "error": error }).to_string();
        Self { status, code, body, retry_after: None }
    }
}

/// Returns the seconds, rounded up: a caller who waits too short is refused again.
pub fn ceil_seconds(span: Duration) -> u64 {
    span.as_nanos().div_ceil(1_000_000_000) as u64
}

pub fn ceil_millis(span: Duration) -> u64 {
    span.as_nanos().div_ceil(1_000_000) as u64
}
