//! Extracts text, rows or an image from files of many kinds.
//!
//! `kind` detects the kind of a file, and one module per kind reads it; the structured ones write
//! `markdown`, so that the splitter finds headings. A module knows nothing of recipes, queues or
//! prompts: it takes bytes and [`ReadLimits`], and returns a [`Document`] or a [`ReadError`].
//!
//! `sandbox` runs the intricate kinds in a process of their own. Their parsers follow a file
//! wherever it leads, so one that hangs, panics or eats memory must cost its document and no more.

mod docx;
mod error;
mod html;
mod kind;
mod limits;
mod lines;
mod mail;
mod markdown;
mod package;
mod pdf;
mod plain;
mod pptx;
mod rows;
mod sandbox;
mod sheets;
mod xml;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use error::ReadError;
pub use limits::ReadLimits;
pub use sandbox::{ReadRequest, answer_request, read_sandboxed};

use kind::FileKind;

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
    fn new(kind: &str, content: DocumentContent) -> Self {
        let metadata = Map::from_iter([("kind".to_owned(), kind.into())]);
        Self { content, metadata }
    }

    fn text(kind: &str, text: String, markdown: bool) -> Self {
        Self::new(kind, DocumentContent::Text { text, markdown })
    }

    /// Sets a metadata value, unless it is empty.
    fn set_metadata(&mut self, name: &str, value: impl Into<Value>) {
        let value = match value.into() {
            Value::String(text) => text.trim().into(),
            value => value,
        };
        if value != Value::Null && value != "" && value != Value::Array(Vec::new()) {
            self.metadata.insert(name.to_owned(), value);
        }
    }
}

/// Reads the file at `path`, called `name` as a document, in this process. Its bytes decide its
/// kind; if they are text, the extension of `name` does.
///
/// Only the unpacking of the intricate kinds is bounded here, not their time and memory: see
/// [`read_sandboxed`].
///
/// # Errors
/// If it can't be read, with a hint what to do about it.
pub fn read(path: &Path, name: &str, limits: &ReadLimits) -> Result<Document, ReadError> {
    let mut file = SniffedFile::at(path, limits)?;
    let kind = kind::detect(&file.head, name)?;
    let bytes = match kind {
        FileKind::Plain { .. } | FileKind::Rows(_) => file.rest_of_text(limits)?,
        _ => file.rest(limits.file_bytes)?,
    };
    let mut document = match kind {
        FileKind::Plain { markdown } => {
            let kind = if markdown { "markdown" } else { "text" };
            Document::text(kind, plain::read(&bytes)?, markdown)
        }
        FileKind::Rows(rows) => {
            let rows = rows::read(&plain::read(&bytes)?, rows)?;
            Document::new("rows", DocumentContent::Rows(rows))
        }
        FileKind::Image(media_type) => {
            let bytes = Bytes::from(bytes);
            Document::new("image", DocumentContent::Image { media_type: media_type.into(), bytes })
        }
        FileKind::Html => html::read(&bytes, limits)?,
        FileKind::Mail => mail::read(&bytes, limits)?,
        FileKind::Pdf => pdf::read(bytes, limits)?,
        FileKind::Package => package::read(bytes, limits)?,
        FileKind::Container => sheets::read_container(bytes, limits)?,
    };
    note_misnamed(&mut document, name);
    Ok(document)
}

/// Adds a note if a file is read as something else than it is called.
fn note_misnamed(document: &mut Document, name: &str) {
    let extension = kind::extension(name);
    let is = document.metadata["kind"].as_str().unwrap_or_default();
    let fits = match is {
        "pdf" => extension == "pdf",
        "docx" => ["docx", "docm", "dotx"].contains(&extension.as_str()),
        "pptx" => ["pptx", "pptm", "ppsx"].contains(&extension.as_str()),
        "sheets" => ["xlsx", "xlsm", "xlsb", "xls", "ods"].contains(&extension.as_str()),
        _ => true,
    };
    if !fits && !extension.is_empty() {
        let note = format!("named .{extension}, but read as the {is} that it is");
        document.set_metadata("note", note);
    }
}

/// A file and its first bytes.
struct SniffedFile {
    file: File,
    head: Vec<u8>,
}

impl SniffedFile {
    fn at(path: &Path, limits: &ReadLimits) -> Result<Self, ReadError> {
        let mut file = File::open(path)?;
        let metadata = file.metadata()?;
        // Reading a pipe could wait forever.
        if !metadata.is_file() {
            return Err(io::Error::other("it is no file").into());
        }
        if metadata.len() > limits.file_bytes {
            return Err(ReadError::TooLarge { limit: limits.file_bytes });
        }
        let mut head = Vec::new();
        file.by_ref().take(kind::HEAD_BYTES as u64).read_to_end(&mut head)?;
        if head.is_empty() {
            return Err(ReadError::Empty);
        }
        Ok(Self { file, head })
    }

    /// Reads all bytes, for kinds whose bytes are the text itself.
    fn rest_of_text(&mut self, limits: &ReadLimits) -> Result<Vec<u8>, ReadError> {
        self.rest(limits.file_bytes.min(limits.text_bytes)).map_err(|error| match error {
            ReadError::TooLarge { limit } if limit < limits.file_bytes => {
                ReadError::TooMuchText { limit }
            }
            error => error,
        })
    }

    /// Reads all bytes. The size was checked before, but a file may grow.
    fn rest(&mut self, limit: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = std::mem::take(&mut self.head);
        let more = (limit + 1).saturating_sub(bytes.len() as u64);
        self.file.by_ref().take(more).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(ReadError::TooLarge { limit }) } else { Ok(bytes) }
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
