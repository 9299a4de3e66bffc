//! Request and response over a pair of links, as `$cbs` and `$management` use it.
//!
//! One task owns the pair, so that many requests can be in flight at once. It ends with its
//! connection; every caller gets the error.

use std::collections::HashMap;
use std::time::Duration;

use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::types::definitions::Fields;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Properties, Source, Target,
};
use fe2o3_amqp::types::primitives::{OrderedMap, SimpleValue, Symbol, Value};
use fe2o3_amqp::{Delivery, Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::error::{BrokerError, TransportError};
use super::live_connection::AmqpConnection;

/// The node that takes tokens.
pub(super) const CBS: &str = "$cbs";

/// Requests that may wait for the task; more wait in their callers.
const BACKLOG: usize = 64;

/// Responses that may be in flight at once.
const CREDIT: u32 = 256;

/// Time after which a response, which takes one round trip, counts as lost.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

pub(super) struct NodeRequest {
    pub(super) operation: &'static str,
    pub(super) properties: Vec<(&'static str, SimpleValue)>,
    pub(super) body: Value,
}

pub(super) struct NodeReply {
    operation: &'static str,
    status: i64,
    description: String,
    condition: Option<String>,
    body: Value,
}

impl NodeReply {
    /// Returns the response's body, or the broker's refusal as an error.
    pub(super) fn into_body(self) -> Result<Value, BrokerError> {
        match self.status {
            200..=299 => Ok(self.body),
            status => {
                let condition = self.condition.unwrap_or_else(|| default_condition(status).into());
                Err(BrokerError::from_condition(
                    condition,
                    format!("{}: {}", self.operation, self.description),
                ))
            }
        }
    }
}

/// Returns the condition of a status for which the broker names none.
fn default_condition(status: i64) -> &'static str {
    match status {
        401 | 403 => "amqp:unauthorized-access",
        404 => "amqp:not-found",
        410 => "com.microsoft:message-lock-lost",
        400 => "amqp:not-allowed",
        _ => "amqp:internal-error",
    }
}

/// Handle for requests. The task ends when the last clone is dropped.
#[derive(Clone)]
pub(super) struct RequestLink {
    requests: mpsc::Sender<QueuedRequest>,
}

struct QueuedRequest {
    request: NodeRequest,
    answer: oneshot::Sender<Result<NodeReply, BrokerError>>,
}

impl RequestLink {
    /// Attaches a pair of links to a node such as `jobs/$management`.
    pub(super) async fn attach(live: &AmqpConnection, node: &str) -> Result<Self, BrokerError> {
        let reply_to = format!("promptmill-{}", Uuid::new_v4());
        let mut properties = Fields::new();
        if node != CBS {
            let kind = Value::String("entity-mgmt".to_owned());
            properties.insert(Symbol::from("com.microsoft:entity-type"), kind);
        }
        let mut session = live.session().await;
        let sender = Sender::builder()
            .name(format!("ask-{reply_to}"))
            .source(Source::builder().address(reply_to.clone()).build())
            .target(node.to_owned())
            .properties(properties.clone())
            .attach(&mut session)
            .await?;
        let receiver = Receiver::builder()
            .name(format!("answer-{reply_to}"))
            .source(node.to_owned())
            .target(Target::builder().address(reply_to.clone()).build())
            .properties(properties)
            .credit_mode(CreditMode::Auto(CREDIT))
            .auto_accept(true)
            .attach(&mut session)
            .await?;
        drop(session);
        let (questions, asked) = mpsc::channel(BACKLOG);
        let pair = LinkPair { sender, receiver, reply_to, waiting: HashMap::new(), last_id: 0 };
        live.spawn(pair.run(asked));
        Ok(Self { requests: questions })
    }

    pub(super) async fn request(&self, request: NodeRequest) -> Result<NodeReply, BrokerError> {
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            let question = QueuedRequest { request, answer };
            self.requests.send(question).await.map_err(|_| TransportError::ConnectionLost)?;
            answered.await.unwrap_or_else(|_| Err(TransportError::ConnectionLost.into()))
        };
        match tokio::time::timeout(ANSWER_WAIT, exchange).await {
            Ok(reply) => reply,
            Err(_) => Err(TransportError::NoAnswer(ANSWER_WAIT).into()),
        }
    }
}

struct PendingReply {
    operation: &'static str,
    answer: oneshot::Sender<Result<NodeReply, BrokerError>>,
}

/// The links and the requests that wait for a response.
struct LinkPair {
    sender: Sender,
    receiver: Receiver,
    reply_to: String,
    waiting: HashMap<u64, PendingReply>,
    last_id: u64,
}

impl LinkPair {
    async fn run(mut self, mut questions: mpsc::Receiver<QueuedRequest>) {
        let fault = loop {
            let step = tokio::select! {
                question = questions.recv() => match question {
                    Some(question) => self.send(question).await,
                    None => return,
                },
                answer = self.receiver.recv::<Body<Value>>() => match answer {
                    Ok(delivery) => {
                        self.receive_reply(delivery);
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                },
            };
            if let Err(fault) = step {
                break fault;
            }
        };
        questions.close();
        for (_, waiting) in self.waiting.drain() {
            let _ = waiting.answer.send(Err(fault.clone()));
        }
        while let Some(question) = questions.recv().await {
            let _ = question.answer.send(Err(fault.clone()));
        }
    }

    async fn send(&mut self, question: QueuedRequest) -> Result<(), BrokerError> {
        // Requests whose callers gave up; nobody else would clear them away.
        self.waiting.retain(|_, waiting| !waiting.answer.is_closed());
        self.last_id += 1;
        let QueuedRequest { request, answer } = question;
        let operation = request.operation;
        self.waiting.insert(self.last_id, PendingReply { operation, answer });
        let named = [("operation", SimpleValue::String(operation.to_owned()))];
        let properties: OrderedMap<_, _> = named
            .into_iter()
            .chain(request.properties)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let message = Message::builder()
            .properties(
                Properties::builder()
                    .message_id(MessageId::String(self.last_id.to_string()))
                    .reply_to(self.reply_to.clone())
                    .build(),
            )
            .application_properties(ApplicationProperties(properties))
            .body(AmqpValue(request.body))
            .build();
        let sent = tokio::time::timeout(ANSWER_WAIT, self.sender.send_batchable(message)).await;
        // The response is what counts; the send's own outcome says nothing more.
        let _outcome = sent.map_err(|_| TransportError::NoAnswer(ANSWER_WAIT))??;
        Ok(())
    }

    fn receive_reply(&mut self, delivery: Delivery<Body<Value>>) {
        let message = delivery.into_message();
        let correlation = message.properties.and_then(|properties| properties.correlation_id);
        let number = match correlation {
            Some(MessageId::String(text)) => text.parse().ok(),
            Some(MessageId::Ulong(number)) => Some(number),
            _ => None,
        };
        let Some(waiting) = number.and_then(|number| self.waiting.remove(&number)) else { return };
        let properties = message.application_properties.unwrap_or_default();
        // The two nodes spell the same fields differently.
        let field = |names: [&str; 2]| names.iter().find_map(|name| properties.get(*name));
        let status = field(["status-code", "statusCode"]).and_then(integer);
        let reply = status.map(|status| NodeReply {
            operation: waiting.operation,
            status,
            description: field(["status-description", "statusDescription"])
                .and_then(text)
                .unwrap_or_default(),
            condition: field(["error-condition", "errorCondition"]).and_then(text),
            body: match message.body {
                Body::Value(AmqpValue(value)) => value,
                _ => Value::Null,
            },
        });
        let unreadable = TransportError::Unreadable(waiting.operation);
        let _ = waiting.answer.send(reply.ok_or_else(|| unreadable.into()));
    }
}

fn integer(value: &SimpleValue) -> Option<i64> {
    match *value {
        SimpleValue::Int(n) => Some(n.into()),
        SimpleValue::Uint(n) => Some(n.into()),
        SimpleValue::Long(n) => Some(n),
        SimpleValue::Short(n) => Some(n.into()),
        SimpleValue::Ushort(n) => Some(n.into()),
        _ => None,
    }
}

fn text(value: &SimpleValue) -> Option<String> {
    match value {
        SimpleValue::String(text) => Some(text.clone()),
        SimpleValue::Symbol(symbol) => Some(symbol.0.clone()),
        _ => None,
    }
}
