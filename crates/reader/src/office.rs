//! Reads office files: hands an opened archive to the module of its kind.

use super::document::Document;
use super::error::ReadError;
use super::limits::ReadLimits;
use super::package::OfficePackage;
use super::{docx, pptx, sheets};

/// Reads an archive by its kind.
///
/// # Errors
/// If it is broken, unpacks too far, or is of a kind that is not read.
pub(super) fn read(bytes: Vec<u8>, limits: &ReadLimits) -> Result<Document, ReadError> {
    let mut package = OfficePackage::open(bytes, limits)?;
    if let Some(mimetype) = package.part("mimetype")? {
        return open_document(package, mimetype.trim(), limits);
    }
    let main = package.main_part()?;
    match main.as_deref().and_then(|main| main.split_once('/')) {
        Some(("word", _)) => docx::read(package, main.as_deref().unwrap_or_default(), limits),
        Some(("ppt", _)) => pptx::read(package, main.as_deref().unwrap_or_default(), limits),
        Some(("xl", _)) => sheets::read_package(package, limits),
        _ if main.is_some() || package.is_office() => {
            Err(ReadError::broken("office file", "it has no document in it"))
        }
        _ => Err(unsupported("a zip archive", "unpack it into the source")),
    }
}

fn open_document(
    package: OfficePackage,
    mimetype: &str,
    limits: &ReadLimits,
) -> Result<Document, ReadError> {
    match mimetype.strip_prefix("application/vnd.oasis.opendocument.").unwrap_or(mimetype) {
        "spreadsheet" => sheets::read_package(package, limits),
        "text" => Err(unsupported("an OpenDocument text", "save it as DOCX")),
        "presentation" => Err(unsupported("an OpenDocument presentation", "save it as PPTX")),
        "application/epub+zip" => Err(unsupported("an e-book (EPUB)", "save it as HTML or PDF")),
        other => Err(unsupported(&format!("a file of type {other}"), "save it as DOCX or PDF")),
    }
}

fn unsupported(kind: &str, hint: &str) -> ReadError {
    ReadError::Unsupported { kind: kind.into(), hint: hint.into() }
}
