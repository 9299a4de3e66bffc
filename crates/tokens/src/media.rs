//! Audio and documents: estimates from their size, since no text of theirs is in the request.

use super::fields::JsonObject;

/// Tokens of a second of audio (OpenAI: user audio is one token per 100 ms).
const PER_SECOND: usize = 10;

/// Bytes of a second: 24,000 samples of 16 bit, and 128 kbit/s.
const WAV_BYTES: usize = 48_000;
const PACKED_BYTES: usize = 16_000;

/// A document's page: the service reads its text and looks at its picture.
const PAGE_BYTES: usize = 50_000;
const PAGE_TEXT: usize = 500;

/// Estimates the tokens of an `input_audio` part.
pub(super) fn audio_tokens(audio: &JsonObject<'_>) -> usize {
    let per_second = match audio.text("format").as_deref() {
        Some("wav") => WAV_BYTES,
        _ => PACKED_BYTES,
    };
    (decoded_bytes(audio, "data") * PER_SECOND).div_ceil(per_second)
}

/// Estimates the tokens of a `file` or `input_file` part: of one page if it is only named.
pub(super) fn file_tokens(file: &JsonObject<'_>, picture: usize) -> usize {
    let pages = decoded_bytes(file, "file_data").div_ceil(PAGE_BYTES).max(1);
    pages * (PAGE_TEXT + picture)
}

/// Returns the bytes that a field in base64 stands for.
fn decoded_bytes(object: &JsonObject<'_>, name: &str) -> usize {
    object.get(name).map_or(0, |raw| raw.get().len() / 4 * 3)
}
