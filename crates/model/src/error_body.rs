//! Error body of a service or gateway, JSON or not, in any of the shapes that were seen.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::lenient::{list, name, object, raw_fields, text};
use super::reply_text::{mend_json, plain};

/// Characters kept of a message.
const KEPT_MESSAGE: usize = 2_000;

/// Characters kept of an error text that is not JSON: likely a page.
const KEPT_TEXT: usize = 500;

/// Largest error body that is kept whole, in bytes. A store's items have an end.
const LARGEST_ERROR: usize = 64 * 1024;

raw_fields!(
    /// OpenAI's envelope; `message` alone is API Management's, `detail` FastAPI's, `errors` others'.
    EnvelopeFields { error, errors, message, detail, code }
);

raw_fields!(
    /// The error itself.
    ErrorFields { code, r#type, param, message, status }
);

/// Error as it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ErrorBody {
    pub(super) code: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) param: Option<String>,
    pub(super) message: String,
    /// The body, if it is JSON and not too large to be kept.
    pub(super) json: Option<Bytes>,
}

impl ErrorBody {
    /// Reads a reply's text.
    pub(super) fn read(body: &Bytes, text: &str) -> Self {
        let mended = mend_json(text);
        let json = match serde_json::from_str::<&RawValue>(&mended) {
            Ok(value) => value,
            Err(_) => {
                return Self { message: plain(text.trim(), KEPT_TEXT), ..Self::default() };
            }
        };
        let kept = match &mended {
            std::borrow::Cow::Borrowed(_) => body.clone(),
            std::borrow::Cow::Owned(text) => Bytes::from(text.clone()),
        };
        let kept = Some(kept).filter(Self::may_be_kept);
        // Some services put the envelope into a list.
        let envelope = list(Some(json)).first().copied().unwrap_or(json);
        Self { json: kept, ..Self::of_envelope(envelope) }
    }

    /// Reads the error of an envelope.
    pub(super) fn of_envelope(envelope: &RawValue) -> Self {
        let fields: EnvelopeFields<'_> = object(Some(envelope));
        if let Some(error) = fields.error.or(list(fields.errors).first().copied()) {
            let mut read = Self::of_error(error);
            if read.message.is_empty() {
                read.message = message(fields.message.or(fields.detail));
            }
            return read;
        }
        let said = fields.message.or(fields.detail).or(fields.errors);
        let whole = said.is_none() && !matches!(envelope.get(), "{}" | "[]" | "null");
        Self {
            code: name(fields.code),
            message: message(said.or(whole.then_some(envelope))),
            ..Self::default()
        }
    }

    /// Reads an error object, or an error that is a mere text.
    pub(super) fn of_error(error: &RawValue) -> Self {
        let fields: ErrorFields<'_> = object(Some(error));
        let said = fields.message.unwrap_or(error);
        Self {
            code: name(fields.code).or_else(|| name(fields.status)),
            kind: name(fields.r#type),
            param: name(fields.param),
            message: message(Some(said).filter(|said| said.get() != "{}")),
            json: None,
        }
    }

    /// Returns whether a body is small enough to be kept.
    pub(super) fn may_be_kept(body: &Bytes) -> bool {
        body.len() <= LARGEST_ERROR
    }

    /// Returns whether its code or its type is one of these.
    pub(super) fn is(&self, names: &[&str]) -> bool {
        let is = |said: &Option<String>| said.as_deref().is_some_and(|said| names.contains(&said));
        is(&self.code) || is(&self.kind)
    }

    /// Returns whether its message has one of these parts, given in lower case.
    pub(super) fn mentions(&self, parts: &[&str]) -> bool {
        let said = self.message.to_lowercase();
        parts.iter().any(|part| said.contains(part))
    }

    /// Returns its code, or else its type.
    pub(super) fn name(&self) -> Option<&str> {
        self.code.as_deref().or(self.kind.as_deref())
    }
}

fn message(value: Option<&RawValue>) -> String {
    let said = text(value);
    plain(said.as_deref().or(value.map(RawValue::get)).unwrap_or_default(), KEPT_MESSAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ErrorBody {
        ErrorBody::read(&Bytes::copy_from_slice(text.as_bytes()), text)
    }

    #[test]
    fn every_shape_of_an_error_tells_its_message() {
        let cases = [
            (r#"{"error":{"code":"c","message":"m","type":"t","param":"p"}}"#, Some("c"), "m"),
            (r#"{"error":{"code":null,"message":"m","type":"t"}}"#, Some("t"), "m"),
            (r#"{"error":{"code":502,"message":"m"}}"#, Some("502"), "m"),
            (r#"{"error":"m"}"#, None, "m"),
            (r#"{"error":{"message":{"a":1}}}"#, None, r#"{"a":1}"#),
            (r#"{"statusCode":403,"message":"m"}"#, None, "m"),
            (r#"{"detail":"m"}"#, None, "m"),
            (r#"{"detail":[{"msg":"m"}]}"#, None, r#"[{"msg":"m"}]"#),
            (r#"{"errors":[{"message":"m","code":"c"}]}"#, Some("c"), "m"),
            (r#"[{"error":{"message":"m","status":"S"}}]"#, Some("S"), "m"),
            ("{}", None, ""),
            (r#""m""#, None, "m"),
        ];
        for (body, name, message) in cases {
            let read = read(body);
            assert!(read.json.is_some(), "{body}");
            assert_eq!((read.name(), read.message.as_str()), (name, message), "{body}");
        }
    }

    #[test]
    fn what_is_no_json_is_kept_as_the_beginning_of_its_text() {
        let page = format!("<html>\n{}", "x".repeat(1_000));
        let read = read(&page);
        assert_eq!(read.json, None);
        assert!(read.message.starts_with("<html> xxx") && read.message.len() == KEPT_TEXT);
    }

    #[test]
    fn an_error_of_megabytes_leaves_its_message_alone() {
        let body = format!(r#"{{"error":{{"message":"m","x":"{}"}}}}"#, "x".repeat(LARGEST_ERROR));
        let read = read(&body);
        assert_eq!((read.json, read.message.as_str()), (None, "m"));
    }
}
