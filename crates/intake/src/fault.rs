//! Faults of an input line, and the fix for each.

use std::fmt;
use std::io::{self, Write};

use serde_json::json;

/// Fault of a line that is no job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFault {
    pub file: String,
    /// From 1; 0 for a fault of the file as a whole.
    pub line: u64,
    /// The line's custom_id, if it can be read.
    pub custom_id: Option<String>,
    pub kind: LineFault,
}

/// Kinds of faults; each text names the fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    #[error("the file is empty; write one JSON object a line")]
    EmptyFile,
    #[error("not UTF-8 from byte {at} on; save the file as UTF-8")]
    NotUtf8 { at: usize },
    #[error("the line has {} MiB, more than the limit of {} MiB; split the prompt, or raise --max-line-mib", bytes >> 20, limit >> 20)]
    TooLong { bytes: usize, limit: usize },
    #[error("invalid JSON ({0}); each line must be one whole JSON object")]
    Json(String),
    #[error("'{field}' is missing; {hint}")]
    Missing { field: &'static str, hint: &'static str },
    #[error("'{field}' must be {expected}")]
    Wrong { field: &'static str, expected: &'static str },
    #[error(
        "the url '{0}' is not served; use /v1/chat/completions, /v1/responses or /v1/embeddings"
    )]
    Url(String),
    #[error("the line asks for {url}, but its batch is for {endpoint}; make a batch for each")]
    OtherApi { url: &'static str, endpoint: &'static str },
    #[error(
        "the body names no model; add \"model\" to it, or give --model for all lines without one"
    )]
    NoModel,
    #[error("no deployment serves the model '{model}'; use one of: {}", known.join(", "))]
    UnknownModel { model: String, known: Vec<String> },
    #[error(
        "the body sets no limit to the answer, so it may cost more than any budget; add \
         \"max_completion_tokens\" (Responses: \"max_output_tokens\") to it"
    )]
    Unbounded,
    #[error(
        "the body asks for \"background\": true, whose answers are fetched later and would be lost; \
         remove it, jobs wait in the queue anyway"
    )]
    Background,
    #[error(
        "the custom_id is used already in {first_file}, line {first_line}; give each line its own"
    )]
    DuplicateCustomId { first_file: String, first_line: u64 },
}

impl LineFault {
    /// Returns the code for programs that read the error file.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptyFile => "empty_file",
            Self::NotUtf8 { .. } => "invalid_utf8",
            Self::TooLong { .. } => "line_too_long",
            Self::Json(_) => "invalid_json_line",
            Self::Missing { .. } => "missing_field",
            Self::Wrong { .. } => "invalid_field",
            Self::Url(_) => "invalid_url",
            Self::OtherApi { .. } => "mismatched_endpoint",
            Self::NoModel => "missing_model",
            Self::UnknownModel { .. } => "unknown_model",
            Self::Unbounded => "missing_max_tokens",
            Self::Background => "background_request",
            Self::DuplicateCustomId { .. } => "duplicate_custom_id",
        }
    }

    /// Returns the faulty field.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::EmptyFile | Self::NotUtf8 { .. } | Self::TooLong { .. } | Self::Json(_) => None,
            Self::Missing { field, .. } | Self::Wrong { field, .. } => Some(field),
            Self::Url(_) | Self::OtherApi { .. } => Some("url"),
            Self::NoModel | Self::UnknownModel { .. } => Some("body.model"),
            Self::Unbounded => Some("body.max_completion_tokens"),
            Self::Background => Some("body.background"),
            Self::DuplicateCustomId { .. } => Some("custom_id"),
        }
    }
}

impl InputFault {
    /// Writes the fault as a line of an error file.
    pub(super) fn write_line(&self, out: &mut dyn Write) -> io::Result<()> {
        let error =
            json!({"code": self.kind.code(), "message": self.to_string(), "line": self.line});
        let line =
            json!({"id": null, "custom_id": self.custom_id, "response": null, "error": error});
        writeln!(out, "{line}")
    }
}

impl fmt::Display for InputFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.kind),
            line => write!(f, "{}, line {line}: {}", self.file, self.kind),
        }
    }
}
