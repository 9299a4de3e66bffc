//! AMQP frames: cutting them out of the stream, reading what they say, writing ours.
//!
//! Stateless. A disposition is read value by value because SDKs put strings where symbols belong;
//! everything else goes through the typed performatives.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fe2o3_amqp_types::definitions::{Error as AmqpError, ErrorCondition, Fields};
use fe2o3_amqp_types::performatives::{Attach, Begin, Close, Detach, End, Flow, Open, Transfer};
use serde::Serialize;
use serde_amqp::Value;

use crate::wire::{self, Malformed, Map};

pub const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
pub const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";
/// The largest frame the broker takes, and what it tells its peers.
pub const MAX_FRAME: u32 = 64 * 1024;

const AMQP_FRAME: u8 = 0;
const SASL_FRAME: u8 = 1;
/// Frame header and the longest transfer performative of ours.
const TRANSFER_OVERHEAD: usize = 128;

#[derive(Debug)]
pub struct Frame {
    pub channel: u16,
    pub body: Bytes,
}

/// What a receiver says about deliveries, read leniently.
#[derive(Debug)]
pub struct Disposition {
    pub from_receiver: bool,
    pub first: u32,
    pub last: u32,
    pub settled: bool,
    pub outcome: Option<Outcome>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Accepted,
    Rejected { description: Option<String>, info: Map },
    Released,
    Modified { undeliverable_here: bool, annotations: Map },
}

#[derive(Debug)]
pub enum Performative {
    Heartbeat,
    Open(Box<Open>),
    Begin(Box<Begin>),
    Attach(Box<Attach>),
    Flow(Box<Flow>),
    Transfer(Box<Transfer>, Bytes),
    Disposition(Disposition),
    Detach(Detach),
    End,
    Close,
}

/// Cuts the next whole frame off the front of what was read.
pub fn next_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, Malformed> {
    let Some(size) = buffer.get(..4) else {
        return Ok(None);
    };
    let size = u32::from_be_bytes(size.try_into().expect("four bytes were asked for"));
    if !(8..=MAX_FRAME).contains(&size) {
        return Err(Malformed("a frame's size is out of bounds"));
    }
    if buffer.len() < size as usize {
        return Ok(None);
    }
    let mut frame = buffer.split_to(size as usize).freeze();
    let body_start = usize::from(frame[4]) * 4;
    let channel = u16::from_be_bytes([frame[6], frame[7]]);
    if body_start < 8 || body_start > frame.len() {
        return Err(Malformed("a frame's data offset is out of bounds"));
    }
    frame.advance(body_start);
    Ok(Some(Frame { channel, body: frame }))
}

pub fn read(body: &Bytes) -> Result<Performative, Malformed> {
    fn typed<'b, T: serde::Deserialize<'b>>(bytes: &'b [u8]) -> Result<T, Malformed> {
        serde_amqp::from_slice(bytes).map_err(|_| Malformed("a performative can't be read"))
    }
    if body.is_empty() {
        return Ok(Performative::Heartbeat);
    }
    let (code, _) = wire::descriptor(body).ok_or(Malformed("a frame has no performative"))?;
    let len = wire::encoded_len(body).ok_or(Malformed("a performative is cut short"))?;
    let bytes = &body[..len];
    Ok(match code {
        0x10 => Performative::Open(Box::new(typed(bytes)?)),
        0x11 => Performative::Begin(Box::new(typed(bytes)?)),
        0x12 => Performative::Attach(Box::new(typed(bytes)?)),
        0x13 => Performative::Flow(Box::new(typed(bytes)?)),
        0x14 => Performative::Transfer(Box::new(typed(bytes)?), body.slice(len..)),
        0x15 => Performative::Disposition(read_disposition(bytes)?),
        0x16 => Performative::Detach(read_detach(bytes)?),
        0x17 => Performative::End,
        0x18 => Performative::Close,
        _ => return Err(Malformed("a performative of an unknown kind")),
    })
}

/// Only what is needed of a detach: nobody here reads the peer's error.
fn read_detach(bytes: &[u8]) -> Result<Detach, Malformed> {
    let fields = wire::decode_list(bytes)?;
    let handle = fields.first().and_then(wire::as_integer).and_then(|n| u32::try_from(n).ok());
    let handle = handle.ok_or(Malformed("a detach names no handle"))?;
    let closed = matches!(fields.get(1), Some(Value::Bool(true)));
    Ok(Detach { handle: handle.into(), closed, error: None })
}

fn read_disposition(bytes: &[u8]) -> Result<Disposition, Malformed> {
    let fields = wire::decode_list(bytes)?;
    let number = |at: usize| {
        fields.get(at).and_then(wire::as_integer).and_then(|number| u32::try_from(number).ok())
    };
    let first = number(1).ok_or(Malformed("a disposition names no delivery"))?;
    Ok(Disposition {
        from_receiver: matches!(fields.first(), Some(Value::Bool(true))),
        first,
        last: number(2).unwrap_or(first),
        settled: matches!(fields.get(3), Some(Value::Bool(true))),
        outcome: fields.get(4).and_then(read_outcome),
    })
}

fn read_outcome(state: &Value) -> Option<Outcome> {
    let Value::Described(state) = state else {
        return None;
    };
    let serde_amqp::descriptor::Descriptor::Code(code) = state.descriptor else {
        return None;
    };
    let Value::List(fields) = &state.value else {
        return None;
    };
    match code {
        0x24 => Some(Outcome::Accepted),
        0x25 => Some(read_rejection(fields.first())),
        0x26 => Some(Outcome::Released),
        0x27 => Some(Outcome::Modified {
            undeliverable_here: matches!(fields.get(1), Some(Value::Bool(true))),
            annotations: fields.get(2).map(as_map).unwrap_or_default(),
        }),
        _ => None,
    }
}

fn read_rejection(error: Option<&Value>) -> Outcome {
    let fields = match error {
        Some(Value::Described(error)) => wire::as_items(&error.value),
        _ => &[],
    };
    Outcome::Rejected {
        description: fields.get(1).and_then(wire::as_text).map(str::to_owned),
        info: fields.get(2).map(as_map).unwrap_or_default(),
    }
}

fn as_map(value: &Value) -> Map {
    match value {
        Value::Map(map) => map.clone(),
        _ => Map::new(),
    }
}

/// Appends one frame: header, performative, payload.
pub fn write(out: &mut BytesMut, channel: u16, performative: &impl Serialize, payload: &[u8]) {
    write_frame(out, AMQP_FRAME, channel, performative, payload);
}

pub fn write_sasl(out: &mut BytesMut, performative: &impl Serialize) {
    write_frame(out, SASL_FRAME, 0, performative, &[]);
}

fn write_frame(
    out: &mut BytesMut,
    kind: u8,
    channel: u16,
    performative: &impl Serialize,
    payload: &[u8],
) {
    let body = serde_amqp::to_vec(performative).expect("our own performatives can be encoded");
    let size = 8 + body.len() + payload.len();
    out.put_u32(u32::try_from(size).expect("frames are cut below the peer's limit"));
    out.put_slice(&[2, kind]);
    out.put_u16(channel);
    out.put_slice(&body);
    out.put_slice(payload);
}

pub fn write_heartbeat(out: &mut BytesMut) {
    out.put_slice(&[0, 0, 0, 8, 2, AMQP_FRAME, 0, 0]);
}

/// How much of a message fits into one transfer to a peer with this frame limit.
pub fn payload_room(peer_max_frame: u32) -> usize {
    (peer_max_frame.min(MAX_FRAME) as usize).saturating_sub(TRANSFER_OVERHEAD).max(1)
}

/// An error, with an empty info: an SDK reads all three fields without looking.
pub fn error(condition: &str, description: impl Into<String>) -> AmqpError {
    // The typed conditions serialise to the same symbol, so none needs to be told apart here.
    AmqpError::new(
        ErrorCondition::Custom(condition.into()),
        Some(description.into()),
        Some(Fields::new()),
    )
}

/// The performatives that end something, with the reason.
pub fn detach(handle: u32, error: Option<AmqpError>) -> Detach {
    Detach { handle: handle.into(), closed: true, error }
}

pub fn end() -> End {
    End { error: None }
}

pub fn close(error: Option<AmqpError>) -> Close {
    Close::new(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_waits_for_its_last_byte() {
        let mut out = BytesMut::new();
        write(&mut out, 3, &close(None), &[]);
        let mut partial = BytesMut::from(&out[..out.len() - 1]);
        assert!(next_frame(&mut partial).unwrap().is_none());
        let frame = next_frame(&mut out).unwrap().unwrap();
        assert_eq!(frame.channel, 3);
        assert!(matches!(read(&frame.body).unwrap(), Performative::Close));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused() {
        let mut bytes = BytesMut::from(&(MAX_FRAME + 1).to_be_bytes()[..]);
        assert!(next_frame(&mut bytes).is_err());
    }
}
