//! Extracts text, rows or an image from files of many kinds.
//!
//! `kind` detects the kind of a file, and `read` hands it to the module of that kind; `office` does
//! the same for zip archives, which `package` opens. The structured kinds write `markdown`, so that
//! the splitter finds headings. A module knows nothing of recipes, queues or prompts: it takes bytes
//! and [`ReadLimits`], and returns a [`Document`] or a [`ReadError`].
//!
//! `sandbox` runs the intricate kinds in a process of their own. Their parsers follow a file
//! wherever it leads, so one that hangs, panics or eats memory must cost its document and no more.

mod document;
mod docx;
mod error;
mod html;
mod kind;
mod limits;
mod lines;
mod mail;
mod markdown;
mod office;
mod package;
mod pdf;
mod plain;
mod pptx;
mod read;
mod rows;
mod sandbox;
mod sheets;
mod xml;

pub use document::{Document, DocumentContent};
pub use error::ReadError;
pub use limits::ReadLimits;
pub use read::read;
pub use sandbox::{ReadRequest, answer_request, read_sandboxed};
