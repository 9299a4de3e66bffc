//! Replacement of values in a JSON body in place: all else stays byte for byte.

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Reads a field as it stands, `null` included: a field that is there is replaced and never added a
/// second time. Programs write absent fields as `null` (litellm#1854). For
/// `#[serde(default, borrow, deserialize_with = "…")]`.
///
/// # Errors
/// The deserializer's.
pub fn written<'de: 'a, 'a, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Changes to one body, applied together.
#[derive(Debug, Default)]
pub struct JsonEdits(Vec<(usize, usize, String)>);

impl JsonEdits {
    /// Replaces a value, which was read from this body.
    pub fn replace(&mut self, body: &[u8], value: &RawValue, replacement: String) {
        let start = value.get().as_ptr() as usize - body.as_ptr() as usize;
        self.0.push((start, start + value.get().len(), replacement));
    }

    /// Inserts a pair, as in `"n":1`, before the first one of an object that is not empty.
    pub fn insert(&mut self, body: &[u8], pair: &str) {
        let open = body.iter().position(|byte| *byte == b'{').map_or(0, |at| at + 1);
        self.0.push((open, open, format!("{pair},")));
    }

    pub fn apply(mut self, body: &Bytes) -> Bytes {
        if self.0.is_empty() {
            return body.clone();
        }
        self.0.sort_by_key(|(start, ..)| *start);
        let mut out = Vec::with_capacity(body.len() + 64);
        let mut done = 0;
        for (start, end, replacement) in self.0 {
            out.extend_from_slice(&body[done..start]);
            out.extend_from_slice(replacement.as_bytes());
            done = end;
        }
        out.extend_from_slice(&body[done..]);
        out.into()
    }
}
