//! Trace context of a job (W3C Trace Context), carried in its message.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A `traceparent` (W3C Trace Context, level 1): the trace, the step before in it, and whether the
/// trace is sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
    pub flags: u8,
}

/// Invalid `traceparent`.
#[derive(Debug, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct BadTraceParent;

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let trace_id = u128::from_be_bytes(self.trace_id);
        let span_id = u64::from_be_bytes(self.span_id);
        write!(f, "00-{trace_id:032x}-{span_id:016x}-{:02x}", self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = BadTraceParent;

    /// Reads a `traceparent`. A later version may have more fields; the first four are read as
    /// here.
    fn from_str(text: &str) -> Result<Self, BadTraceParent> {
        let mut fields = text.split('-');
        let mut hex = |digits: usize| {
            let field = fields.next().filter(|field| field.len() == digits)?;
            let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
            field.bytes().all(is_hex).then(|| u128::from_str_radix(field, 16).ok())?
        };
        let read = || Some((hex(2)?, hex(32)?, hex(16)?, hex(2)?));
        let (version, trace_id, span_id, flags) = { read }().ok_or(BadTraceParent)?;
        let more = fields.next().is_some();
        if trace_id == 0 || span_id == 0 || version == 0xff || version == 0 && more {
            return Err(BadTraceParent);
        }
        Ok(Self {
            trace_id: trace_id.to_be_bytes(),
            // Exactly as many digits were read as fit.
            span_id: (span_id as u64).to_be_bytes(),
            flags: flags as u8,
        })
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads another program's trace: a job is not rejected for an invalid one.
pub(super) fn read_leniently<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<TraceParent>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(value.as_str().and_then(|text| text.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standards_example_is_read_and_written_alike() {
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        assert_eq!((parent.trace_id[0], parent.span_id[7], parent.flags), (0x0a, 0x31, 1));
        assert_eq!(parent.to_string(), EXAMPLE);
    }

    #[test]
    fn what_the_standard_forbids_is_no_traceparent() {
        let bad = [
            "",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        for text in bad {
            assert!(text.parse::<TraceParent>().is_err(), "{text}");
        }
        let later = format!("01{}-more", &EXAMPLE[2..]);
        assert_eq!(later.parse::<TraceParent>().unwrap(), EXAMPLE.parse().unwrap());
    }
}
