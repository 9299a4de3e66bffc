//! Pictures: their size from their first bytes, and what the model's family bills for it.
//!
//! Two formulas are published (OpenAI, "Images and vision: calculating costs"). Most models divide a
//! picture into tiles of 512 pixels, after it was fitted into 2048 x 2048 and its shorter side into 768;
//! the small ones of 2025 divide it into patches of 32 pixels, at most 1,536 of them.

use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use base64::{Engine, alphabet};

/// Size that is assumed where none is known: of a picture behind a URL or a file's id.
const ASSUMED: PictureSize = PictureSize { width: 1024, height: 1024 };

/// Base64 characters in which a picture's size is looked for; photos begin with a preview.
const HEAD: usize = 256 * 1024;

const MOST_PATCHES: f64 = 1536.0;
const PATCH: f64 = 32.0;
const TILE: f64 = 512.0;

/// Tolerates a cut text and missing padding: only the beginning of the data is decoded.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[derive(Debug, Clone, Copy, PartialEq)]
struct PictureSize {
    width: u32,
    height: u32,
}

/// Formula by which a model's family bills pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PictureRate {
    /// Tokens of any picture, which are all in low detail, and of each tile.
    Tiles { base: usize, tile: usize },
    /// Tokens of a patch.
    Patches { factor: f64 },
}

/// Rates by the beginning of a model's name; the first that fits counts. Unknown names are taken for
/// current models.
const RATES: [(&str, PictureRate); 14] = [
    ("gpt-4o-mini", PictureRate::Tiles { base: 2833, tile: 5667 }),
    ("gpt-4.1-mini", PictureRate::Patches { factor: 1.62 }),
    ("gpt-4.1-nano", PictureRate::Patches { factor: 2.46 }),
    ("gpt-5-mini", PictureRate::Patches { factor: 1.62 }),
    ("gpt-5-nano", PictureRate::Patches { factor: 2.46 }),
    ("o4-mini", PictureRate::Patches { factor: 1.72 }),
    ("gpt-4o", PictureRate::Tiles { base: 85, tile: 170 }),
    ("gpt-4.1", PictureRate::Tiles { base: 85, tile: 170 }),
    ("gpt-4", PictureRate::Tiles { base: 85, tile: 170 }),
    ("gpt-5", PictureRate::Tiles { base: 70, tile: 140 }),
    ("o1", PictureRate::Tiles { base: 75, tile: 150 }),
    ("o3", PictureRate::Tiles { base: 75, tile: 150 }),
    ("computer-use", PictureRate::Tiles { base: 65, tile: 129 }),
    ("", PictureRate::Tiles { base: 85, tile: 170 }),
];

impl PictureRate {
    /// Returns the rate of a model, by its name in lower case.
    pub(super) fn of(model: &str) -> Self {
        // Later small models keep the rates of the first ones: gpt-5.4-mini.
        let is_later = |size: &str| model.starts_with("gpt-5.") && model.contains(size);
        match () {
            () if is_later("-mini") => Self::Patches { factor: 1.62 },
            () if is_later("-nano") => Self::Patches { factor: 2.46 },
            () => {
                let rate = RATES.iter().find(|(name, _)| model.starts_with(name));
                rate.map_or(Self::Tiles { base: 85, tile: 170 }, |(_, rate)| *rate)
            }
        }
    }

    /// Returns the tokens of a picture that a request gives by this URL, which may hold its data.
    pub(super) fn tokens(self, url: Option<&str>, is_low: bool) -> usize {
        let size = url.and_then(size_of).unwrap_or(ASSUMED);
        match self {
            Self::Tiles { base, .. } if is_low => base,
            Self::Tiles { base, tile } => base + tile * tiles(size),
            Self::Patches { factor } => {
                let size = if is_low { fitted(size, TILE) } else { size };
                (patches(size) as f64 * factor).ceil() as usize
            }
        }
    }
}

/// Scales a picture down until its longer side fits.
fn fitted(size: PictureSize, longest: f64) -> PictureSize {
    let (width, height) = (f64::from(size.width), f64::from(size.height));
    let scale = (longest / width.max(height)).min(1.0);
    PictureSize { width: (width * scale).ceil() as u32, height: (height * scale).ceil() as u32 }
}

fn tiles(size: PictureSize) -> usize {
    let (width, height) = (f64::from(size.width), f64::from(size.height));
    let fit = (2048.0 / width.max(height)).min(1.0);
    let (width, height) = (width * fit, height * fit);
    let fit = (768.0 / width.min(height)).min(1.0);
    let across = |side: f64| (side * fit / TILE).ceil();
    (across(width) * across(height)) as usize
}

fn patches(size: PictureSize) -> usize {
    let (width, height) = (f64::from(size.width), f64::from(size.height));
    let count = (width / PATCH).ceil() * (height / PATCH).ceil();
    if count <= MOST_PATCHES {
        return count as usize;
    }
    let shrink = (PATCH * PATCH * MOST_PATCHES / (width * height)).sqrt();
    // One side becomes a whole number of patches.
    let whole = |side: f64| (side * shrink / PATCH).floor() / (side * shrink / PATCH);
    let shrink = shrink * whole(width).min(whole(height));
    let side = |side: f64| (side * shrink / PATCH - 1e-9).ceil();
    (side(width) * side(height)).min(MOST_PATCHES) as usize
}

/// Returns the size of a picture whose data is in the URL.
fn size_of(url: &str) -> Option<PictureSize> {
    let (_, data) = url.strip_prefix("data:")?.split_once(";base64,")?;
    // Whole groups of four, so that a cut leaves no half of a byte.
    let head = data.get(..data.len().min(HEAD) / 4 * 4)?;
    let size = imagesize::blob_size(&BASE64.decode(head).ok()?).ok()?;
    let side = |side: usize| u32::try_from(side).ok().filter(|side| (1..=100_000).contains(side));
    Some(PictureSize { width: side(size.width)?, height: side(size.height)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(width: u32, height: u32) -> PictureSize {
        PictureSize { width, height }
    }

    #[test]
    fn tiles_count_as_in_the_published_examples() {
        // OpenAI, "Calculating costs": 1024 x 1024 are four tiles, 2048 x 4096 six.
        assert_eq!([tiles(of(1024, 1024)), tiles(of(2048, 4096)), tiles(of(300, 200))], [4, 6, 1]);
        let rate = PictureRate::of("gpt-4o-2024-11-20");
        assert_eq!((rate.tokens(None, false), rate.tokens(None, true)), (765, 85));
        // The same picture costs 33 times as much there.
        assert_eq!(PictureRate::of("gpt-4o-mini").tokens(None, false), 2833 + 4 * 5667);
    }

    #[test]
    fn patches_count_as_in_the_published_examples() {
        assert_eq!(patches(of(1024, 1024)), 1024);
        assert_eq!(patches(of(1800, 2400)), 1452);
        assert!(patches(of(10_000, 33)) <= 1536);
        assert_eq!(PictureRate::of("gpt-4.1-mini").tokens(None, false), 1659);
        assert_eq!(PictureRate::of("gpt-5.4-nano"), PictureRate::Patches { factor: 2.46 });
    }

    #[test]
    fn a_picture_says_its_size_itself() {
        // A PNG of 300 x 200, cut after its header.
        let png = "iVBORw0KGgoAAAANSUhEUgAAASwAAADICAIAAADdvUsC";
        let url = format!("data:image/png;base64,{png}");
        assert_eq!(size_of(&url), Some(of(300, 200)));
        assert_eq!(size_of("data:image/png;base64,????"), None);
        assert_eq!(size_of("https://example.com/a.png"), None);
    }
}
