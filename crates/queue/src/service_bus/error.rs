//! Errors on the wire, classified by the one question that matters: retry or not.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use fe2o3_amqp::connection::ConnectionStopReason;
use fe2o3_amqp::link::{
    DetachError, IllegalLinkStateError, LinkStateError, ReceiverAttachError, RecvError, SendError,
    SenderAttachError, SessionStopReason,
};
use fe2o3_amqp::types::definitions::{self, ErrorCondition};

use crate::QueueError;

/// Conditions that no retry fixes: a wrong name, a missing right, an entity switched off.
const PERMANENT: [&str; 5] = [
    UNAUTHORIZED,
    "amqp:not-found",
    "amqp:not-allowed",
    "amqp:not-implemented",
    "com.microsoft:entity-disabled",
];

const UNAUTHORIZED: &str = "amqp:unauthorized-access";
const LOCK_LOST: &str = "com.microsoft:message-lock-lost";

/// A failed step; cloned for every caller that waited for it.
#[derive(Debug, Clone)]
pub(super) struct BrokerError {
    kind: BrokerErrorKind,
    source: Arc<dyn Error + Send + Sync>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BrokerErrorKind {
    /// A lost connection, a busy broker, a move to another node.
    Transient,
    /// HTTP status that the caller has to judge.
    Http(u16),
    /// A working link was cut off: its token expired. A new connection brings a new one.
    TokenExpired,
    /// Refused with a token that was just put.
    Unauthorized,
    Permanent,
    LockLost,
}

/// Error condition that the broker sent.
#[derive(Debug, thiserror::Error)]
#[error("{condition}: {description}")]
struct ConditionError {
    condition: String,
    description: String,
}

/// HTTP status of a failed request.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status}: {detail}")]
struct HttpStatusError {
    status: u16,
    detail: String,
}

/// Failure that has no error type of its own.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("the connection was lost")]
    ConnectionLost,
    #[error("the broker detached the link")]
    Detached,
    #[error("no answer within {0:?}")]
    NoAnswer(std::time::Duration),
    #[error("the broker's answer to '{0}' can't be understood")]
    Unreadable(&'static str),
    #[error("the queue is closed")]
    Closed,
    #[error("there is no queue '{0}'")]
    NoQueue(String),
    #[error(
        "the queue's counts can't be read over HTTPS without the Manage right: give the key \
         that right, or set transport = \"amqp\" ({0})"
    )]
    NoCounts(String),
}

impl BrokerError {
    pub(super) fn transient(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: BrokerErrorKind::Transient, source: Arc::from(source.into()) }
    }

    /// Creates a permanent error, which no retry fixes.
    pub(super) fn permanent(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: BrokerErrorKind::Permanent, source: Arc::from(source.into()) }
    }

    /// Classifies an error condition of the broker.
    pub(super) fn from_condition(condition: String, description: String) -> Self {
        let kind = match condition.as_str() {
            UNAUTHORIZED => BrokerErrorKind::Unauthorized,
            LOCK_LOST => BrokerErrorKind::LockLost,
            other if PERMANENT.contains(&other) => BrokerErrorKind::Permanent,
            _ => BrokerErrorKind::Transient,
        };
        Self { kind, source: Arc::new(ConditionError { condition, description }) }
    }

    /// Classifies an HTTP status that is no success. Meaning of the statuses: learn.microsoft.com,
    /// "Service Bus REST API, response codes".
    pub(super) fn from_status(status: u16, detail: &str) -> Self {
        let kind = match status {
            401 => BrokerErrorKind::Unauthorized,
            403 | 404 | 409 | 410 | 413 => BrokerErrorKind::Http(status),
            408 | 429 | 500.. => BrokerErrorKind::Transient,
            _ => BrokerErrorKind::Permanent,
        };
        let source = HttpStatusError { status, detail: detail.to_owned() };
        Self { kind, source: Arc::new(source) }
    }

    /// Turns "missing" into a lost lock, for requests about one locked message.
    pub(super) fn missing_as_lock_lost(self) -> Self {
        let kind = if self.is_missing() { BrokerErrorKind::LockLost } else { self.kind };
        Self { kind, ..self }
    }

    /// Turns 403 (not 413) into a transient error: for a message that fits it means a full queue.
    pub(super) fn transient_if_full(self) -> Self {
        let kind = if self.kind == BrokerErrorKind::Http(403) {
            BrokerErrorKind::Transient
        } else {
            self.kind
        };
        Self { kind, ..self }
    }

    pub(super) fn is_missing(&self) -> bool {
        matches!(self.kind, BrokerErrorKind::Http(404 | 410))
    }

    pub(super) fn is_conflict(&self) -> bool {
        self.kind == BrokerErrorKind::Http(409)
    }

    /// Returns whether a message may be too large: 403 is the answer to that and to a full queue.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self.kind, BrokerErrorKind::Http(403 | 413))
    }

    pub(super) fn is_not_allowed(&self) -> bool {
        matches!(self.kind, BrokerErrorKind::Unauthorized | BrokerErrorKind::Http(403))
    }

    pub(super) fn is_transient(&self) -> bool {
        matches!(self.kind, BrokerErrorKind::Transient | BrokerErrorKind::TokenExpired)
    }

    pub(super) fn is_token_expired(&self) -> bool {
        self.kind == BrokerErrorKind::TokenExpired
    }

    pub(super) fn is_unauthorized(&self) -> bool {
        self.kind == BrokerErrorKind::Unauthorized
    }

    pub(super) fn is_lock_lost(&self) -> bool {
        self.kind == BrokerErrorKind::LockLost
    }
}

impl fmt::Display for BrokerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for BrokerError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

impl From<BrokerError> for QueueError {
    fn from(fault: BrokerError) -> Self {
        match fault.kind {
            BrokerErrorKind::Transient
            | BrokerErrorKind::TokenExpired
            | BrokerErrorKind::LockLost => Self::Unavailable(Box::new(fault)),
            BrokerErrorKind::Unauthorized
            | BrokerErrorKind::Permanent
            | BrokerErrorKind::Http(_) => Self::Refused(Box::new(fault)),
        }
    }
}

impl From<TransportError> for BrokerError {
    fn from(trouble: TransportError) -> Self {
        Self::transient(trouble)
    }
}

impl From<definitions::Error> for BrokerError {
    fn from(error: definitions::Error) -> Self {
        Self::from_condition(
            condition_name(&error.condition),
            error.description.unwrap_or_default(),
        )
    }
}

/// Returns the condition's name as on the wire.
fn condition_name(condition: &ErrorCondition) -> String {
    let symbol = match condition {
        ErrorCondition::AmqpError(error) => error.into(),
        ErrorCondition::ConnectionError(error) => error.into(),
        ErrorCondition::SessionError(error) => error.into(),
        ErrorCondition::LinkError(error) => error.into(),
        ErrorCondition::Custom(symbol) => symbol.clone(),
    };
    symbol.0
}

impl From<SessionStopReason> for BrokerError {
    fn from(reason: SessionStopReason) -> Self {
        match reason {
            SessionStopReason::RemoteEndedWithError(error)
            | SessionStopReason::ConnectionStopped(ConnectionStopReason::RemoteClosedWithError(
                error,
            )) => error.into(),
            _ => TransportError::ConnectionLost.into(),
        }
    }
}

impl From<LinkStateError> for BrokerError {
    fn from(error: LinkStateError) -> Self {
        match error {
            LinkStateError::RemoteDetachedWithError(error)
            | LinkStateError::RemoteClosedWithError(error) => {
                let mut fault = Self::from(error);
                if fault.kind == BrokerErrorKind::Unauthorized {
                    fault.kind = BrokerErrorKind::TokenExpired;
                }
                fault
            }
            LinkStateError::SessionStopped(reason) => reason.into(),
            _ => TransportError::Detached.into(),
        }
    }
}

impl From<RecvError> for BrokerError {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::LinkStateError(error) => error.into(),
            other => Self::transient(other),
        }
    }
}

impl From<SendError> for BrokerError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::LinkStateError(error) => error.into(),
            SendError::Detached(error) => LinkStateError::from(error).into(),
            other => Self::transient(other),
        }
    }
}

impl From<DetachError> for BrokerError {
    fn from(error: DetachError) -> Self {
        LinkStateError::from(error).into()
    }
}

impl From<IllegalLinkStateError> for BrokerError {
    fn from(error: IllegalLinkStateError) -> Self {
        LinkStateError::from(error).into()
    }
}

impl From<SenderAttachError> for BrokerError {
    fn from(error: SenderAttachError) -> Self {
        match error {
            SenderAttachError::RemoteClosedWithError(error) => error.into(),
            SenderAttachError::SessionStopped(reason) => reason.into(),
            other => Self::transient(other),
        }
    }
}

impl From<ReceiverAttachError> for BrokerError {
    fn from(error: ReceiverAttachError) -> Self {
        match error {
            ReceiverAttachError::RemoteClosedWithError(error) => error.into(),
            ReceiverAttachError::SessionStopped(reason) => reason.into(),
            other => Self::transient(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_refused_only_if_trying_again_cannot_help() {
        let refused = |condition: &str| {
            let fault = BrokerError::from_condition(condition.to_owned(), "why".to_owned());
            matches!(QueueError::from(fault), QueueError::Refused(_))
        };
        for condition in ["amqp:not-found", UNAUTHORIZED, "com.microsoft:entity-disabled"] {
            assert!(refused(condition), "{condition}");
        }
        for condition in ["com.microsoft:server-busy", "amqp:link:stolen", "amqp:internal-error"] {
            assert!(!refused(condition), "{condition}");
        }
    }

    #[test]
    fn an_http_status_says_whether_trying_again_can_help() {
        for status in [408, 429, 500, 503] {
            assert!(BrokerError::from_status(status, "").is_transient(), "{status}");
        }
        for status in [400, 401, 403, 404, 410, 413] {
            assert!(!BrokerError::from_status(status, "").is_transient(), "{status}");
        }
        assert!(BrokerError::from_status(410, "").missing_as_lock_lost().is_lock_lost());
        assert!(!BrokerError::from_status(503, "").missing_as_lock_lost().is_lock_lost());
        assert!(BrokerError::from_status(403, "").transient_if_full().is_transient());
    }

    #[test]
    fn the_brokers_word_is_passed_on() {
        let fault = BrokerError::from_condition(
            "com.microsoft:server-busy".into(),
            "wait 2 seconds".into(),
        );
        let said = QueueError::from(fault).to_string();
        assert_eq!(said, "the queue can't be reached: com.microsoft:server-busy: wait 2 seconds");
    }
}
