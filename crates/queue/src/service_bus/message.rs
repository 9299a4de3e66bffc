//! A job as an AMQP message and back, and the lock token behind a delivery tag.

use std::borrow::Cow;
use std::time::Duration;

use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{
    AmqpValue, Annotations, ApplicationProperties, Body, Data, Header, Message, MessageAnnotations,
    MessageId, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Value};
use jiff::Timestamp;
use uuid::Uuid;

use crate::sight::{Place, Seen, Sight, Sought};
use crate::{DeadLetter, DeadLetterReason, LockToken};
use domain::job::{Job, JobId, TraceParent};

const LOCKED_UNTIL: &str = "x-opt-locked-until";
const ENQUEUED: &str = "x-opt-enqueued-time";
const SCHEDULED: &str = "x-opt-scheduled-enqueue-time";
pub(super) const SEQUENCE: &str = "x-opt-sequence-number";

/// Where the trace of a message stands: by W3C's draft for AMQP, and where Microsoft's SDKs had it
/// before (learn.microsoft.com, "End-to-end tracing and diagnostics").
pub(super) const TRACE: [&str; 2] = ["traceparent", "Diagnostic-Id"];

pub(super) const REASON: &str = "DeadLetterReason";
pub(super) const DESCRIPTION: &str = "DeadLetterErrorDescription";

/// Characters that the service keeps of a reason and of a description.
const LONGEST_REASON: usize = 4_096;

/// The shortest lock that can be set; assumed where a delivery does not say.
const SHORTEST_LOCK: Duration = Duration::from_secs(5);

/// A batch as Service Bus has it: each data section is a whole message.
pub(super) const BATCH_FORMAT: u32 = 0x8001_3700;

/// A data section's own bytes around its content.
const SECTION_FRAME: usize = 8;

/// A message without its delivery.
pub(super) type Received = Message<Body<Value>>;

/// A job, ready for the wire.
pub(super) struct Encoded {
    pub(super) message: Message<Data>,
    /// The size of the message by itself.
    pub(super) size: usize,
}

impl Encoded {
    pub(super) fn new(job: &Job) -> Result<Self, EncodeError> {
        let body = job.to_message()?;
        let properties = Properties::builder()
            // Duplicate detection knows messages by this.
            .message_id(MessageId::String(message_id(job)))
            .content_type(Symbol::from("application/json"))
            .build();
        let annotations = job.not_before.map(|at| {
            let mut annotations = Annotations::new();
            let at = Value::Timestamp(at.as_millisecond().into());
            annotations.insert(OwnedKey::from(SCHEDULED), at);
            MessageAnnotations(annotations)
        });
        let application_properties = job.history.traceparent.map(|parent| {
            let value = parent.to_string();
            let named = TRACE.map(|name| (name.to_owned(), value.clone().into()));
            ApplicationProperties(named.into_iter().collect())
        });
        let message = Message::builder()
            .header(Header { durable: true, ..Header::default() })
            .message_annotations(annotations)
            .properties(properties)
            .application_properties(application_properties)
            .body(Data(Binary::from(body)))
            .build();
        let size = bytes_of(&message)?.len();
        Ok(Self { message, size })
    }

    /// What the job adds to a batch.
    pub(super) fn size_in_batch(&self) -> usize {
        self.size + SECTION_FRAME
    }
}

/// The job's id. What follows it in the queue has the place in its history added: a second message
/// of the same place is a duplicate, one of the next place must not be taken for one.
pub(super) fn message_id(job: &Job) -> String {
    match (job.history.resubmitted, job.history.postponed) {
        (0, 0) => job.id.to_string(),
        (resubmitted, postponed) => format!("{}/{resubmitted}.{postponed}", job.id),
    }
}

/// Why a job can't be a message; intake lets no such job through.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("a job's body is no JSON")]
    Json(#[from] serde_json::Error),
    #[error("a job can't be encoded")]
    Amqp(#[from] serde_amqp::Error),
}

/// The message as bytes: its sections one after the other.
pub(super) fn bytes_of(message: &Message<Data>) -> Result<Vec<u8>, serde_amqp::Error> {
    let mut bytes = serde_amqp::to_vec(&message.header)?;
    if let Some(annotations) = &message.message_annotations {
        bytes.extend(serde_amqp::to_vec(annotations)?);
    }
    bytes.extend(serde_amqp::to_vec(&message.properties)?);
    if let Some(properties) = &message.application_properties {
        bytes.extend(serde_amqp::to_vec(properties)?);
    }
    bytes.extend(serde_amqp::to_vec(&message.body)?);
    Ok(bytes)
}

/// The body's bytes; `Err` says what stands there instead.
pub(super) fn body_of(body: &Body<Value>) -> Result<Cow<'_, [u8]>, &'static str> {
    match body {
        Body::Data(sections) => Ok(match sections.as_slice() {
            [one] => Cow::Borrowed(one.0.as_slice()),
            many => many.iter().flat_map(|data| data.0.iter().copied()).collect(),
        }),
        // Some clients send text as an AMQP string.
        Body::Value(AmqpValue(Value::String(text))) => Ok(Cow::Borrowed(text.as_bytes())),
        Body::Value(AmqpValue(Value::Binary(bytes))) => Ok(Cow::Borrowed(bytes.as_slice())),
        Body::Value(_) => Err("the body is an AMQP value that is no text"),
        Body::Sequence(_) => Err("the body is an AMQP sequence"),
        Body::Empty => Err("the message has no body"),
    }
}

/// A dead letter's reason as the service takes it.
pub(super) fn limited(reason: DeadLetterReason) -> DeadLetterReason {
    let cut = |text: String| match text.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    };
    DeadLetterReason { reason: cut(reason.reason), description: cut(reason.description) }
}

/// How often the message was handed out, this time included: on the wire the count is of failures.
pub(super) fn delivery_count(message: &Received) -> u32 {
    message.header.as_ref().map_or(0, |header| header.delivery_count).saturating_add(1)
}

pub(super) fn locked_until(message: &Received) -> Timestamp {
    time(message, LOCKED_UNTIL).unwrap_or_else(|| Timestamp::now() + SHORTEST_LOCK)
}

pub(super) fn enqueued(message: &Received) -> Option<Timestamp> {
    time(message, ENQUEUED)
}

pub(super) fn is_scheduled(message: &Received, now: Timestamp) -> bool {
    time(message, SCHEDULED).is_some_and(|due| due > now)
}

pub(super) fn sequence_number(message: &Received) -> Option<i64> {
    match annotation(message, SEQUENCE)? {
        Value::Long(number) => Some(*number),
        _ => None,
    }
}

/// Adds what is seen on a page. The service does not tell of locks.
pub(super) fn look(page: &[Received], sought: &Sought, sight: &mut Sight) {
    let now = Timestamp::now();
    for message in page {
        let job = body_of(&message.body).ok().and_then(|body| Job::from_message(&body).ok());
        let Some(job) = job else { continue };
        let due = time(message, SCHEDULED).filter(|due| *due > now);
        if sought.batch.as_ref() == Some(&job.batch_id) {
            let count =
                if due.is_some() { &mut sight.batch.scheduled } else { &mut sight.batch.active };
            *count += 1;
        }
        if sought.jobs.contains(&job.id) {
            let place = due.map_or(Place::Active, |until| Place::Scheduled { until });
            let deliveries = message.header.as_ref().map_or(0, |header| header.delivery_count);
            sight.jobs.push(Seen::new(job, deliveries, place));
        }
    }
}

/// The trace that whoever sent the message put it in.
pub(super) fn traceparent(message: &Received) -> Option<TraceParent> {
    let properties = message.application_properties.as_ref()?;
    TRACE.iter().find_map(|name| match properties.get(*name)? {
        SimpleValue::String(text) => text.parse().ok(),
        _ => None,
    })
}

/// A message of the dead-letter side.
pub(super) fn dead_letter(message: Received) -> DeadLetter {
    let text = |name: &str| match message.application_properties.as_ref()?.get(name)? {
        SimpleValue::String(text) => Some(text.clone()),
        _ => None,
    };
    let reason = DeadLetterReason {
        reason: text(REASON).unwrap_or_default(),
        description: text(DESCRIPTION).unwrap_or_default(),
    };
    let delivery_count = message.header.as_ref().map_or(0, |header| header.delivery_count);
    let at = enqueued(&message).unwrap_or_default();
    let number = sequence_number(&message).unwrap_or_default();
    let message = body_of(&message.body).map(Cow::into_owned).unwrap_or_default();
    let job_id: Option<JobId> = Job::from_message(&message).ok().map(|job| job.id);
    DeadLetter { number, job_id, message, reason, delivery_count, at }
}

fn annotation<'m>(message: &'m Received, name: &str) -> Option<&'m Value> {
    let annotations: &MessageAnnotations = message.message_annotations.as_ref()?;
    annotations.get(&OwnedKey::from(name))
}

fn time(message: &Received, name: &str) -> Option<Timestamp> {
    match annotation(message, name)? {
        Value::Timestamp(at) => Timestamp::from_millisecond(at.milliseconds()).ok(),
        _ => None,
    }
}

/// The lock token in a delivery tag: a GUID as .NET lays it out, its first three numbers with the
/// low byte first.
pub(super) fn lock_token(tag: &[u8]) -> Option<LockToken> {
    let bytes: [u8; 16] = tag.try_into().ok()?;
    Some(LockToken(Uuid::from_bytes_le(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_token_is_a_guid_with_its_numbers_turned() {
        let tag: Vec<u8> = (0..16).collect();
        let token = lock_token(&tag).unwrap();
        assert_eq!(token.0.to_string(), "03020100-0504-0706-0809-0a0b0c0d0e0f");
        assert_eq!(lock_token(&tag[..4]), None);
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let long = DeadLetterReason { reason: "短".into(), description: "長".repeat(5_000) };
        let cut = limited(long);
        assert_eq!((cut.reason.as_str(), cut.description.chars().count()), ("短", LONGEST_REASON));
    }
}
