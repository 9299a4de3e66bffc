//! A document that was read: its content and its metadata.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    pub content: DocumentContent,
    /// Metadata of the file, as far as its kind has it: always `kind`; `title`, `author`, `date`
    /// (RFC 3339), `pages`, `sheets`, `slides`, `language`, `from`, `to`, `subject`, `attachments`.
    /// `note` is a remark for readers of the text, such as that the file is not what its name says.
    pub metadata: Map<String, Value>,
}

/// Content to ask a model about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentContent {
    /// `markdown` is true if the text has Markdown headings: also HTML, DOCX, PPTX and sheets
    /// become Markdown.
    Text { text: String, markdown: bool },
    /// CSV, TSV, JSON lines and single sheets: each row by its columns' names.
    Rows(Vec<Map<String, Value>>),
    /// PNG, JPEG, GIF or WebP, as it is in the file.
    Image {
        media_type: String,
        #[serde(with = "as_base64")]
        bytes: Bytes,
    },
}

impl Document {
    pub(super) fn new(kind: &str, content: DocumentContent) -> Self {
        let metadata = Map::from_iter([("kind".to_owned(), kind.into())]);
        Self { content, metadata }
    }

    pub(super) fn text(kind: &str, text: String, markdown: bool) -> Self {
        Self::new(kind, DocumentContent::Text { text, markdown })
    }

    /// Sets a metadata value, unless it is empty.
    pub(super) fn set_metadata(&mut self, name: &str, value: impl Into<Value>) {
        let value = match value.into() {
            Value::String(text) => text.trim().into(),
            value => value,
        };
        if value != Value::Null && value != "" && value != Value::Array(Vec::new()) {
            self.metadata.insert(name.to_owned(), value);
        }
    }
}

/// Bytes as base64 in JSON.
mod as_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(bytes: &Bytes, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}
