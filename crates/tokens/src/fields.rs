//! Fields of a request, read one by one: an odd one costs itself and never the count of the others.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// JSON object of which each field is read when it is asked for. The last of several with one name
/// counts, as for most services.
pub(super) struct JsonObject<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

#[derive(Deserialize)]
struct ObjectKey<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonObject<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct FieldsVisitor<'a>(PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for FieldsVisitor<'a> {
            type Value = JsonObject<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(4);
                while let Some(ObjectKey(name)) = map.next_key()? {
                    fields.push((name, map.next_value()?));
                }
                Ok(JsonObject(fields))
            }
        }
        from.deserialize_map(FieldsVisitor(PhantomData))
    }
}

impl<'a> JsonObject<'a> {
    pub(super) fn read(json: &'a str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }

    /// Returns a field that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        let field = self.0.iter().rev().find(|(known, _)| known == name);
        field.map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    /// Returns a field that is a text.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        text(self.get(name)?)
    }

    /// Returns a field that is an object.
    pub(super) fn object(&self, name: &str) -> Option<JsonObject<'a>> {
        JsonObject::read(self.get(name)?.get())
    }

    /// Returns the names and values of all fields.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a RawValue)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), *value))
    }
}

/// Fields of a request body that cost tokens or limit them.
#[derive(Default)]
pub(super) struct RequestFields<'a> {
    pub(super) messages: Option<&'a RawValue>,
    pub(super) input: Option<&'a RawValue>,
    pub(super) instructions: Option<&'a RawValue>,
    pub(super) tools: Option<&'a RawValue>,
    pub(super) functions: Option<&'a RawValue>,
    pub(super) response_format: Option<&'a RawValue>,
    pub(super) text: Option<&'a RawValue>,
    pub(super) max_tokens: Option<&'a RawValue>,
    pub(super) max_completion_tokens: Option<&'a RawValue>,
    pub(super) max_output_tokens: Option<&'a RawValue>,
    pub(super) n: Option<&'a RawValue>,
}

impl<'a> RequestFields<'a> {
    pub(super) fn read(body: &'a str) -> Option<Self> {
        let object = JsonObject::read(body)?;
        Some(Self {
            messages: object.get("messages"),
            input: object.get("input"),
            instructions: object.get("instructions"),
            tools: object.get("tools"),
            functions: object.get("functions"),
            response_format: object.get("response_format"),
            text: object.get("text"),
            max_tokens: object.get("max_tokens"),
            max_completion_tokens: object.get("max_completion_tokens"),
            max_output_tokens: object.get("max_output_tokens"),
            n: object.get("n"),
        })
    }
}

/// Returns the value of a JSON text.
pub(super) fn text<'a>(raw: &'a RawValue) -> Option<Cow<'a, str>> {
    #[derive(Deserialize)]
    struct JsonText<'a>(#[serde(borrow)] Cow<'a, str>);
    let text: JsonText<'a> = serde_json::from_str(raw.get()).ok()?;
    Some(text.0)
}

/// Returns the items of a JSON list; none if it is no list.
pub(super) fn items(raw: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(raw.get()).unwrap_or_default()
}

/// Returns the number that a JSON number or text stands for, rounded up.
pub(super) fn whole_number(raw: &RawValue) -> Option<u32> {
    let written = raw.get().trim_matches('"').trim();
    let number: f64 = written.parse().ok()?;
    // The cast saturates.
    (number.is_finite() && number >= 0.0).then(|| number.ceil() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_however_it_is_written() {
        let raw = |json: &str| RawValue::from_string(json.to_owned()).unwrap();
        for (json, expected) in [
            ("500", Some(500)),
            ("500.0", Some(500)),
            ("499.5", Some(500)),
            ("\"500\"", Some(500)),
            ("5e2", Some(500)),
            ("99999999999", Some(u32::MAX)),
            ("-1", None),
            ("\"many\"", None),
            ("{}", None),
            ("1e999", None),
        ] {
            assert_eq!(whole_number(&raw(json)), expected, "{json}");
        }
    }
}
