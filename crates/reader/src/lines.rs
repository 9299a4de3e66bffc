//! Turns the glyphs of a page into lines: finds line ends, word gaps and paragraphs.
//!
//! A PDF gives the place of each glyph and nothing more. They are taken in the order of painting,
//! which programs that write PDF keep to that of reading; distances decide the rest.

use super::markdown::is_wide;

/// A painted glyph.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PlacedGlyph {
    pub text: String,
    /// Start along the line's direction.
    pub along: f64,
    /// Position of its line across the direction; it grows from line to line.
    pub across: f64,
    pub advance: f64,
    /// The font's height.
    pub size: f64,
    /// The direction of its line, in quarter turns.
    pub turn: i8,
}

/// A page's text as it grows.
#[derive(Debug, Default)]
pub(super) struct TextLines {
    text: String,
    last: Option<PlacedGlyph>,
    /// Distance from the line before to the current one.
    step: f64,
}

impl TextLines {
    pub(super) fn add(&mut self, glyph: PlacedGlyph) {
        if glyph.text.is_empty() {
            return;
        }
        if let Some(last) = self.last.take() {
            self.separate(&last, &glyph);
        }
        self.text.push_str(&glyph.text);
        self.last = Some(glyph);
    }

    /// Returns the text, without spaces at the ends of lines.
    pub(super) fn finish(self) -> String {
        let lines: Vec<&str> = self.text.lines().map(str::trim_end).collect();
        lines.join("\n").trim().to_owned()
    }

    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Inserts between two glyphs what their distance means.
    fn separate(&mut self, last: &PlacedGlyph, next: &PlacedGlyph) {
        let size = last.size.max(next.size).max(f64::MIN_POSITIVE);
        let step = next.across - last.across;
        if next.turn != last.turn {
            self.end_line(2);
        } else if step.abs() > size * 0.6 {
            // A step back is a new column or box; one of 1.3 times the step before parts
            // paragraphs, as does one of two font heights where nothing came before.
            let usual = if self.step > 0.0 { self.step * 1.3 } else { size * 2.0 };
            let far = step < 0.0 || step > usual.max(size * 1.2);
            self.step = if far { self.step } else { step };
            if far && step > 0.0 && step < size * 1.6 {
                self.step = step;
            }
            self.end_line(if far { 2 } else { 1 });
        } else {
            self.separate_words(last, next, size);
        }
    }

    fn separate_words(&mut self, last: &PlacedGlyph, next: &PlacedGlyph, size: f64) {
        let gap = next.along - (last.along + last.advance);
        // Gaps in justified Japanese are wider than those between Latin words.
        let wide = last.text.ends_with(is_wide) && next.text.starts_with(is_wide);
        let least = if wide { 0.8 } else { 0.18 };
        let spaced =
            last.text.ends_with(char::is_whitespace) || next.text.starts_with(char::is_whitespace);
        if gap < -size * 2.0 {
            // Back to the left at the same height: another column's line.
            self.end_line(1);
        } else if gap > size * least && !spaced {
            self.text.push(' ');
        }
    }

    fn end_line(&mut self, breaks: usize) {
        self.text.truncate(self.text.trim_end_matches([' ', '\t']).len());
        let have = self.text.len() - self.text.trim_end_matches('\n').len();
        self.text.extend(std::iter::repeat_n('\n', breaks.saturating_sub(have)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words at places: their glyphs are one unit wide and ten high.
    fn page(words: &[(f64, f64, &str)]) -> String {
        let mut lines = TextLines::default();
        for (along, across, word) in words {
            for (n, char) in word.chars().enumerate() {
                let advance = if is_wide(char) { 10.0 } else { 5.0 };
                lines.add(PlacedGlyph {
                    text: char.into(),
                    along: along + n as f64 * advance,
                    across: *across,
                    advance,
                    size: 10.0,
                    turn: 0,
                });
            }
        }
        lines.finish()
    }

    #[test]
    fn words_part_where_there_is_room_between_them() {
        assert_eq!(page(&[(0.0, 0.0, "one"), (18.0, 0.0, "two"), (33.5, 0.0, "3")]), "one two3");
        assert_eq!(page(&[(0.0, 0.0, "夜間"), (24.0, 0.0, "処理")]), "夜間処理");
    }

    #[test]
    fn a_larger_step_begins_a_paragraph() {
        let text = page(&[
            (0.0, 0.0, "a"),
            (0.0, 12.0, "b"),
            (0.0, 24.0, "c"),
            (0.0, 48.0, "d"),
            (0.0, 60.0, "e"),
            (100.0, 0.0, "f"),
        ]);
        assert_eq!(text, "a\nb\nc\n\nd\ne\n\nf");
    }
}
