//! Limits on the cost of reading a document.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds for reading one document. Exceeding one is reported; nothing is cut.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadLimits {
    /// The largest file, in bytes. 32 MiB by default, as the recipe's `max_file_mib`: past that are
    /// pictures and archives rather than text.
    pub file_bytes: u64,
    /// The most that a packed file (DOCX, XLSX, PPTX) may unpack to, in bytes. 256 MiB by default:
    /// XML shrinks to a tenth or so, bombs to a thousandth.
    pub unpacked_bytes: u64,
    /// The most text of one document, in bytes of UTF-8. 32 MiB by default: some eight million
    /// tokens of English.
    pub text_bytes: u64,
    /// The longest that reading may take. 60 s by default: PDFs of a thousand pages take a few.
    pub time: Duration,
    /// The most address space that the reading process may add to the program's own, in bytes; on
    /// Linux alone. 1 GiB by default: what may be unpacked fits in several times.
    pub memory_bytes: u64,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            file_bytes: 32 << 20,
            unpacked_bytes: 256 << 20,
            text_bytes: 32 << 20,
            time: Duration::from_secs(60),
            memory_bytes: 1 << 30,
        }
    }
}
