//! One stored message: what the broker may change beside what it must hand on untouched.
//!
//! The body stays as the sender encoded it. Header and annotations are written anew for each
//! delivery, since count, lock and times change.

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::messaging::{Header, Priority};
use serde_amqp::Value;
use uuid::Uuid;

use crate::entity::Millis;
use crate::wire::{
    self, APPLICATION_PROPERTIES, DATA, DELIVERY_ANNOTATIONS, HEADER, MESSAGE_ANNOTATIONS,
    Malformed, Map, PROPERTIES,
};

/// Service Bus's own message format: a message whose data sections are whole messages.
pub const BATCH_FORMAT: u32 = 0x8001_3700;

const SCHEDULED_FOR: &str = "x-opt-scheduled-enqueue-time";

#[derive(Debug, Clone)]
pub struct Message {
    pub message_id: String,
    /// From the header, in milliseconds.
    pub time_to_live: Option<u32>,
    pub scheduled_for: Option<Millis>,
    durable: bool,
    priority: u8,
    annotations: Map,
    properties: Bytes,
    application: Option<Bytes>,
    body: Bytes,
}

/// What the broker knows of a message at the moment it hands it out.
#[derive(Debug, Clone, Copy)]
pub struct Stamp<'a> {
    pub sequence: i64,
    pub enqueued: Millis,
    pub locked_until: Option<Millis>,
    /// Deliveries that failed before this one.
    pub delivery_count: u32,
    pub state: State,
    pub dead_letter_source: Option<&'a str>,
}

/// The value of `x-opt-message-state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Active = 0,
    Deferred = 1,
    Scheduled = 2,
}

impl Message {
    pub fn parse(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut message = Self {
            message_id: String::new(),
            time_to_live: None,
            scheduled_for: None,
            durable: false,
            priority: Priority::default().0,
            annotations: Map::new(),
            properties: Bytes::new(),
            application: None,
            body: Bytes::new(),
        };
        let mut fields = Vec::new();
        let mut body_start = bytes.len();
        for (code, start, end) in wire::sections(bytes)? {
            match code {
                HEADER => message.read_header(&bytes[start..end])?,
                DELIVERY_ANNOTATIONS => {}
                MESSAGE_ANNOTATIONS => message.annotations = wire::decode_map(&bytes[start..end])?,
                PROPERTIES => {
                    message.properties = bytes.slice(start..end);
                    fields = wire::decode_list(&message.properties)?;
                }
                APPLICATION_PROPERTIES => message.application = Some(bytes.slice(start..end)),
                _ => body_start = body_start.min(start),
            }
        }
        message.body = bytes.slice(body_start..);
        message.scheduled_for =
            wire::entry(&message.annotations, SCHEDULED_FOR).and_then(wire::as_integer);
        message.identify(fields);
        Ok(message)
    }

    fn read_header(&mut self, section: &[u8]) -> Result<(), Malformed> {
        let header: Header = serde_amqp::from_slice(section)
            .map_err(|_| Malformed("the header section can't be read"))?;
        self.durable = header.durable;
        self.priority = header.priority.0;
        self.time_to_live = header.ttl;
        Ok(())
    }

    /// Service Bus gives a name to a message that comes without one, and SDKs rely on it.
    fn identify(&mut self, mut fields: Vec<Value>) {
        self.message_id = match fields.first() {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Uuid(id)) => Uuid::from_bytes(*id.as_inner()).to_string(),
            Some(Value::Ulong(id)) => id.to_string(),
            Some(Value::Binary(id)) => String::from_utf8_lossy(id).into_owned(),
            _ => String::new(),
        };
        if self.message_id.is_empty() {
            self.message_id = Uuid::new_v4().simple().to_string();
            if fields.is_empty() {
                fields.push(Value::Null);
            }
            fields[0] = Value::String(self.message_id.clone());
            self.properties = wire::section(PROPERTIES, Value::List(fields)).into();
        }
    }

    /// Adds or replaces application properties: a dead letter's reason, a settler's changes.
    pub fn set_properties(&mut self, changes: impl IntoIterator<Item = (String, Value)>) {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return;
        }
        let mut map = match &self.application {
            Some(section) => wire::decode_map(section).unwrap_or_default(),
            None => Map::new(),
        };
        for (name, value) in changes {
            map.insert(Value::String(name), value);
        }
        self.application = Some(wire::section(APPLICATION_PROPERTIES, Value::Map(map)).into());
    }

    /// The message as it goes out now.
    pub fn encode(&self, stamp: &Stamp<'_>) -> Bytes {
        // Spelt out: the typed header leaves defaults out, and SDKs then read no count at all.
        let header = wire::section(
            HEADER,
            Value::List(vec![
                Value::Bool(self.durable),
                Value::Ubyte(self.priority),
                self.time_to_live.map_or(Value::Null, Value::Uint),
                Value::Bool(stamp.delivery_count == 0),
                Value::Uint(stamp.delivery_count),
            ]),
        );
        let annotations = self.stamped(stamp);
        let application = self.application.as_deref().unwrap_or_default();
        let parts: [&[u8]; 5] = [&header, &annotations, &self.properties, application, &self.body];
        let mut out = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
        for part in parts {
            out.extend_from_slice(part);
        }
        out.freeze()
    }

    fn stamped(&self, stamp: &Stamp<'_>) -> Vec<u8> {
        let mut map = self.annotations.clone();
        let mut set = |name: &str, value| map.insert(wire::symbol(name), value);
        set("x-opt-sequence-number", Value::Long(stamp.sequence));
        set("x-opt-enqueue-sequence-number", Value::Long(stamp.sequence));
        set("x-opt-enqueued-time", wire::timestamp(stamp.enqueued));
        set("x-opt-message-state", Value::Int(stamp.state as i32));
        if let Some(until) = stamp.locked_until {
            set("x-opt-locked-until", wire::timestamp(until));
        }
        if let Some(source) = stamp.dead_letter_source {
            set("x-opt-deadletter-source", wire::string(source));
        }
        wire::section(MESSAGE_ANNOTATIONS, Value::Map(map))
    }
}

/// The messages of one transfer: a batch's, or the one message that it is.
pub fn unpack(format: u32, bytes: &Bytes) -> Result<Vec<Message>, Malformed> {
    if format != BATCH_FORMAT {
        return Ok(vec![Message::parse(bytes)?]);
    }
    wire::sections(bytes)?
        .into_iter()
        .filter(|(code, ..)| *code == DATA)
        .map(|(_, start, end)| {
            let payload = wire::data_payload(&bytes[start..end])
                .ok_or(Malformed("a batch's data section holds no bytes"))?;
            Message::parse(&bytes.slice_ref(payload))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A message with an id and a body, as a client would encode it.
    pub(crate) fn encoded(id: Option<&str>, body: &[u8]) -> Bytes {
        let mut bytes = Vec::new();
        if let Some(id) = id {
            bytes.extend(wire::section(PROPERTIES, Value::List(vec![wire::string(id)])));
        }
        bytes.extend(wire::section(DATA, Value::Binary(body.to_vec().into())));
        bytes.into()
    }

    const STAMP: Stamp<'static> = Stamp {
        sequence: 9,
        enqueued: 1_000,
        locked_until: Some(2_000),
        delivery_count: 3,
        state: State::Active,
        dead_letter_source: None,
    };

    #[test]
    fn a_delivery_carries_the_stamp_and_the_untouched_body() {
        let out = Message::parse(&encoded(Some("a"), b"hello")).unwrap().encode(&STAMP);
        let sections = wire::sections(&out).unwrap();
        let codes: Vec<u64> = sections.iter().map(|(code, ..)| *code).collect();
        assert_eq!(codes, [HEADER, MESSAGE_ANNOTATIONS, PROPERTIES, DATA]);
        let (_, start, end) = sections[1];
        let annotations = wire::decode_map(&out[start..end]).unwrap();
        let until = wire::entry(&annotations, "x-opt-locked-until").and_then(wire::as_integer);
        assert_eq!(until, Some(2_000));
        let (_, start, end) = sections[3];
        assert_eq!(wire::data_payload(&out[start..end]), Some(b"hello".as_slice()));
    }

    #[test]
    fn a_message_without_an_id_gets_one() {
        let first = Message::parse(&encoded(None, b"x")).unwrap();
        let second = Message::parse(&encoded(None, b"x")).unwrap();
        assert_ne!(first.message_id, second.message_id);
        let again = Message::parse(&first.encode(&STAMP)).unwrap();
        assert_eq!(again.message_id, first.message_id);
    }

    #[test]
    fn a_batch_is_its_messages() {
        let batch: Vec<u8> = ["a", "b"]
            .iter()
            .flat_map(|id| {
                wire::section(DATA, Value::Binary(encoded(Some(id), b"x").to_vec().into()))
            })
            .collect();
        let messages = unpack(BATCH_FORMAT, &batch.into()).unwrap();
        let ids: Vec<&str> = messages.iter().map(|m| m.message_id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    }
}
