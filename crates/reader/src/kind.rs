//! Kind of a document: by its first bytes, and where they leave it open by its name.

use super::ReadError;

/// Kinds as their bytes show them. Office files are distinguished once they are unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    Plain {
        markdown: bool,
    },
    Html,
    Rows(RowFormat),
    Mail,
    Pdf,
    /// A zip archive: DOCX, XLSX, PPTX, ODS, or none of them.
    Package,
    /// Microsoft's older container: .xls, and office files with a password.
    Container,
    Image(&'static str),
}

/// Format of rows in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowFormat {
    Comma,
    Tab,
    Json,
}

/// Number of bytes from the start that decide.
pub(super) const HEAD_BYTES: usize = 4096;

/// Extensions of kinds that are never text: text under them is a download or a rename gone wrong.
const NEVER_TEXT: &[&str] = &[
    "pdf", "docx", "docm", "xlsx", "xlsm", "xls", "xlsb", "ods", "pptx", "pptm", "doc", "ppt",
    "png", "jpg", "jpeg", "gif", "webp",
];

impl FileKind {
    /// Returns true if its reader runs in a process of its own: its parser follows the file's
    /// structure wherever that leads, and so may hang, panic or eat memory.
    pub(super) fn needs_sandbox(self) -> bool {
        match self {
            Self::Plain { .. } | Self::Rows(_) | Self::Image(_) => false,
            Self::Html | Self::Mail | Self::Pdf | Self::Package | Self::Container => true,
        }
    }
}

/// Detects the kind of a file that begins with `head` (up to [`HEAD_BYTES`] of it).
///
/// # Errors
/// If the kind is not supported, or text has an extension of something else.
pub(super) fn detect(head: &[u8], name: &str) -> Result<FileKind, ReadError> {
    if let Some(kind) = binary(head, name) {
        return kind;
    }
    let extension = extension(name);
    if NEVER_TEXT.contains(&extension.as_str()) && !head.is_empty() {
        let is = if looks_like_html(head) { "an HTML page" } else { "none" };
        return Err(ReadError::WrongExtension { extension, is: is.into() });
    }
    Ok(match extension.as_str() {
        "html" | "htm" | "xhtml" => FileKind::Html,
        "csv" => FileKind::Rows(RowFormat::Comma),
        "tsv" | "tab" => FileKind::Rows(RowFormat::Tab),
        "jsonl" | "ndjson" => FileKind::Rows(RowFormat::Json),
        "eml" => FileKind::Mail,
        "md" | "markdown" => FileKind::Plain { markdown: true },
        "" if looks_like_html(head) => FileKind::Html,
        "" if looks_like_mail(head) => FileKind::Mail,
        _ => FileKind::Plain { markdown: false },
    })
}

/// Returns the extension in lower case, without its dot; empty where there is none.
pub(super) fn extension(name: &str) -> String {
    let extension = std::path::Path::new(name).extension().unwrap_or_default();
    extension.to_string_lossy().to_lowercase()
}

fn binary(head: &[u8], name: &str) -> Option<Result<FileKind, ReadError>> {
    let unsupported = |kind: &str, hint: &str| {
        Some(Err(ReadError::Unsupported { kind: kind.into(), hint: hint.into() }))
    };
    // Readers of PDF allow for 1024 bytes before it (Adobe's implementation notes, 3.4.1); a text
    // about PDF may have it there too.
    let start = &head[..head.len().min(1024)];
    let mark = memchr::memmem::find(start, b"%PDF-");
    if mark == Some(0) || (mark.is_some() && extension(name) == "pdf") {
        return Some(Ok(FileKind::Pdf));
    }
    match head {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some(Ok(FileKind::Package)),
        [0xd0, 0xcf, 0x11, 0xe0, 0xa1, 0xb1, 0x1a, 0xe1, ..] => Some(Ok(FileKind::Container)),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => {
            Some(Ok(FileKind::Image("image/png")))
        }
        [0xff, 0xd8, 0xff, ..] => Some(Ok(FileKind::Image("image/jpeg"))),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Ok(FileKind::Image("image/gif"))),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            Some(Ok(FileKind::Image("image/webp")))
        }
        [b'{', b'\\', b'r', b't', b'f', ..] => unsupported("rich text (RTF)", "save it as DOCX"),
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => {
            unsupported("a TIFF image", "convert it to PNG")
        }
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'7', b'z', 0xbc, 0xaf, ..] => {
            unsupported("a packed file", "unpack it")
        }
        _ => None,
    }
}

fn looks_like_html(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins =
        |with: &[u8]| head.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    begins(b"<!doctype html") || begins(b"<html")
}

/// Detects a header block with a sender, as mail programs save it without an extension.
fn looks_like_mail(head: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n');
    let header = |line: &[u8]| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        line.contains(&b':')
            && !name.is_empty()
            && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let mut from = false;
    let mut mime = false;
    lines.by_ref().take_while(|line| !line.trim_ascii().is_empty()).all(|line| {
        from |= line.starts_with(b"From:");
        mime |= line.starts_with(b"MIME-Version:") || line.starts_with(b"Message-ID:");
        header(line) || line.starts_with(b" ") || line.starts_with(b"\t")
    }) && from
        && mime
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_what_it_is_and_not_as_it_is_called() {
        assert_eq!(detect(b"%PDF-1.7 ...", "report.docx").unwrap(), FileKind::Pdf);
        assert_eq!(detect(b"PK\x03\x04...", "report.pdf").unwrap(), FileKind::Package);
        assert_eq!(
            detect(b"\x89PNG\r\n\x1a\n", "photo.txt").unwrap(),
            FileKind::Image("image/png")
        );
        assert_eq!(detect(b"\r\n%PDF-1.7 ...", "a.pdf").unwrap(), FileKind::Pdf);
        let about = detect(b"A file begins with %PDF-1.7", "pdf.md").unwrap();
        assert_eq!(about, FileKind::Plain { markdown: true });
        assert_eq!(detect(b"<html><p>x", "page").unwrap(), FileKind::Html);
        assert_eq!(detect(b"From: a@b\nMIME-Version: 1.0\n\nx", "1234").unwrap(), FileKind::Mail);
        assert_eq!(detect(b"# Title", "a.MD").unwrap(), FileKind::Plain { markdown: true });
        assert_eq!(detect(b"<html>", "source.php").unwrap(), FileKind::Plain { markdown: false });
    }

    #[test]
    fn a_login_page_saved_as_pdf_is_told() {
        let told = detect(b"<!DOCTYPE html><title>Sign in", "invoice.pdf").unwrap_err().to_string();
        assert!(told.contains(".pdf") && told.contains("HTML"), "{told}");
    }
}
