//! Decodes bytes as text, whatever their encoding.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::Encoding;

use super::ReadError;

/// Returns the text of a file, which must not be blank.
///
/// # Errors
/// If it is blank, no text, or broken in its encoding.
pub(super) fn read(bytes: &[u8]) -> Result<String, ReadError> {
    let text = decode(bytes)?;
    if text.trim().is_empty() { Err(ReadError::Empty) } else { Ok(text) }
}

/// Decodes by the byte order mark, else as UTF-8, else by what the bytes look like: Shift_JIS,
/// EUC-JP, ISO-2022-JP and the other encodings of the web. UTF-16 needs its mark.
///
/// # Errors
/// If the bytes are no text, or not valid in the encoding.
pub(super) fn decode(bytes: &[u8]) -> Result<String, ReadError> {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return whole(encoding, &bytes[mark..]);
    }
    if bytes.contains(&0) {
        return Err(ReadError::Unknown);
    }
    // ISO-2022-JP is seven bits wide and so always valid UTF-8: its escapes reveal it.
    let escapes = bytes.contains(&0x1b);
    match std::str::from_utf8(bytes) {
        Ok(text) if !escapes => return Ok(text.to_owned()),
        _ => {}
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    whole(detector.guess(None, Utf8Detection::Allow), bytes)
}

pub(super) fn whole(encoding: &'static Encoding, bytes: &[u8]) -> Result<String, ReadError> {
    encoding
        .decode_without_bom_handling_and_without_replacement(bytes)
        .map(Into::into)
        .ok_or(ReadError::Malformed { encoding: encoding.name().into() })
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
        assert!(matches!(decode(b"\x7fELF\0\0"), Err(ReadError::Unknown)));
        assert!(matches!(read(b" \n"), Err(ReadError::Empty)));
    }
}
