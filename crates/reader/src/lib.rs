//! Bytes become text, rows or an image, whatever kind of file they are in.
//!
//! `kind` tells what a file is, and one room per kind reads it; the structured ones write
//! `markdown`, so that the splitter finds their headings. A room knows nothing of recipes, queues
//! or prompts: it gets bytes and [`Limits`], and gives a [`Document`] or a [`ReadError`].
//!
//! `apart` runs the intricate kinds in a process of their own. Their parsers follow a file
//! wherever it leads, so one that hangs, panics or eats memory must cost its document and no more.

mod apart;
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
mod sheets;
mod xml;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use apart::{Request, answer, read_apart};
pub use error::ReadError;
pub use limits::Limits;

use kind::Kind;

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    pub content: Content,
    /// What the file says about itself, as far as its kind knows: always `kind`; `title`, `author`,
    /// `date` (RFC 3339), `pages`, `sheets`, `slides`, `language`, `from`, `to`, `subject`,
    /// `attachments`. `note` says what a reader of the text should know, such as that the file is
    /// not what its name says.
    pub metadata: Map<String, Value>,
}

/// What there is to ask a model about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// `markdown` is true where the text has Markdown's headings: also HTML, DOCX, PPTX and sheets
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
    fn new(kind: &str, content: Content) -> Self {
        let metadata = Map::from_iter([("kind".to_owned(), kind.into())]);
        Self { content, metadata }
    }

    fn text(kind: &str, text: String, markdown: bool) -> Self {
        Self::new(kind, Content::Text { text, markdown })
    }

    /// Keeps what says something.
    fn tell(&mut self, name: &str, value: impl Into<Value>) {
        let value = match value.into() {
            Value::String(text) => text.trim().into(),
            value => value,
        };
        if value != Value::Null && value != "" && value != Value::Array(Vec::new()) {
            self.metadata.insert(name.to_owned(), value);
        }
    }
}

/// Reads the file at `path`, whose name as a document is `name`, in this process. A file is read as
/// what its bytes say it is; where they are text, the extension of `name` decides.
///
/// Only what the intricate kinds unpack is bounded here, not their time and memory: see
/// [`read_apart`].
///
/// # Errors
/// If it can't be read, with what can be done about it.
pub fn read(path: &Path, name: &str, limits: &Limits) -> Result<Document, ReadError> {
    let mut file = Opened::at(path, limits)?;
    let kind = kind::of(&file.head, name)?;
    let bytes = match kind {
        Kind::Plain { .. } | Kind::Rows(_) => file.rest_of_text(limits)?,
        _ => file.rest(limits.file_bytes)?,
    };
    let mut document = match kind {
        Kind::Plain { markdown } => {
            let kind = if markdown { "markdown" } else { "text" };
            Document::text(kind, plain::read(&bytes)?, markdown)
        }
        Kind::Rows(rows) => {
            let rows = rows::read(&plain::read(&bytes)?, rows)?;
            Document::new("rows", Content::Rows(rows))
        }
        Kind::Image(media_type) => {
            let bytes = Bytes::from(bytes);
            Document::new("image", Content::Image { media_type: media_type.into(), bytes })
        }
        Kind::Html => html::read(&bytes, limits)?,
        Kind::Mail => mail::read(&bytes, limits)?,
        Kind::Pdf => pdf::read(bytes, limits)?,
        Kind::Package => package::read(bytes, limits)?,
        Kind::Container => sheets::read_container(bytes, limits)?,
    };
    note_name(&mut document, name);
    Ok(document)
}

/// Says so where a file is read as something else than it is called.
fn note_name(document: &mut Document, name: &str) {
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
        document.tell("note", note);
    }
}

/// A file and its first bytes.
struct Opened {
    file: File,
    head: Vec<u8>,
}

impl Opened {
    fn at(path: &Path, limits: &Limits) -> Result<Self, ReadError> {
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
        file.by_ref().take(kind::HEAD as u64).read_to_end(&mut head)?;
        if head.is_empty() {
            return Err(ReadError::Empty);
        }
        Ok(Self { file, head })
    }

    /// All bytes, where they are the text itself.
    fn rest_of_text(&mut self, limits: &Limits) -> Result<Vec<u8>, ReadError> {
        self.rest(limits.file_bytes.min(limits.text_bytes)).map_err(|error| match error {
            ReadError::TooLarge { limit } if limit < limits.file_bytes => {
                ReadError::TooMuchText { limit }
            }
            error => error,
        })
    }

    /// All bytes. The size was asked before, but a file may grow.
    fn rest(&mut self, limit: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = std::mem::take(&mut self.head);
        let more = (limit + 1).saturating_sub(bytes.len() as u64);
        self.file.by_ref().take(more).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit { Err(ReadError::TooLarge { limit }) } else { Ok(bytes) }
    }
}

/// Bytes in JSON.
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
