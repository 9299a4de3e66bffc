//! Reads a file in this process: finds its kind and has the module of that kind read it.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;

use super::document::{Document, DocumentContent};
use super::error::ReadError;
use super::kind::{self, FileKind};
use super::limits::ReadLimits;
use super::{html, mail, office, pdf, plain, rows, sheets};

/// Reads the file at `path`, called `name` as a document, in this process. Its bytes decide its
/// kind; if they are text, the extension of `name` does.
///
/// Only the unpacking of the intricate kinds is bounded here, not their time and memory: see
/// [`read_sandboxed`](super::read_sandboxed).
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
        FileKind::Package => office::read(bytes, limits)?,
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
pub(super) struct SniffedFile {
    file: File,
    pub(super) head: Vec<u8>,
}

impl SniffedFile {
    pub(super) fn at(path: &Path, limits: &ReadLimits) -> Result<Self, ReadError> {
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
