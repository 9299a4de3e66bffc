//! A job as an AMQP message and back, and the lock token in a delivery tag.

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

use crate::peek::{PeekFilter, PeekResult, PeekedJob, QueuePosition};
use crate::{DeadLetter, DeadLetterReason, LockToken};
use domain::job::{Job, JobId, TraceParent};

const LOCKED_UNTIL: &str = "x-opt-locked-until";
const ENQUEUED: &str = "x-opt-enqueued-time";
const SCHEDULED: &str = "x-opt-scheduled-enqueue-time";
pub(super) const SEQUENCE: &str = "x-opt-sequence-number";

/// Properties with the trace of a message: by W3C's draft for AMQP, and by Microsoft's SDKs before
/// (learn.microsoft.com, "End-to-end tracing and diagnostics").
pub(super) const TRACE: [&str; 2] = ["traceparent", "Diagnostic-Id"];

pub(super) const REASON: &str = "DeadLetterReason";
pub(super) const DESCRIPTION: &str = "DeadLetterErrorDescription";

/// The reason of dead letters that never were jobs.
pub(super) const NOT_A_JOB: &str = "NotAJob";

/// Characters that the service keeps of a reason and of a description.
const LONGEST_REASON: usize = 4_096;

/// The shortest lock that can be set; assumed where a delivery does not say.
const SHORTEST_LOCK: Duration = Duration::from_secs(5);

/// Format of a Service Bus batch: each data section is a whole message.
pub(super) const BATCH_FORMAT: u32 = 0x8001_3700;

/// A data section's own bytes around its content.
const SECTION_FRAME: usize = 8;

/// A message without its delivery.
pub(super) type ReceivedMessage = Message<Body<Value>>;

/// A job, ready for the wire.
pub(super) struct EncodedMessage {
    pub(super) message: Message<Data>,
    /// The size of the message by itself.
    pub(super) size: usize,
}

impl EncodedMessage {
    pub(super) fn new(job: &Job) -> Result<Self, EncodeError> {
        let body = job.to_message()?;
        let properties = Properties::builder()
            // Duplicate detection compares this.
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

    /// Bytes that the job adds to a batch.
    pub(super) fn size_in_batch(&self) -> usize {
        self.size + SECTION_FRAME
    }
}

/// Returns the job's id. Later messages of the job have their place in its history added: a second
/// message of the same place is a duplicate, one of the next place must not be taken for one.
pub(super) fn message_id(job: &Job) -> String {
    match (job.history.resubmitted, job.history.deferred) {
        (0, 0) => job.id.to_string(),
        (resubmitted, postponed) => format!("{}/{resubmitted}.{postponed}", job.id),
    }
}

/// A job that can't be a message; intake lets no such job through.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("a job's body is no JSON")]
    Json(#[from] serde_json::Error),
    #[error("a job can't be encoded")]
    Amqp(#[from] serde_amqp::Error),
}

/// Encodes the message: its sections one after the other.
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

/// Returns the body's bytes; `Err` says what stands there instead.
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

/// Truncates a dead letter's reason to what the service takes.
pub(super) fn truncate_reason(reason: DeadLetterReason) -> DeadLetterReason {
    let cut = |text: String| match text.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => text[..end].to_owned(),
        None => text,
    };
    DeadLetterReason { reason: cut(reason.reason), description: cut(reason.description) }
}

/// Returns the number of deliveries, this one included: on the wire the count is of failures.
pub(super) fn delivery_count(message: &ReceivedMessage) -> u32 {
    message.header.as_ref().map_or(0, |header| header.delivery_count).saturating_add(1)
}

pub(super) fn locked_until(message: &ReceivedMessage) -> Timestamp {
    time(message, LOCKED_UNTIL).unwrap_or_else(|| Timestamp::now() + SHORTEST_LOCK)
}

pub(super) fn enqueued(message: &ReceivedMessage) -> Option<Timestamp> {
    time(message, ENQUEUED)
}

pub(super) fn is_scheduled(message: &ReceivedMessage, now: Timestamp) -> bool {
    time(message, SCHEDULED).is_some_and(|due| due > now)
}

pub(super) fn sequence_number(message: &ReceivedMessage) -> Option<i64> {
    match annotation(message, SEQUENCE)? {
        Value::Long(number) => Some(*number),
        _ => None,
    }
}

/// Adds the jobs of a peeked page. The service does not report locks.
pub(super) fn add_peeked_page(
    page: &[ReceivedMessage],
    sought: &PeekFilter,
    sight: &mut PeekResult,
) {
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
            let place =
                due.map_or(QueuePosition::Active, |until| QueuePosition::Scheduled { until });
            let deliveries = message.header.as_ref().map_or(0, |header| header.delivery_count);
            sight.jobs.push(PeekedJob::new(job, deliveries, place));
        }
    }
}

/// Returns the trace that the message's sender put it in.
pub(super) fn traceparent(message: &ReceivedMessage) -> Option<TraceParent> {
    let properties = message.application_properties.as_ref()?;
    TRACE.iter().find_map(|name| match properties.get(*name)? {
        SimpleValue::String(text) => text.parse().ok(),
        _ => None,
    })
}

/// Converts a message of the dead-letter subqueue.
pub(super) fn dead_letter(message: ReceivedMessage) -> DeadLetter {
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

fn annotation<'m>(message: &'m ReceivedMessage, name: &str) -> Option<&'m Value> {
    let annotations: &MessageAnnotations = message.message_annotations.as_ref()?;
    annotations.get(&OwnedKey::from(name))
}

fn time(message: &ReceivedMessage, name: &str) -> Option<Timestamp> {
    match annotation(message, name)? {
        Value::Timestamp(at) => Timestamp::from_millisecond(at.milliseconds()).ok(),
        _ => None,
    }
}

/// Returns the lock token in a delivery tag: a GUID in .NET's layout, its first three numbers with
/// the low byte first.
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
        let cut = truncate_reason(long);
        assert_eq!((cut.reason.as_str(), cut.description.chars().count()), ("短", LONGEST_REASON));
    }
}
