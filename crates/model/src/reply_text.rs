//! Text of a reply: unpacked, decoded and checked once, where it enters.
//!
//! After this no stage meets bytes that a store or a file format refuses: the text is UTF-8, and an
//! answer's is one JSON value. Headers are hints; the bytes decide. Gateways pack what nobody asked
//! them to pack (agent-vision-toolkit#36), say gzip over plain text (NextChat#3215), cut characters
//! in half (vllm#10234), and write `NaN` (sglang#20323).

use std::borrow::Cow;
use std::io::Read;

use bytes::Bytes;
use encoding_rs::{Encoding, UTF_8};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::response::{LARGEST_ANSWER, header};

/// Shortest key that is masked.
const SHORTEST_SECRET: usize = 8;

/// Text of a reply, fit for every later stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplyText {
    /// UTF-8 without a byte order mark.
    pub(super) bytes: Bytes,
    /// Bytes that stand for no character were replaced.
    pub(super) is_lossy: bool,
}

/// Reason why a reply has no text.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ReplyTextError {
    #[error("the answer exceeds 64 MiB when it is unpacked")]
    TooLarge,
    #[error("the reply is packed as {0}, and can't be unpacked: something on the way damages it")]
    Damaged(&'static str),
}

impl ReplyText {
    /// Unpacks and decodes the body of a response.
    pub(super) fn read(headers: &HeaderMap, body: Bytes) -> Result<Self, ReplyTextError> {
        let body = unpack(headers, body)?;
        Ok(Self::decode(headers, body))
    }

    /// Masks keys and tokens that the reply quotes.
    pub(super) fn without(self, secrets: [Option<&HeaderValue>; 2]) -> Self {
        let secrets = secrets.into_iter().flatten();
        let bytes = secrets.fold(self.bytes, |bytes, secret| masked(bytes, secret.as_bytes()));
        Self { bytes, ..self }
    }

    pub(super) fn as_str(&self) -> &str {
        simdutf8::basic::from_utf8(&self.bytes).unwrap_or_default()
    }

    fn decode(headers: &HeaderMap, body: Bytes) -> Self {
        let marked = Encoding::for_bom(&body);
        if marked.is_none_or(|(encoding, _)| encoding == UTF_8) {
            let start = marked.map_or(0, |(_, length)| length);
            let rest = body.slice(start..);
            let is_plain = simdutf8::basic::from_utf8(&rest).is_ok();
            // Only ISO-2022-JP looks like ASCII and is not.
            if is_plain && (memchr::memchr(0x1b, &rest).is_none() || marked.is_some()) {
                return Self { bytes: rest, is_lossy: false };
            }
        }
        let encoding = marked.map(|(encoding, _)| encoding).or_else(|| charset(headers));
        let (text, is_lossy) = encoding.unwrap_or(UTF_8).decode_with_bom_removal(&body);
        Self { bytes: Bytes::from(text.into_owned()), is_lossy }
    }
}

fn masked(bytes: Bytes, secret: &[u8]) -> Bytes {
    let secret = secret.strip_prefix(b"Bearer ").unwrap_or(secret);
    // A shorter one may be any word, and is no secret worth its name.
    if secret.len() < SHORTEST_SECRET || memchr::memmem::find(&bytes, secret).is_none() {
        return bytes;
    }
    let mut rest = bytes.as_ref();
    let mut out = Vec::with_capacity(rest.len());
    while let Some(at) = memchr::memmem::find(rest, secret) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(b"[key]");
        rest = &rest[at + secret.len()..];
    }
    out.extend_from_slice(rest);
    // A secret of odd bytes may begin or end within a character.
    String::from_utf8_lossy(&out).into_owned().into()
}

fn charset(headers: &HeaderMap) -> Option<&'static Encoding> {
    let kind = header(headers, CONTENT_TYPE.as_str())?;
    let label = kind
        .split(';')
        .filter_map(|part| part.split_once('='))
        .find_map(|(name, label)| name.trim().eq_ignore_ascii_case("charset").then_some(label))?;
    Encoding::for_label(label.trim().trim_matches('"').as_bytes())
}

fn unpack(headers: &HeaderMap, body: Bytes) -> Result<Bytes, ReplyTextError> {
    let is_gzip = body.starts_with(&[0x1f, 0x8b]);
    let said = header(headers, CONTENT_ENCODING.as_str()).unwrap_or_default();
    if is_gzip {
        return unpacked(MultiGzDecoder::new(body.as_ref()), "gzip");
    }
    if !said.to_ascii_lowercase().contains("deflate") || looks_like_text(&body) {
        return Ok(body);
    }
    // The name means the format with a header (RFC 9110), and some servers send it without.
    let has_header = matches!(body.get(..2), Some([cmf, flg])
        if cmf & 0x0f == 8 && u16::from_be_bytes([*cmf, *flg]).is_multiple_of(31));
    match has_header {
        true => unpacked(ZlibDecoder::new(body.as_ref()), "deflate"),
        false => unpacked(DeflateDecoder::new(body.as_ref()), "deflate"),
    }
}

fn looks_like_text(body: &[u8]) -> bool {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    first.is_none_or(|byte| matches!(byte, b'{' | b'[' | b'"' | b'<'))
        || body.starts_with(b"data:")
        || body.starts_with(b"event:")
}

fn unpacked(reader: impl Read, format: &'static str) -> Result<Bytes, ReplyTextError> {
    let mut bytes = Vec::new();
    let read = reader.take(LARGEST_ANSWER as u64 + 1).read_to_end(&mut bytes);
    match read {
        Ok(_) if bytes.len() > LARGEST_ANSWER => Err(ReplyTextError::TooLarge),
        Ok(_) => Ok(bytes.into()),
        Err(_) => Err(ReplyTextError::Damaged(format)),
    }
}

/// Mends what other languages' writers let through and JSON does not: `NaN` and infinities become
/// `null`, raw control characters within texts become escapes. The rest stays byte for byte.
pub(super) fn mend_json(text: &str) -> Cow<'_, str> {
    const ODD_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
    let mut mended = String::new();
    let (mut done, mut at, mut in_text) = (0, 0, false);
    let bytes = text.as_bytes();
    while at < bytes.len() {
        let (found, replacement) = match bytes[at] {
            b'"' => {
                in_text = !in_text;
                (1, None)
            }
            b'\\' if in_text => (2, None),
            control @ ..0x20 if in_text => (1, Some(format!("\\u{control:04x}"))),
            b'N' | b'I' | b'-' if !in_text => {
                let odd = ODD_NUMBERS.into_iter().find(|odd| text[at..].starts_with(odd));
                (odd.map_or(1, str::len), odd.map(|_| "null".to_owned()))
            }
            _ => (1, None),
        };
        if let Some(replacement) = replacement {
            mended.push_str(&text[done..at]);
            mended.push_str(&replacement);
            done = at + found;
        }
        at += found;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    mended.push_str(&text[done..]);
    Cow::Owned(mended)
}

/// Returns the beginning of a text without control characters, which a terminal would obey.
pub(super) fn plain(text: &str, longest: usize) -> String {
    text.chars().take(longest).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn read(headers: &[(&'static str, &str)], body: &[u8]) -> Result<ReplyText, ReplyTextError> {
        let headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap()));
        ReplyText::read(&headers.collect(), Bytes::copy_from_slice(body))
    }

    fn text(headers: &[(&'static str, &str)], body: &[u8]) -> (String, bool) {
        let read = read(headers, body).unwrap();
        (read.as_str().to_owned(), read.is_lossy)
    }

    const JSON: &str = r#"{"a":"吾輩"}"#;

    #[test]
    fn what_was_packed_unasked_is_unpacked_whatever_the_header_says() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(JSON.as_bytes()).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(JSON.as_bytes()).unwrap();
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::fast());
        raw.write_all(JSON.as_bytes()).unwrap();
        let said = |encoding| [("content-encoding", encoding)];
        assert_eq!(text(&said("gzip"), &gzip).0, JSON);
        assert_eq!(text(&[], &gzip).0, JSON);
        assert_eq!(text(&said("deflate"), &gzip).0, JSON);
        assert_eq!(text(&said("deflate"), &zlib.finish().unwrap()).0, JSON);
        assert_eq!(text(&said("deflate"), &raw.finish().unwrap()).0, JSON);
        for lie in ["gzip", "deflate", "br"] {
            assert_eq!(text(&said(lie), JSON.as_bytes()).0, JSON, "{lie} over plain text");
        }
        let cut = &gzip[..gzip.len() / 2];
        assert_eq!(read(&[], cut), Err(ReplyTextError::Damaged("gzip")));
    }

    #[test]
    fn a_small_reply_that_unpacks_to_gigabytes_is_refused() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        let zeros = vec![b' '; 1 << 20];
        (0..=LARGEST_ANSWER >> 20).for_each(|_| gzip.write_all(&zeros).unwrap());
        assert_eq!(read(&[], &gzip.finish().unwrap()), Err(ReplyTextError::TooLarge));
    }

    #[test]
    fn text_of_other_encodings_is_decoded_and_half_characters_are_marked() {
        assert_eq!(text(&[], b"\xef\xbb\xbf{}"), ("{}".into(), false), "byte order mark");
        assert_eq!(text(&[], b"\xff\xfe{\0}\0"), ("{}".into(), false), "UTF-16");
        let sjis = [("content-type", "text/plain; charset=Shift_JIS")];
        assert_eq!(text(&sjis, b"\x83G\x83\x89\x81["), ("エラー".into(), false));
        let mail = [("content-type", "text/plain; charset=\"iso-2022-jp\"")];
        assert_eq!(text(&mail, b"\x1b$B%\"\x1b(B"), ("ア".into(), false));
        assert_eq!(text(&sjis, JSON.as_bytes()), (JSON.into(), false), "the label is wrong");
        assert_eq!(text(&[], b"caf\xe9"), ("caf\u{fffd}".into(), true));
        assert_eq!(text(&[], b"\xe3\x81\""), ("\u{fffd}\"".into(), true));
    }

    #[test]
    fn json_of_other_writers_is_mended_and_all_else_stays() {
        assert_eq!(
            mend_json(r#"{"a":NaN,"b":[-Infinity,Infinity,-1],"c":"NaN \" NaN"}"#),
            r#"{"a":null,"b":[null,null,-1],"c":"NaN \" NaN"}"#
        );
        assert_eq!(mend_json("{\n\"a\":\"x\ny\u{0}\"}"), "{\n\"a\":\"x\\u000ay\\u0000\"}");
        assert!(matches!(mend_json(r#"{"a":"\\"}"#), Cow::Borrowed(_)));
        assert_eq!(mend_json("\"ends in \\"), "\"ends in \\");
    }

    #[test]
    fn a_message_can_not_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n", 5), "a [2J");
    }
}
