//! Bytes become text, whatever encoding they are in.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;

/// Why a document has no text.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
    #[error("larger than {mib} MiB; raise max_file_mib in the recipe, or cut the file")]
    TooLarge { mib: u64 },
    #[error("holds no text")]
    Empty,
    #[error("not a text file: only plain text is read (also Markdown and the like)")]
    Binary,
    #[error("not valid {encoding}, which it seems to be; save it as UTF-8")]
    Malformed { encoding: &'static str },
}

#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    pub content: Content,
    pub metadata: serde_json::Map<String, serde_json::Value>,
}
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Text { text: String, markdown: bool },
    Rows(Vec<serde_json::Map<String, serde_json::Value>>),
    Image { media_type: String, bytes: bytes::Bytes },
}
#[derive(Debug, Clone)]
pub struct Limits {
    pub file_bytes: u64,
}
impl Default for Limits {
    fn default() -> Self {
        Self { file_bytes: 32 << 20 }
    }
}
pub async fn read_apart(
    _program: &Path,
    path: &Path,
    name: &str,
    limits: &Limits,
) -> Result<Document, ReadError> {
    let text = read(path, limits.file_bytes >> 20)?;
    let markdown = name.ends_with(".md");
    Ok(Document { content: Content::Text { text, markdown }, metadata: Default::default() })
}

/// Reads a text file of at most `mib` MiB.
///
/// # Errors
/// If it is too large, empty, no text, or broken in its encoding.
pub fn read(path: &Path, mib: u64) -> Result<String, ReadError> {
    let limit = mib << 20;
    let mut bytes = Vec::new();
    // The size is not asked beforehand: a file may grow, and a device has none.
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge { mib });
    }
    let text = decode(&bytes)?;
    if text.trim().is_empty() { Err(ReadError::Empty) } else { Ok(text) }
}

/// Decodes by the byte order mark, else as UTF-8, else by what the bytes look like: Shift_JIS,
/// EUC-JP, ISO-2022-JP and the other encodings of the web. UTF-16 needs its mark.
///
/// # Errors
/// If the bytes are no text, or not valid in the encoding.
pub fn decode(bytes: &[u8]) -> Result<String, ReadError> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return whole(encoding, &bytes[mark..]);
    }
    if bytes.contains(&0) {
        return Err(ReadError::Binary);
    }
    // ISO-2022-JP is seven bits wide and so always valid UTF-8: its escapes tell it.
    let escapes = bytes.contains(&0x1b);
    match std::str::from_utf8(bytes) {
        Ok(text) if !escapes => return Ok(text.to_owned()),
        _ => {}
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    whole(detector.guess(None, Utf8Detection::Allow), bytes)
}

fn whole(encoding: &'static Encoding, bytes: &[u8]) -> Result<String, ReadError> {
    encoding
        .decode_without_bom_handling_and_without_replacement(bytes)
        .map(Into::into)
        .ok_or(ReadError::Malformed { encoding: encoding.name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "これは夜間に処理される文書です。\n次の段落には、漢字とカタカナが混ざります。\n";

    #[test]
    fn japanese_is_read_in_every_encoding_it_comes_in() {
        for encoding in [encoding_rs::SHIFT_JIS, encoding_rs::EUC_JP, encoding_rs::ISO_2022_JP] {
            let (bytes, _, lossy) = encoding.encode(TEXT);
            assert!(!lossy);
            assert_eq!(decode(&bytes).unwrap(), TEXT, "{}", encoding.name());
        }
        assert_eq!(decode(TEXT.as_bytes()).unwrap(), TEXT);
        let units = std::iter::once(0xfeff).chain(TEXT.encode_utf16());
        let utf16: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
        assert_eq!(decode(&utf16).unwrap(), TEXT);
    }

    #[test]
    fn what_is_no_text_is_said_to_be_none() {
        assert!(matches!(decode(b"\x7fELF\0\0"), Err(ReadError::Binary)));
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(read(file.path(), 1), Err(ReadError::Empty)));
        std::fs::write(file.path(), vec![b'a'; (1 << 20) + 1]).unwrap();
        assert!(matches!(read(file.path(), 1), Err(ReadError::TooLarge { mib: 1 })));
    }
}
