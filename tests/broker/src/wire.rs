//! AMQP values without a schema: how long one is, which section it is, and short names to build
//! and read them.
//!
//! Clients differ in what they send (a string where the specification says symbol, a missing
//! field), so everything that carries a client's own data is read through `Cell` and not through
//! typed structs.

use serde_amqp::Value;
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;
use serde_amqp::primitives::{Array, OrderedMap, Symbol, Timestamp};
use uuid::Uuid;

pub const HEADER: u64 = 0x70;
pub const DELIVERY_ANNOTATIONS: u64 = 0x71;
pub const MESSAGE_ANNOTATIONS: u64 = 0x72;
pub const PROPERTIES: u64 = 0x73;
pub const APPLICATION_PROPERTIES: u64 = 0x74;
pub const DATA: u64 = 0x75;
pub const AMQP_VALUE: u64 = 0x77;

pub type Map = OrderedMap<Value, Value>;

/// Bytes that are no AMQP value, or not the one expected.
#[derive(Debug, thiserror::Error)]
#[error("malformed AMQP data: {0}")]
pub struct Malformed(pub &'static str);

/// The length of the encoded value that `bytes` starts with, descriptors included.
pub fn encoded_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while *bytes.get(at)? == 0 {
        at += 1;
        at += primitive_len(bytes.get(at..)?)?;
    }
    let end = at + primitive_len(bytes.get(at..)?)?;
    (end <= bytes.len()).then_some(end)
}

/// The high half of a format code tells the width (AMQP 1.0 part 1, section 1.2).
fn primitive_len(bytes: &[u8]) -> Option<usize> {
    let long = || Some(u32::from_be_bytes(bytes.get(1..5)?.try_into().ok()?) as usize);
    match *bytes.first()? >> 4 {
        0x4 => Some(1),
        0x5 => Some(2),
        0x6 => Some(3),
        0x7 => Some(5),
        0x8 => Some(9),
        0x9 => Some(17),
        0xa | 0xc | 0xe => Some(2 + usize::from(*bytes.get(1)?)),
        0xb | 0xd | 0xf => 5usize.checked_add(long()?),
        _ => None,
    }
}

/// The numeric descriptor of a described value, and where the value itself begins.
pub fn descriptor(bytes: &[u8]) -> Option<(u64, usize)> {
    match bytes {
        [0, 0x53, code, ..] => Some((u64::from(*code), 3)),
        [0, 0x80, rest @ ..] => Some((u64::from_be_bytes(rest.get(..8)?.try_into().ok()?), 10)),
        _ => None,
    }
}

/// The payload of a data section.
pub fn data_payload(section: &[u8]) -> Option<&[u8]> {
    let (_, at) = descriptor(section)?;
    match section.get(at)? {
        0xa0 => section.get(at + 2..),
        0xb0 => section.get(at + 5..),
        _ => None,
    }
}

/// The sections of a message: descriptor, and start and end of its bytes.
pub fn sections(bytes: &[u8]) -> Result<Vec<(u64, usize, usize)>, Malformed> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (code, _) = descriptor(&bytes[at..]).ok_or(Malformed("a section has no descriptor"))?;
        let len = encoded_len(&bytes[at..]).ok_or(Malformed("a section is cut short"))?;
        found.push((code, at, at + len));
        at += len;
    }
    Ok(found)
}

pub fn decode(bytes: &[u8]) -> Result<Value, Malformed> {
    serde_amqp::from_slice(bytes).map_err(|_| Malformed("a value can't be read"))
}

/// Reads a described value and drops the descriptor.
pub fn decode_described(bytes: &[u8]) -> Result<Value, Malformed> {
    match decode(bytes)? {
        Value::Described(described) => Ok(described.value),
        plain => Ok(plain),
    }
}

pub fn decode_map(bytes: &[u8]) -> Result<Map, Malformed> {
    match decode_described(bytes)? {
        Value::Map(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(Malformed("a section should be a map")),
    }
}

pub fn decode_list(bytes: &[u8]) -> Result<Vec<Value>, Malformed> {
    match decode_described(bytes)? {
        Value::List(list) => Ok(list),
        _ => Err(Malformed("a section should be a list")),
    }
}

/// Encodes one section of a message.
pub fn section(code: u64, value: Value) -> Vec<u8> {
    let described = Described { descriptor: Descriptor::Code(code), value };
    serde_amqp::to_vec(&Value::from(described)).expect("values of our own making can be encoded")
}

pub fn symbol(text: &str) -> Value {
    Value::Symbol(Symbol::from(text))
}

pub fn string(text: &str) -> Value {
    Value::String(text.to_owned())
}

pub fn timestamp(millis: i64) -> Value {
    Value::Timestamp(Timestamp::from_milliseconds(millis))
}

pub fn longs(numbers: impl IntoIterator<Item = i64>) -> Value {
    Value::Array(Array(numbers.into_iter().map(Value::Long).collect()))
}

/// A string or a symbol: clients use either for names.
pub fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Symbol(symbol) => Some(symbol.as_str()),
        _ => None,
    }
}

/// Any integer, whatever its width.
pub fn as_integer(value: &Value) -> Option<i64> {
    match value {
        Value::Ubyte(n) => Some(i64::from(*n)),
        Value::Ushort(n) => Some(i64::from(*n)),
        Value::Uint(n) => Some(i64::from(*n)),
        Value::Ulong(n) => i64::try_from(*n).ok(),
        Value::Byte(n) => Some(i64::from(*n)),
        Value::Short(n) => Some(i64::from(*n)),
        Value::Int(n) => Some(i64::from(*n)),
        Value::Long(n) => Some(*n),
        Value::Timestamp(at) => Some(at.milliseconds()),
        _ => None,
    }
}

/// The items of an array or a list.
pub fn as_items(value: &Value) -> &[Value] {
    match value {
        Value::Array(array) => &array.0,
        Value::List(list) => list,
        _ => &[],
    }
}

pub fn as_uuid(value: &Value) -> Option<Uuid> {
    match value {
        Value::Uuid(uuid) => Some(Uuid::from_bytes(*uuid.as_inner())),
        Value::Binary(bytes) => Uuid::from_slice(bytes).ok(),
        _ => None,
    }
}

pub fn uuid(token: Uuid) -> Value {
    Value::Uuid(token.into_bytes().into())
}

/// A map's entry by name, whether the key is a string or a symbol.
pub fn entry<'m>(map: &'m Map, name: &str) -> Option<&'m Value> {
    map.get(&string(name)).or_else(|| map.get(&symbol(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_follow_the_format_code() {
        for value in [
            Value::Null,
            Value::Uint(70_000),
            string(&"x".repeat(300)),
            longs([1, 2, 3]),
            uuid(Uuid::nil()),
        ] {
            let mut bytes = section(AMQP_VALUE, value);
            let len = bytes.len();
            bytes.extend_from_slice(b"what follows");
            assert_eq!(encoded_len(&bytes), Some(len));
        }
        assert_eq!(encoded_len(&[0xb0, 0, 0, 1, 0]), None);
    }

    #[test]
    fn a_uuid_array_survives_the_round_trip() {
        let token = Uuid::from_u128(7);
        let bytes = section(AMQP_VALUE, Value::Array(Array(vec![uuid(token)])));
        let value = decode_described(&bytes).unwrap();
        assert_eq!(as_items(&value).iter().filter_map(as_uuid).collect::<Vec<_>>(), [token]);
    }
}
