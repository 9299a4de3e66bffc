//! PDF: the text layer, page by page, and the file's metadata.
//!
//! The interpreter runs a page's program and passes each glyph with its character and place, even
//! of Japanese fonts that are not in the file; [`lines`](super::lines) makes text of them.

use encoding_rs::WINDOWS_1252;
use hayro_interpret::font::{Glyph as Painted, GlyphRun};
use hayro_interpret::hayro_cmap::{BfString, WritingMode};
use hayro_interpret::hayro_syntax::object::DateTime;
use hayro_interpret::hayro_syntax::page::Page;
use hayro_interpret::hayro_syntax::{DecryptionError, LoadPdfError, Pdf};
use hayro_interpret::kurbo::{Affine, BezPath, Point, Rect};
use hayro_interpret::{
    BlendMode, ClipPath, Context, Device, DrawMode, DrawProps, Image, ImageDrawProps,
    InterpreterCache, InterpreterSettings, SoftMask, TransformExt, interpret_page,
};

use super::lines::{PlacedGlyph, TextLines};
use super::{Document, ReadError, ReadLimits};

const KIND: &str = "PDF";

/// Length of the tail that must contain the end mark. Readers look in the last 1024 bytes (Adobe's
/// implementation notes, 3.4.4); some servers add a little.
const TAIL: usize = 4096;

/// Reads the text layer.
///
/// # Errors
/// If the file is broken, cut off or protected; if it has no text, or too much.
pub(super) fn read(bytes: Vec<u8>, limits: &ReadLimits) -> Result<Document, ReadError> {
    // A truncated file can often be opened, and then lacks pages without an error.
    if !has_end(&bytes) {
        return Err(ReadError::broken(KIND, "it has no end"));
    }
    let pdf = Pdf::new(bytes).map_err(|error| match error {
        LoadPdfError::Decryption(DecryptionError::PasswordProtected) => ReadError::Encrypted,
        LoadPdfError::Decryption(error) => {
            ReadError::broken(KIND, format!("its encryption is not understood, {error:?}"))
        }
        LoadPdfError::Invalid => ReadError::broken(KIND, "it can't be opened"),
    })?;
    let cache = InterpreterCache::new();
    let mut text = String::new();
    let (mut all, mut unknown) = (0, 0);
    for page in pdf.pages().iter() {
        let painted = collect_glyphs(page, &pdf, &cache, limits.text_bytes);
        all += painted.glyphs;
        unknown += painted.unmapped;
        let page = painted.lines.finish();
        if (text.len() + page.len()) as u64 > limits.text_bytes {
            return Err(ReadError::TooMuchText { limit: limits.text_bytes });
        }
        if !page.is_empty() {
            text.push_str(&page);
            text.push_str("\n\n");
        }
    }
    let pages = pdf.pages().len();
    if all == 0 || text.trim().is_empty() {
        return Err(ReadError::NoTextLayer { pages });
    }
    // A few symbols without a character are usual; a page of them gives nothing to ask about.
    if unknown * 4 > all {
        return Err(ReadError::Unmapped { unknown, all });
    }
    let mut document = Document::text("pdf", text.trim_end().to_owned() + "\n", false);
    read_metadata(&pdf, &mut document);
    document.set_metadata("pages", pages);
    if unknown > 0 {
        document.set_metadata("note", format!("{unknown} of {all} characters are unknown"));
    }
    Ok(document)
}

/// Returns true if the file ends with the end of a PDF, apart from zeros that fill a disk's block.
fn has_end(bytes: &[u8]) -> bool {
    let filled = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[..bytes.len() - filled];
    let tail = &bytes[bytes.len().saturating_sub(TAIL)..];
    ["%%EOF", "startxref"].iter().any(|end| memchr::memmem::find(tail, end.as_bytes()).is_some())
}

fn collect_glyphs<'a>(
    page: &'a Page<'a>,
    pdf: &'a Pdf,
    cache: &InterpreterCache<'a>,
    limit: u64,
) -> GlyphCollector {
    let (width, height) = page.render_dimensions();
    let bounds = Rect::new(0.0, 0.0, f64::from(width), f64::from(height));
    let transform = page.initial_transform(true).to_kurbo();
    let settings = InterpreterSettings::default();
    let mut context = Context::new(transform, bounds, cache, pdf.xref(), settings);
    let mut canvas = GlyphCollector { lines: TextLines::default(), glyphs: 0, unmapped: 0, limit };
    interpret_page(page, &mut context, &mut canvas);
    canvas
}

fn read_metadata(pdf: &Pdf, document: &mut Document) {
    let metadata = pdf.metadata();
    for (name, value) in [
        ("title", &metadata.title),
        ("author", &metadata.author),
        ("subject", &metadata.subject),
        ("keywords", &metadata.keywords),
    ] {
        if let Some(value) = value {
            document.set_metadata(name, text_string(value));
        }
    }
    if let Some(date) = metadata.modification_date.or(metadata.creation_date) {
        document.set_metadata("date", rfc3339(&date));
    }
}

/// Decodes a text string of PDF: UTF-16 or UTF-8 by its mark, else PDFDocEncoding, which has the
/// characters of Windows-1252 where they matter (ISO 32000-1, 7.9.2.2 and annex D).
fn text_string(bytes: &[u8]) -> String {
    let text = match encoding_rs::Encoding::for_bom(bytes) {
        Some((encoding, mark)) => encoding.decode_without_bom_handling(&bytes[mark..]).0,
        None => WINDOWS_1252.decode_without_bom_handling(bytes).0,
    };
    text.replace('\0', "")
}

fn rfc3339(date: &DateTime) -> String {
    let DateTime { year, month, day, hour, minute, second, .. } = date;
    let (hours, minutes) = (date.utc_offset_hour, date.utc_offset_minute);
    format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{hours:+03}:{minutes:02}"
    )
}

/// Device that collects the glyphs and paints nothing.
struct GlyphCollector {
    lines: TextLines,
    /// Glyphs, and those among them without a character.
    glyphs: usize,
    unmapped: usize,
    limit: u64,
}

impl<'a> Device<'a> for GlyphCollector {
    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, _mode: &DrawMode) {
        if self.lines.len() as u64 > self.limit {
            return;
        }
        for painted in run.glyphs() {
            self.glyphs += 1;
            let text = match painted.as_unicode() {
                Some(BfString::Char(char)) => {
                    ligature(char).map_or_else(|| char.into(), str::to_owned)
                }
                Some(BfString::String(text)) => text,
                None => {
                    self.unmapped += 1;
                    char::REPLACEMENT_CHARACTER.into()
                }
            };
            let advance = match &**painted {
                Painted::Outline(outline) => outline.advance_width(),
                Painted::Type3(drawn) => drawn.advance_width(),
            };
            let place = props.transform * painted.transform();
            let vertical = run.writing_mode() == WritingMode::Vertical;
            self.lines.add(placed(text, place, advance.unwrap_or(0.0).into(), vertical));
        }
    }

    fn draw_path(&mut self, _: &BezPath, _: DrawProps<'a>, _: &DrawMode) {}
    fn push_clip_path(&mut self, _: &ClipPath) {}
    fn push_transparency_group(&mut self, _: f32, _: Option<SoftMask<'a>>, _: BlendMode) {}
    fn draw_image(&mut self, _: Image<'a, '_>, _: ImageDrawProps<'a>) {}
    fn pop_clip(&mut self) {}
    fn pop_transparency_group(&mut self) {}
}

/// Splits a ligature into its letters: nobody searches for ligatures, nor do tokenizers know them.
fn ligature(char: char) -> Option<&'static str> {
    Some(match char {
        '\u{fb00}' => "ff",
        '\u{fb01}' => "fi",
        '\u{fb02}' => "fl",
        '\u{fb03}' => "ffi",
        '\u{fb04}' => "ffl",
        '\u{fb05}' | '\u{fb06}' => "st",
        _ => return None,
    })
}

/// Places a glyph of 1000 units to its font's height by `place`, on a page whose y grows downwards.
fn placed(text: String, place: Affine, advance: f64, vertical: bool) -> PlacedGlyph {
    let [a, b, c, d, ..] = place.as_coeffs();
    let at = place * Point::ORIGIN;
    let size = 1000.0 * c.hypot(d);
    // The direction of writing on the page: the font's x, or against its y in vertical lines.
    let (x, y) = if vertical { (-c, -d) } else { (a, b) };
    let length = x.hypot(y).max(f64::MIN_POSITIVE);
    let (x, y) = (x / length, y / length);
    let turn = if x.abs() >= y.abs() {
        if x >= 0.0 { 0 } else { 2 }
    } else if y >= 0.0 {
        1
    } else {
        3
    };
    // In vertical lines each glyph moves by its height, and the lines go to the left.
    let advance = if vertical { size } else { advance * a.hypot(b) };
    let along = at.x * x + at.y * y;
    let across = at.y * x - at.x * y;
    PlacedGlyph { text, along, across, advance, size, turn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_fills_its_block_has_its_end() {
        let end = b"startxref\n9\n%%EOF\n".to_vec();
        assert!(has_end(&end));
        assert!(has_end(&[end.as_slice(), &[0; 9000]].concat()));
        assert!(!has_end(&[end.as_slice(), &[b'1'; 9000]].concat()));
    }

    #[test]
    fn text_strings_are_read_in_their_three_encodings() {
        assert_eq!(text_string(b"\xfe\xff\x59\x1c\x95\x93"), "夜間");
        assert_eq!(text_string("\u{feff}夜間".as_bytes()), "夜間");
        assert_eq!(text_string(b"caf\xe9"), "café");
    }

    #[test]
    fn lines_go_down_a_page_and_columns_of_japanese_to_the_left() {
        let put = |x: f64, y: f64, vertical| {
            placed("x".into(), Affine::new([0.01, 0.0, 0.0, -0.01, x, y]), 500.0, vertical)
        };
        let (first, second) = (put(100.0, 50.0, false), put(100.0, 62.0, false));
        assert_eq!((first.along, first.advance, first.size), (100.0, 5.0, 10.0));
        assert!(second.across - first.across == 12.0);
        let (first, second) = (put(100.0, 50.0, true), put(85.0, 50.0, true));
        assert_eq!(first.along, 50.0);
        assert!(second.across - first.across == 15.0);
    }
}
