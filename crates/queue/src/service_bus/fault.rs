//! What can go wrong on the wire, sorted by the one question that matters: try again or not.

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

/// Conditions that no second try mends: a wrong name, a missing right, an entity switched off.
const FINAL: [&str; 5] = [
    UNAUTHORIZED,
    "amqp:not-found",
    "amqp:not-allowed",
    "amqp:not-implemented",
    "com.microsoft:entity-disabled",
];

const UNAUTHORIZED: &str = "amqp:unauthorized-access";
const LOCK_LOST: &str = "com.microsoft:message-lock-lost";

/// A failed step; clones tell everybody who waited for it.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    kind: Kind,
    source: Arc<dyn Error + Send + Sync>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A lost connection, a busy broker, a move to another node.
    Passing,
    /// By an HTTP status that is for its asker to judge.
    Http(u16),
    /// A link that worked was cut off: its token ended. A new connection brings a new one.
    TokenEnded,
    /// Refused with a token that was just put.
    Unauthorized,
    Final,
    LockLost,
}

/// What the broker said.
#[derive(Debug, thiserror::Error)]
#[error("{condition}: {description}")]
struct Said {
    condition: String,
    description: String,
}

/// What an HTTP status said.
#[derive(Debug, thiserror::Error)]
#[error("HTTP {status}: {detail}")]
struct Answered {
    status: u16,
    detail: String,
}

/// Trouble that has no error of its own.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
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
        "how much the queue holds can't be seen over HTTPS without the right Manage: give the key \
         that right, or set transport = \"amqp\" ({0})"
    )]
    NoCounts(String),
}

impl Fault {
    pub(super) fn passing(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: Kind::Passing, source: Arc::from(source.into()) }
    }

    /// Trying again can't help.
    pub(super) fn last(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind: Kind::Final, source: Arc::from(source.into()) }
    }

    /// By the broker's own word.
    pub(super) fn said(condition: String, description: String) -> Self {
        let kind = match condition.as_str() {
            UNAUTHORIZED => Kind::Unauthorized,
            LOCK_LOST => Kind::LockLost,
            other if FINAL.contains(&other) => Kind::Final,
            _ => Kind::Passing,
        };
        Self { kind, source: Arc::new(Said { condition, description }) }
    }

    /// By an HTTP status that is no success. Which status means what: learn.microsoft.com,
    /// "Service Bus REST API, response codes".
    pub(super) fn answered(status: u16, detail: &str) -> Self {
        let kind = match status {
            401 => Kind::Unauthorized,
            403 | 404 | 409 | 410 | 413 => Kind::Http(status),
            408 | 429 | 500.. => Kind::Passing,
            _ => Kind::Final,
        };
        let source = Answered { status, detail: detail.to_owned() };
        Self { kind, source: Arc::new(source) }
    }

    /// What is missing is the lock of one message.
    pub(super) fn of_lock(self) -> Self {
        let kind = if self.is_missing() { Kind::LockLost } else { self.kind };
        Self { kind, ..self }
    }

    /// For a message that fits: 403 is said of a full queue, and 413 of none.
    pub(super) fn passing_if_full(self) -> Self {
        let kind = if self.kind == Kind::Http(403) { Kind::Passing } else { self.kind };
        Self { kind, ..self }
    }

    pub(super) fn is_missing(&self) -> bool {
        matches!(self.kind, Kind::Http(404 | 410))
    }

    pub(super) fn is_conflict(&self) -> bool {
        self.kind == Kind::Http(409)
    }

    /// For a message that may not fit: the service says 403 of both, a full queue and such.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self.kind, Kind::Http(403 | 413))
    }

    pub(super) fn is_not_allowed(&self) -> bool {
        matches!(self.kind, Kind::Unauthorized | Kind::Http(403))
    }

    pub(super) fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::Passing | Kind::TokenEnded)
    }

    pub(super) fn is_of_token(&self) -> bool {
        self.kind == Kind::TokenEnded
    }

    pub(super) fn is_unauthorized(&self) -> bool {
        self.kind == Kind::Unauthorized
    }

    pub(super) fn is_lock_lost(&self) -> bool {
        self.kind == Kind::LockLost
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for Fault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

impl From<Fault> for QueueError {
    fn from(fault: Fault) -> Self {
        match fault.kind {
            Kind::Passing | Kind::TokenEnded | Kind::LockLost => Self::Unavailable(Box::new(fault)),
            Kind::Unauthorized | Kind::Final | Kind::Http(_) => Self::Refused(Box::new(fault)),
        }
    }
}

impl From<Trouble> for Fault {
    fn from(trouble: Trouble) -> Self {
        Self::passing(trouble)
    }
}

impl From<definitions::Error> for Fault {
    fn from(error: definitions::Error) -> Self {
        Self::said(name(&error.condition), error.description.unwrap_or_default())
    }
}

/// The condition's name as it stands on the wire.
fn name(condition: &ErrorCondition) -> String {
    let symbol = match condition {
        ErrorCondition::AmqpError(error) => error.into(),
        ErrorCondition::ConnectionError(error) => error.into(),
        ErrorCondition::SessionError(error) => error.into(),
        ErrorCondition::LinkError(error) => error.into(),
        ErrorCondition::Custom(symbol) => symbol.clone(),
    };
    symbol.0
}

impl From<SessionStopReason> for Fault {
    fn from(reason: SessionStopReason) -> Self {
        match reason {
            SessionStopReason::RemoteEndedWithError(error)
            | SessionStopReason::ConnectionStopped(ConnectionStopReason::RemoteClosedWithError(
                error,
            )) => error.into(),
            _ => Trouble::ConnectionLost.into(),
        }
    }
}

impl From<LinkStateError> for Fault {
    fn from(error: LinkStateError) -> Self {
        match error {
            LinkStateError::RemoteDetachedWithError(error)
            | LinkStateError::RemoteClosedWithError(error) => {
                let mut fault = Self::from(error);
                if fault.kind == Kind::Unauthorized {
                    fault.kind = Kind::TokenEnded;
                }
                fault
            }
            LinkStateError::SessionStopped(reason) => reason.into(),
            _ => Trouble::Detached.into(),
        }
    }
}

impl From<RecvError> for Fault {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::LinkStateError(error) => error.into(),
            other => Self::passing(other),
        }
    }
}

impl From<SendError> for Fault {
    fn from(error: SendError) -> Self {
        match error {
            SendError::LinkStateError(error) => error.into(),
            SendError::Detached(error) => LinkStateError::from(error).into(),
            other => Self::passing(other),
        }
    }
}

impl From<DetachError> for Fault {
    fn from(error: DetachError) -> Self {
        LinkStateError::from(error).into()
    }
}

impl From<IllegalLinkStateError> for Fault {
    fn from(error: IllegalLinkStateError) -> Self {
        LinkStateError::from(error).into()
    }
}

impl From<SenderAttachError> for Fault {
    fn from(error: SenderAttachError) -> Self {
        match error {
            SenderAttachError::RemoteClosedWithError(error) => error.into(),
            SenderAttachError::SessionStopped(reason) => reason.into(),
            other => Self::passing(other),
        }
    }
}

impl From<ReceiverAttachError> for Fault {
    fn from(error: ReceiverAttachError) -> Self {
        match error {
            ReceiverAttachError::RemoteClosedWithError(error) => error.into(),
            ReceiverAttachError::SessionStopped(reason) => reason.into(),
            other => Self::passing(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_refused_only_if_trying_again_cannot_help() {
        let refused = |condition: &str| {
            let fault = Fault::said(condition.to_owned(), "why".to_owned());
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
            assert!(Fault::answered(status, "").is_passing(), "{status}");
        }
        for status in [400, 401, 403, 404, 410, 413] {
            assert!(!Fault::answered(status, "").is_passing(), "{status}");
        }
        assert!(Fault::answered(410, "").of_lock().is_lock_lost());
        assert!(!Fault::answered(503, "").of_lock().is_lock_lost());
        assert!(Fault::answered(403, "").passing_if_full().is_passing());
    }

    #[test]
    fn the_brokers_word_is_passed_on() {
        let fault = Fault::said("com.microsoft:server-busy".into(), "wait 2 seconds".into());
        let said = QueueError::from(fault).to_string();
        assert_eq!(said, "the queue can't be reached: com.microsoft:server-busy: wait 2 seconds");
    }
}
