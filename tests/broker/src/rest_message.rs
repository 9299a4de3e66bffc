//! A message as HTTP carries it: what AMQP has in sections is in headers here.
//!
//! Properties of the sender's own are headers, text in quotation marks as in JSON; the broker's are
//! one JSON header, `BrokerProperties`.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_amqp::Value;
use serde_json::{Map as JsonMap, Value as Json, json};
use uuid::Uuid;

use crate::entity::Millis;
use crate::http::Asked;
use crate::message::Message;
use crate::shelf::{Delivery, millis};
use crate::wire::{
    self, APPLICATION_PROPERTIES, DATA, HEADER, MESSAGE_ANNOTATIONS, Malformed, Map, PROPERTIES,
};

/// Where the content type stands among an AMQP message's properties.
const CONTENT_TYPE_FIELD: usize = 6;

/// Headers that are HTTP's and no properties of a message.
const NOT_PROPERTIES: [&str; 14] = [
    "accept",
    "accept-encoding",
    "authorization",
    "brokerproperties",
    "connection",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "proxy-authorization",
    "proxy-connection",
    "transfer-encoding",
    "user-agent",
];

/// What a sender may set of the broker's properties.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Settable {
    message_id: Option<String>,
    label: Option<String>,
    /// In seconds.
    time_to_live: Option<f64>,
    scheduled_enqueue_time_utc: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BatchItem {
    body: String,
    #[serde(default)]
    broker_properties: Settable,
    #[serde(default)]
    user_properties: JsonMap<String, Json>,
}

/// The messages of a batch.
pub fn batch(body: &[u8]) -> Result<Vec<Message>, Malformed> {
    let items: Vec<BatchItem> = serde_json::from_slice(body)
        .map_err(|_| Malformed("the batch is not what it should be"))?;
    let message = |item: BatchItem| {
        build(item.body.as_bytes(), None, &item.broker_properties, item.user_properties)
    };
    items.into_iter().map(message).collect()
}

/// The one message that a request is.
pub fn single(asked: &Asked) -> Result<Vec<Message>, Malformed> {
    let settable = match asked.header("brokerproperties") {
        Some(text) => serde_json::from_str(text)
            .map_err(|_| Malformed("the BrokerProperties are not what they should be"))?,
        None => Settable::default(),
    };
    let own = asked.head.headers.iter().filter_map(|(name, value)| {
        let text = value.to_str().ok().filter(|_| !NOT_PROPERTIES.contains(&name.as_str()))?;
        let value = serde_json::from_str(text).unwrap_or_else(|_| Json::from(text));
        Some((name.as_str().to_owned(), value))
    });
    let kind = asked.header(CONTENT_TYPE.as_str());
    Ok(vec![build(&asked.body, kind, &settable, own.collect())?])
}

fn build(
    body: &[u8],
    content_type: Option<&str>,
    settable: &Settable,
    own: JsonMap<String, Json>,
) -> Result<Message, Malformed> {
    let text = |text: Option<&str>| text.map_or(Value::Null, wire::string);
    let mut bytes = Vec::new();
    if let Some(seconds) = settable.time_to_live {
        let life = millis(Duration::from_secs_f64(seconds.clamp(0.0, 4e6)));
        let life = Value::Uint(u32::try_from(life).unwrap_or(u32::MAX));
        bytes.extend(wire::section(HEADER, Value::List(vec![Value::Null, Value::Null, life])));
    }
    if let Some(at) = &settable.scheduled_enqueue_time_utc {
        let mut map = Map::new();
        map.insert(wire::symbol("x-opt-scheduled-enqueue-time"), wire::timestamp(read_date(at)?));
        bytes.extend(wire::section(MESSAGE_ANNOTATIONS, Value::Map(map)));
    }
    let mut fields = vec![Value::Null; CONTENT_TYPE_FIELD + 1];
    fields[0] = text(settable.message_id.as_deref());
    fields[3] = text(settable.label.as_deref());
    fields[CONTENT_TYPE_FIELD] = content_type.map_or(Value::Null, wire::symbol);
    bytes.extend(wire::section(PROPERTIES, Value::List(fields)));
    if !own.is_empty() {
        let own: Map = own.into_iter().map(|(k, v)| (Value::String(k), property(v))).collect();
        bytes.extend(wire::section(APPLICATION_PROPERTIES, Value::Map(own)));
    }
    bytes.extend(wire::section(DATA, Value::Binary(body.to_vec().into())));
    Message::parse(&bytes.into())
}

fn property(value: Json) -> Value {
    match value {
        Json::Bool(flag) => Value::Bool(flag),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Long(whole),
            None => Value::Double(number.as_f64().unwrap_or_default().into()),
        },
        Json::String(text) => Value::String(text),
        other => Value::String(other.to_string()),
    }
}

/// A message that is handed out, as headers and a body.
pub struct Handed {
    pub body: Vec<u8>,
    pub content_type: Option<String>,
    /// The sender's own, as they stand in headers.
    pub properties: Vec<(String, String)>,
    message_id: String,
    annotations: Map,
    failures: i64,
    life: Option<i64>,
}

impl Handed {
    pub fn read(delivery: &Delivery) -> Result<Self, Malformed> {
        let bytes = &delivery.encoded;
        let mut handed = Self {
            body: Vec::new(),
            content_type: None,
            properties: Vec::new(),
            message_id: Message::parse(bytes)?.message_id,
            annotations: Map::new(),
            failures: 0,
            life: None,
        };
        for (code, start, end) in wire::sections(bytes)? {
            let section = &bytes[start..end];
            match code {
                HEADER => {
                    let fields = wire::decode_list(section)?;
                    handed.failures = fields.get(4).and_then(wire::as_integer).unwrap_or(0);
                    handed.life = fields.get(2).and_then(wire::as_integer);
                }
                MESSAGE_ANNOTATIONS => handed.annotations = wire::decode_map(section)?,
                PROPERTIES => {
                    let fields = wire::decode_list(section)?;
                    let kind = fields.get(CONTENT_TYPE_FIELD).and_then(wire::as_text);
                    handed.content_type = kind.map(str::to_owned);
                }
                APPLICATION_PROPERTIES => {
                    let own = wire::decode_map(section)?;
                    handed.properties = own.iter().filter_map(header).collect();
                }
                DATA => handed.body.extend(wire::data_payload(section).unwrap_or_default()),
                _ => handed.body.extend(&*other_body(section)),
            }
        }
        Ok(handed)
    }

    /// The header of this name. A message that is gone has no lock to tell of.
    pub fn broker_properties(&self, token: Uuid, gone: bool) -> String {
        let number = |name| wire::entry(&self.annotations, name).and_then(wire::as_integer);
        let date = |name| number(name).map(write_date);
        let sequence = number("x-opt-sequence-number");
        let mut properties = json!({
            "DeliveryCount": self.failures + 1,
            "EnqueuedSequenceNumber": sequence,
            "EnqueuedTimeUtc": date("x-opt-enqueued-time"),
            "MessageId": self.message_id,
            "SequenceNumber": sequence,
            "State": "Active",
            // Of messages that live for ever: the longest time there is.
            "TimeToLive": self.life.map_or(922_337_203_685.477_6, |life| life as f64 / 1_000.0),
        });
        if !gone {
            properties["LockToken"] = token.to_string().into();
            properties["LockedUntilUtc"] = date("x-opt-locked-until").into();
        }
        ascii(&properties.to_string())
    }
}

/// Text of clients that send it as an AMQP value.
fn other_body(section: &[u8]) -> Cow<'static, [u8]> {
    match wire::decode_described(section) {
        Ok(Value::String(text)) => text.into_bytes().into(),
        Ok(Value::Binary(bytes)) => bytes.into_vec().into(),
        _ => Cow::Borrowed(&[]),
    }
}

fn header((name, value): (&Value, &Value)) -> Option<(String, String)> {
    let value = match value {
        Value::Bool(flag) => flag.to_string(),
        Value::Double(number) => f64::from(*number).to_string(),
        other => match wire::as_integer(other) {
            Some(number) => number.to_string(),
            None => ascii(&Json::from(wire::as_text(other)?).to_string()),
        },
    };
    Some((wire::as_text(name)?.to_owned(), value))
}

/// JSON in the characters that a header takes.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            let mut units = [0; 2];
            text.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text
}

fn write_date(at: Millis) -> String {
    let since = Duration::from_millis(at.max(0).unsigned_abs());
    httpdate::fmt_http_date(UNIX_EPOCH + since)
}

/// RFC 1123, whose zone some clients spell as a number.
fn read_date(text: &str) -> Result<Millis, Malformed> {
    let at: SystemTime = httpdate::parse_http_date(&text.replace("+0000", "GMT"))
        .map_err(|_| Malformed("a time can't be read"))?;
    Ok(millis(at.duration_since(UNIX_EPOCH).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_and_handed_out_in_headers() {
        let text = r#"[{"Body":"{\"a\":1}","BrokerProperties":{"MessageId":"m"},
                        "UserProperties":{"why":"障害","n":3}}]"#;
        let message = batch(text.as_bytes()).unwrap().remove(0);
        assert_eq!(message.message_id, "m");
        let mut queue = crate::entity::Queue::new(crate::QueueSettings::new("q"));
        queue.send(message, 5_000);
        let delivery = queue.receive(crate::entity::Side::Main, 5_000).unwrap();
        let handed = Handed::read(&delivery).unwrap();
        assert_eq!(handed.body, br#"{"a":1}"#);
        let why = ("why".to_owned(), r#""\u969c\u5bb3""#.to_owned());
        assert!(handed.properties.contains(&why), "{:?}", handed.properties);
        assert!(handed.properties.contains(&("n".to_owned(), "3".to_owned())));
        let properties: Json =
            serde_json::from_str(&handed.broker_properties(delivery.token, false)).unwrap();
        assert_eq!(properties["DeliveryCount"], 1);
        assert_eq!(properties["LockedUntilUtc"], "Thu, 01 Jan 1970 00:01:05 GMT");
    }

    #[test]
    fn times_are_read_in_both_spellings_of_their_zone() {
        for zone in ["GMT", "+0000"] {
            let at = read_date(&format!("Thu, 01 Jan 1970 00:01:05 {zone}")).unwrap();
            assert_eq!(at, 65_000);
        }
        assert!(read_date("tomorrow").is_err());
        assert!(batch(b"{}").is_err());
    }
}
