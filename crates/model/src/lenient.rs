//! Lenient reading of JSON objects: the fields that are asked for, whatever else stands there.
//!
//! Services and gateways differ in types, leave fields out, and repeat them. So a field is taken as
//! it stands, the last one where it is repeated, and read by whoever needs it; only text that is no
//! JSON object at all is refused.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// Longest name (code, type, status) that is taken from a reply; longer ones are no names.
const LONGEST_NAME: usize = 100;

/// Key of an object, borrowed where it has no escapes.
#[derive(Deserialize)]
pub(super) struct ObjectKey<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// Declares a struct of optional raw fields with a lenient `Deserialize`. `null` is absent.
macro_rules! raw_fields {
    ($(#[$about:meta])* $name:ident { $($field:ident),+ $(,)? }) => {
        $(#[$about])*
        #[derive(Default)]
        struct $name<'a> {
            $($field: Option<&'a serde_json::value::RawValue>,)+
        }

        impl<'de: 'a, 'a> serde::Deserialize<'de> for $name<'a> {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct FieldsVisitor<'a>(std::marker::PhantomData<&'a ()>);
                impl<'de: 'a, 'a> serde::de::Visitor<'de> for FieldsVisitor<'a> {
                    type Value = $name<'a>;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a JSON object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(
                        self,
                        mut map: A,
                    ) -> Result<Self::Value, A::Error> {
                        let mut fields = $name::default();
                        while let Some(key) = map.next_key::<crate::lenient::ObjectKey<'de>>()? {
                            match key.0.as_ref() {
                                $(key if crate::lenient::is_key(stringify!($field), key) => {
                                    fields.$field =
                                        crate::lenient::present(map.next_value()?);
                                })+
                                _ => {
                                    map.next_value::<serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok(fields)
                    }
                }
                from.deserialize_map(FieldsVisitor(std::marker::PhantomData))
            }
        }
    };
}
pub(super) use raw_fields;

/// Returns whether a field is that of a key; a field like `r#type` is named without its mark.
pub(super) fn is_key(field: &str, key: &str) -> bool {
    field.strip_prefix("r#").unwrap_or(field) == key
}

/// Returns the value unless it is `null`.
pub(super) fn present(value: &RawValue) -> Option<&RawValue> {
    Some(value).filter(|value| value.get() != "null")
}

/// Reads an object's fields; of anything else, none.
pub(super) fn object<'a, T: Deserialize<'a> + Default>(value: Option<&'a RawValue>) -> T {
    value.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default()
}

/// Reads a list's items; of anything else, none.
pub(super) fn list(value: Option<&RawValue>) -> Vec<&RawValue> {
    object(value)
}

/// Reads a text. Lone surrogates and other escapes that stand for no character are replaced.
pub(super) fn text(value: Option<&RawValue>) -> Option<Cow<'_, str>> {
    let raw = value?.get();
    if let Ok(key) = serde_json::from_str::<ObjectKey<'_>>(raw) {
        return Some(key.0);
    }
    let inner = raw.strip_prefix('"')?.strip_suffix('"')?;
    Some(Cow::Owned(inner.replace("\\u", "\u{fffd}u")))
}

/// Reads a short name: a code, a type, a status. A number counts as its digits.
pub(super) fn name(value: Option<&RawValue>) -> Option<String> {
    let raw = value?.get();
    let is_scalar = !raw.starts_with(['{', '[']);
    let name = text(value).map_or_else(|| raw.to_owned(), Cow::into_owned);
    let is_name = is_scalar && !name.is_empty() && name.len() <= LONGEST_NAME;
    (is_name && !name.chars().any(char::is_control)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    raw_fields!(
        /// Fields of a test.
        SampleFields { a, b }
    );

    #[test]
    fn fields_of_any_type_and_number_are_read_and_the_last_one_counts() {
        let json = r#"{"x":[1,{"a":2}],"a":1,"b":null,"a":{"c":3}}"#;
        let fields: SampleFields<'_> = serde_json::from_str(json).unwrap();
        assert_eq!(fields.a.unwrap().get(), r#"{"c":3}"#);
        assert!(fields.b.is_none());
        assert!(serde_json::from_str::<SampleFields<'_>>("[]").is_err());
    }

    #[test]
    fn names_are_short_scalars() {
        let read = |json: &str| {
            let value: Box<RawValue> = serde_json::from_str(json).unwrap();
            name(Some(&value))
        };
        assert_eq!(read("\"stop\"").as_deref(), Some("stop"));
        assert_eq!(read("429").as_deref(), Some("429"));
        assert_eq!(read("[]"), None);
        assert_eq!(read(&format!("\"{}\"", "x".repeat(101))), None);
        assert_eq!(read("\"a\\nb\""), None);
    }
}
