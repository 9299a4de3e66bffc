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

use crate::queue::QueueError;

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
            Kind::Unauthorized | Kind::Final => Self::Refused(Box::new(fault)),
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
    fn the_brokers_word_is_passed_on() {
        let fault = Fault::said("com.microsoft:server-busy".into(), "wait 2 seconds".into());
        let said = QueueError::from(fault).to_string();
        assert_eq!(said, "the queue can't be reached: com.microsoft:server-busy: wait 2 seconds");
    }
}
