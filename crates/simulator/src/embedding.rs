//! Embeddings: unit vectors that differ from input to input and are cheap to generate.
//!
//! Each number is plus or minus the same value, the signs drawn from the input's hash, so that any
//! dimension gives a unit vector and equal inputs give equal vectors. Neighbours: `request` makes
//! the [`EmbeddingParams`], `reply` writes the vectors into a body.

use super::faults::mix;
use super::refusal::HttpRefusal;
use super::settings::DEFAULT_DIMENSIONS;

/// Largest dimension of any of the service's models.
const MAX_DIMENSIONS: u32 = 3_072;

/// Parameters of one embeddings request.
#[derive(Debug)]
pub struct EmbeddingParams {
    /// One hash for each input.
    pub inputs: Vec<u64>,
    dimensions: u32,
    base64: bool,
}

impl EmbeddingParams {
    pub fn new(
        dimensions: Option<u32>,
        encoding_format: Option<&str>,
    ) -> Result<Self, HttpRefusal> {
        let dimensions = dimensions.unwrap_or(DEFAULT_DIMENSIONS);
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            let text = "'dimensions' must be from 1 to 3072.";
            return Err(HttpRefusal::invalid(text, Some("dimensions")));
        }
        let base64 = match encoding_format {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => {
                let text = "'encoding_format' must be 'float' or 'base64'.";
                return Err(HttpRefusal::invalid(text, Some("encoding_format")));
            }
        };
        Ok(Self { inputs: Vec::new(), dimensions, base64 })
    }

    /// Appends one vector as JSON: a list of numbers, or a string of little-endian floats.
    pub fn write_vector(&self, input: u64, out: &mut Vec<u8>) {
        let value = 1.0 / (self.dimensions as f32).sqrt();
        if self.base64 {
            let floats: Vec<u8> = signs(input, self.dimensions)
                .flat_map(|minus| (if minus { -value } else { value }).to_le_bytes())
                .collect();
            out.push(b'"');
            write_base64(&floats, out);
            out.push(b'"');
            return;
        }
        let texts = [format!("{value},"), format!("-{value},")];
        out.push(b'[');
        for minus in signs(input, self.dimensions) {
            out.extend_from_slice(texts[usize::from(minus)].as_bytes());
        }
        out.pop();
        out.push(b']');
    }
}

fn signs(input: u64, count: u32) -> impl Iterator<Item = bool> {
    (0..count).map(move |i| mix(input.wrapping_add(u64::from(i / 64))) >> (i % 64) & 1 == 1)
}

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for group in bytes.chunks(3) {
        let mut bits = 0;
        for i in 0..3 {
            bits = bits << 8 | usize::from(group.get(i).copied().unwrap_or(0));
        }
        for i in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * i) & 63];
            out.push(if i <= group.len() { digit } else { b'=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(input: u64, dimensions: Option<u32>) -> Vec<f64> {
        let mut out = Vec::new();
        EmbeddingParams::new(dimensions, None).unwrap().write_vector(input, &mut out);
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn vectors_have_length_one_and_belong_to_their_input() {
        assert_eq!(vector(1, None).len(), 1_536);
        let norm: f64 = vector(1, Some(300)).iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        assert_eq!(vector(1, None), vector(1, None));
        assert_ne!(vector(1, None), vector(2, None));
    }

    #[test]
    fn base64_is_the_standard_one() {
        for (bytes, text) in [("", ""), ("M", "TQ=="), ("Ma", "TWE="), ("Man", "TWFu")] {
            let mut out = Vec::new();
            write_base64(bytes.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
