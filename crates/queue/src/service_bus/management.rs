//! Requests to a queue's `$management` node: renewing locks, settling where no link can, and
//! peeking.
//!
//! Every request may be repeated, so each is sent again when its response was lost: a second
//! settlement finds the lock gone, which is no error.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::messaging::message::DecodeIntoMessage;
use fe2o3_amqp::types::primitives::{OrderedMap, Value};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_amqp::read::SliceReader;
use tokio::sync::Mutex;

use super::connection::{AmqpConnector, RetryBudget};
use super::error::{BrokerError, TransportError};
use super::live_connection::AmqpConnection;
use super::message::{self, ReceivedMessage};
use super::receiving_link::DeliveryDisposition;
use super::request::{NodeRequest, RequestLink};
use crate::LockToken;

const RENEW: &str = "com.microsoft:renew-lock";
const PEEK: &str = "com.microsoft:peek-message";
const UPDATE: &str = "com.microsoft:update-disposition";

/// Lock tokens in one request.
const TOKENS_PER_REQUEST: usize = 100;

/// Messages in one peek; the service gives no more.
pub(super) const PEEK_PAGE: usize = 250;

/// The management node of a queue or of its dead-letter subqueue.
pub(super) struct ManagementNode {
    connector: Arc<AmqpConnector>,
    node: String,
    patience: Duration,
    link: Mutex<Option<(Arc<AmqpConnection>, RequestLink)>>,
}

type RequestArguments = Vec<(&'static str, Value)>;

impl ManagementNode {
    pub(super) fn new(connector: Arc<AmqpConnector>, entity: &str, patience: Duration) -> Self {
        let node = format!("{entity}/$management");
        Self { connector, node, patience, link: Mutex::default() }
    }

    /// Extends locks; returns the new expiries in the order asked, `None` where the lock is lost.
    pub(super) async fn renew(
        &self,
        locks: &[LockToken],
    ) -> Result<Vec<Option<Timestamp>>, BrokerError> {
        let mut renewed = Vec::with_capacity(locks.len());
        let mut parts = token_ranges(locks.len());
        while let Some(part) = parts.pop_front() {
            let tokens = &locks[part.clone()];
            match self.request(RENEW, vec![("lock-tokens", guids(tokens))]).await {
                Ok(body) => {
                    let times = expirations(&body).filter(|times| times.len() == tokens.len());
                    let times = times.ok_or(TransportError::Unreadable(RENEW))?;
                    renewed.extend(times.into_iter().map(Some));
                }
                Err(fault) if fault.is_lock_lost() => {
                    if !halve(&mut parts, part) {
                        renewed.push(None);
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(renewed)
    }

    /// Settles deliveries of links that are gone, and waits for that. A lost lock is no error.
    pub(super) async fn settle(
        &self,
        locks: &[LockToken],
        verdict: &DeliveryDisposition,
    ) -> Result<(), BrokerError> {
        let (status, reason) = match verdict {
            DeliveryDisposition::Complete => ("completed", None),
            DeliveryDisposition::Abandon => ("abandoned", None),
            DeliveryDisposition::DeadLetter(reason) => ("suspended", Some(reason)),
        };
        let mut parts = token_ranges(locks.len());
        while let Some(part) = parts.pop_front() {
            let mut arguments = vec![
                ("disposition-status", Value::String(status.to_owned())),
                ("lock-tokens", guids(&locks[part.clone()])),
            ];
            if let Some(reason) = reason {
                arguments.extend([
                    ("deadletter-reason", Value::String(reason.reason.clone())),
                    ("deadletter-description", Value::String(reason.description.clone())),
                ]);
            }
            match self.request(UPDATE, arguments).await {
                Ok(_) => {}
                Err(fault) if fault.is_lock_lost() => {
                    halve(&mut parts, part);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(())
    }

    /// Peeks at messages from a sequence number on; an empty page means that there are none. A page
    /// may hold fewer than are there, since it is bounded in bytes as well.
    pub(super) async fn peek(
        &self,
        from: i64,
        count: usize,
    ) -> Result<Vec<ReceivedMessage>, BrokerError> {
        let count = i32::try_from(count.min(PEEK_PAGE)).unwrap_or(i32::MAX);
        let arguments =
            vec![("from-sequence-number", Value::Long(from)), ("message-count", Value::Int(count))];
        let body = self.request(PEEK, arguments).await?;
        peeked(&body).ok_or_else(|| TransportError::Unreadable(PEEK).into())
    }

    async fn request(
        &self,
        operation: &'static str,
        arguments: RequestArguments,
    ) -> Result<Value, BrokerError> {
        let body: OrderedMap<Value, Value> = arguments
            .into_iter()
            .map(|(name, value)| (Value::String(name.to_owned()), value))
            .collect();
        let body = Value::Map(body);
        let mut patience = RetryBudget::new(self.patience);
        loop {
            let request = NodeRequest { operation, properties: Vec::new(), body: body.clone() };
            if let Some(answer) = patience.run(self.request_once(request)).await {
                return answer;
            }
        }
    }

    async fn request_once(&self, request: NodeRequest) -> Result<Value, BrokerError> {
        let (live, link) = self.link().await?;
        let answer = match link.request(request).await {
            Ok(reply) => reply.into_body(),
            Err(fault) => Err(fault),
        };
        if let Some(fault) = answer.as_ref().err().filter(|fault| !fault.is_lock_lost()) {
            if fault.is_token_expired() {
                live.end();
            }
            // Whatever it was, a new link is the cleanest retry.
            self.link.lock().await.take();
        }
        answer
    }

    async fn link(&self) -> Result<(Arc<AmqpConnection>, RequestLink), BrokerError> {
        let mut link = self.link.lock().await;
        if let Some(open) = link.as_ref().filter(|(live, _)| !live.is_ended()) {
            return Ok(open.clone());
        }
        let attach = |live: Arc<AmqpConnection>| -> BoxFuture<'static, _> {
            let node = self.node.clone();
            Box::pin(async move { RequestLink::attach(&live, &node).await })
        };
        let open = self.connector.attach(attach).await?;
        *link = Some(open.clone());
        Ok(open)
    }
}

/// Splits `total` tokens into requests.
fn token_ranges(total: usize) -> VecDeque<Range<usize>> {
    (0..total)
        .step_by(TOKENS_PER_REQUEST)
        .map(|from| from..total.min(from + TOKENS_PER_REQUEST))
        .collect()
}

/// Halves a request that one lost lock made fail as a whole. False if it has but one lock.
fn halve(parts: &mut VecDeque<Range<usize>>, part: Range<usize>) -> bool {
    if part.len() < 2 {
        return false;
    }
    let middle = part.start + part.len() / 2;
    parts.push_front(middle..part.end);
    parts.push_front(part.start..middle);
    true
}

fn guids(locks: &[LockToken]) -> Value {
    let one = |lock: &LockToken| Value::Uuid(lock.0.into_bytes().into());
    Value::Array(locks.iter().map(one).collect())
}

fn entry<'v>(body: &'v Value, name: &str) -> Option<&'v Value> {
    match body {
        Value::Map(map) => map.get(&Value::String(name.to_owned())),
        _ => None,
    }
}

fn expirations(body: &Value) -> Option<Vec<Timestamp>> {
    let times = match entry(body, "expirations")? {
        Value::Array(times) => times.0.as_slice(),
        Value::List(times) => times.as_slice(),
        _ => return None,
    };
    let time = |value: &Value| match value {
        Value::Timestamp(at) => Timestamp::from_millisecond(at.milliseconds()).ok(),
        _ => None,
    };
    times.iter().map(time).collect()
}

fn peeked(body: &Value) -> Option<Vec<ReceivedMessage>> {
    let messages = match entry(body, "messages") {
        Some(Value::List(messages)) => messages.as_slice(),
        Some(Value::Array(messages)) => messages.0.as_slice(),
        // "None" is answered with a status of its own and no list.
        _ => return Some(Vec::new()),
    };
    let one = |message: &Value| match entry(message, "message")? {
        Value::Binary(bytes) => {
            Body::<Value>::decode_message_from_reader(SliceReader::new(bytes)).ok()
        }
        _ => None,
    };
    messages.iter().map(one).collect()
}

/// Returns the sequence number at which the next peek goes on.
pub(super) fn next_sequence(page: &[ReceivedMessage]) -> Option<i64> {
    page.last().and_then(message::sequence_number).map(|last| last + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_question_is_halved_down_to_the_lost_lock() {
        let lost = 137;
        let mut parts = token_ranges(250);
        let (mut asked, mut renewed) = (0, Vec::new());
        while let Some(part) = parts.pop_front() {
            asked += 1;
            if !part.contains(&lost) {
                renewed.extend(part.map(Some));
            } else if !halve(&mut parts, part) {
                renewed.push(None);
            }
        }
        let expected: Vec<_> = (0..250).map(|n| (n != lost).then_some(n)).collect();
        assert_eq!(renewed, expected);
        assert!(asked < 20, "{asked} questions");
    }
}
