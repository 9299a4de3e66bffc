//! Reasons why a document has no text, each with a hint what to do about it.
//!
//! The errors cross from the reading process to ours as JSON, so they carry data and no sources
//! but the operating system's.

use std::io;

use serde::{Deserialize, Serialize};

/// Reason why a document could not be read. In a report, the text follows the document's name.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadError {
    #[error("can't be read: {0}")]
    Io(
        #[from]
        #[serde(with = "as_text")]
        io::Error,
    ),
    #[error("larger than {}; raise max_file_mib in the recipe, or cut the file", size(*limit))]
    TooLarge { limit: u64 },
    #[error("holds no text")]
    Empty,
    #[error("unsupported kind of document; leave it out by the recipe's include")]
    Unknown,
    #[error("{kind}, which is not supported; {hint}")]
    Unsupported { kind: String, hint: String },
    #[error("not valid {encoding}, which it seems to be; save it as UTF-8")]
    Malformed { encoding: String },
    #[error(
        "named .{extension} but is {is}; fetch it again, or rename it if it is meant to be that"
    )]
    WrongExtension { extension: String, is: String },
    #[error("protected by a password; save it without one")]
    Encrypted,
    #[error("broken or cut off ({kind}: {what}); fetch or save it again")]
    Broken { kind: String, what: String },
    #[error("unpacks to more than {}: a zip bomb, or far too large; split it", size(*limit))]
    UnpacksTooFar { limit: u64 },
    #[error("has more than {} of text; split it", size(*limit))]
    TooMuchText { limit: u64 },
    #[error("no text on its {pages} pages, which seem to be scanned; put it through OCR first")]
    NoTextLayer { pages: usize },
    #[error(
        "its fonts don't tell which characters they show ({unknown} of {all}); print it to PDF \
         again, or put it through OCR"
    )]
    Unmapped { unknown: usize, all: usize },
    #[error(
        "line {line} has {cells} cells and the header {columns}; fix the row, or quote the cell \
         that holds a separator"
    )]
    Ragged { line: u64, cells: usize, columns: usize },
    #[error("line {line} is no JSON object: {what}; fix or remove the line")]
    NoObject { line: usize, what: String },
    #[error("took longer than {seconds} s to read; save it again in a simpler form, or split it")]
    TooSlow { seconds: f64 },
    #[error("took more than {} of memory to read; split it", size(*limit))]
    TooMuchMemory { limit: u64 },
    #[error("its reader died ({how}); save it again, or leave it out by the recipe's include")]
    Died { how: String },
    #[error("the process that reads it can't be started: {0}")]
    Start(
        #[source]
        #[serde(with = "as_text")]
        io::Error,
    ),
}

impl ReadError {
    pub(super) fn broken(kind: &str, what: impl ToString) -> Self {
        Self::Broken { kind: kind.to_owned(), what: what.to_string() }
    }
}

/// Formats a limit as people set it: whole mebibytes where there are some.
fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{bytes} bytes") }
}

/// The operating system's errors as their texts.
mod as_text {
    use std::io;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(error: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(error)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<io::Error, D::Error> {
        String::deserialize(from).map(io::Error::other)
    }
}
