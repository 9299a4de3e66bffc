//! Error responses: the error object of the OpenAI API, for every path.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::error;

use queue::QueueError;
use store::StoreError;

/// `Retry-After` of responses when the queue or the store is unreachable.
const RETRY_SECONDS: u64 = 5;

/// Error response of a request that was refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: String,
    /// Request field that is invalid.
    pub param: Option<&'static str>,
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// Returns 400 for an invalid field.
    pub fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Self { param: Some(param), ..error }
    }

    /// Returns 404 for an object that does not exist.
    pub fn no_such(what: &str, id: &str) -> Self {
        // An arbitrary id is not echoed at any length.
        let id: String = id.chars().take(80).collect();
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("No such {what}: {id}"))
    }

    fn unavailable(what: &str) -> Self {
        let message = format!("{what} can't be reached now; try again in {RETRY_SECONDS} s");
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
        Self { retry_after: Some(RETRY_SECONDS), ..error }
    }

    fn internal(what: &str) -> Self {
        let message = format!("{what} refused; the server's log says why");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// Returns the API's error type for the status.
    fn error_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            status if status < 500 => "invalid_request_error",
            _ => "server_error",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = json!({"error": {
            "message": self.message, "type": self.error_type(), "param": self.param, "code": self.code,
        }});
        let mut response = json_response(self.status, &error);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

/// Returns a JSON response.
pub fn json_response(status: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => {
            let mut response = Response::new(Body::from(bytes));
            *response.status_mut() = status;
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => {
            error!(%error, "an answer could not be written as JSON");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        // Callers need not see our services' names; the log has them.
        error!(%error, "a request failed");
        match error {
            StoreError::Unavailable(_) => Self::unavailable("the store"),
            StoreError::Refused(_) => Self::internal("the store"),
        }
    }
}

impl From<QueueError> for ApiError {
    fn from(error: QueueError) -> Self {
        error!(%error, "a request failed");
        match error {
            QueueError::Unavailable(_) => Self::unavailable("the queue"),
            QueueError::Refused(_) | QueueError::TooLarge { .. } => Self::internal("the queue"),
        }
    }
}
