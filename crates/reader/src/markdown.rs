//! Markdown writer of the structured kinds, whose headings the splitter knows.

use super::ReadError;

/// A Markdown text that grows block by block, up to a limit.
#[derive(Debug)]
pub(super) struct MarkdownWriter {
    text: String,
    limit: u64,
}

impl MarkdownWriter {
    /// Creates a text of at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self { text: String::new(), limit }
    }

    /// Writes a heading; deeper levels than Markdown has become its last.
    pub(super) fn heading(&mut self, level: usize, text: &str) -> Result<(), ReadError> {
        let text = one_line(text);
        if text.is_empty() {
            return Ok(());
        }
        let marks = "#".repeat(level.clamp(1, 6));
        self.block(&format!("{marks} {text}"), "\n\n")
    }

    pub(super) fn paragraph(&mut self, text: &str) -> Result<(), ReadError> {
        let text = text.trim();
        if text.is_empty() { Ok(()) } else { self.block(&escape_headings(text), "\n\n") }
    }

    /// Writes a list item, `depth` lists deep, after a mark such as `-` or `3.`.
    pub(super) fn item(&mut self, depth: usize, mark: &str, text: &str) -> Result<(), ReadError> {
        let text = one_line(text);
        if text.is_empty() {
            return Ok(());
        }
        let indent = "  ".repeat(depth.saturating_sub(1).min(16));
        let last = self.text.rsplit('\n').next().unwrap_or_default().trim_start();
        let joins = last.starts_with("- ")
            || last.split_once(". ").is_some_and(|(n, _)| {
                !n.is_empty() && n.bytes().all(|digit| digit.is_ascii_digit())
            });
        self.block(&format!("{indent}{mark} {text}"), if joins { "\n" } else { "\n\n" })
    }

    /// Writes text whose lines and spaces stay as they are.
    pub(super) fn code(&mut self, text: &str) -> Result<(), ReadError> {
        let text = text.trim_end().trim_start_matches(['\r', '\n']);
        if text.is_empty() { Ok(()) } else { self.block(&format!("```\n{text}\n```"), "\n\n") }
    }

    /// Writes a table whose first row is its header. One column is no table, but paragraphs.
    pub(super) fn table(&mut self, rows: &[Vec<String>]) -> Result<(), ReadError> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
        if columns < 2 {
            return rows.iter().flatten().try_for_each(|cell| self.paragraph(cell));
        }
        let mut first = true;
        for row in rows.iter().filter(|row| row.iter().any(|cell| !cell.trim().is_empty())) {
            let cell = |n: usize| row.get(n).map(|cell| one_line(cell).replace('|', "\\|"));
            let cells: Vec<String> = (0..columns).map(|n| cell(n).unwrap_or_default()).collect();
            self.block(&format!("| {} |", cells.join(" | ")), if first { "\n\n" } else { "\n" })?;
            if first {
                self.block(&format!("|{}", " --- |".repeat(columns)), "\n")?;
                first = false;
            }
        }
        Ok(())
    }

    /// # Errors
    /// If nothing was written.
    pub(super) fn finish(mut self) -> Result<String, ReadError> {
        if self.text.is_empty() {
            return Err(ReadError::Empty);
        }
        self.text.push('\n');
        Ok(self.text)
    }

    fn block(&mut self, text: &str, separator: &str) -> Result<(), ReadError> {
        if (self.text.len() + separator.len() + text.len()) as u64 > self.limit {
            return Err(ReadError::TooMuchText { limit: self.limit });
        }
        if !self.text.is_empty() {
            self.text.push_str(separator);
        }
        self.text.push_str(text);
        Ok(())
    }
}

/// Returns text with its runs of white space as one space each.
pub(super) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    add_words(&mut line, text);
    line.truncate(line.trim_end().len());
    line
}

/// Adds text with its runs of white space as one space each. A line break within Japanese or
/// Chinese text is no space there.
pub(super) fn add_words(to: &mut String, text: &str) {
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.trim_start_matches(is_space);
        let gap = &rest[..rest.len() - word.len()];
        let end = word.find(is_space).unwrap_or(word.len());
        let wide = |char: Option<char>| char.is_some_and(is_wide);
        let seamless =
            gap.contains('\n') && wide(to.chars().next_back()) && wide(word.chars().next());
        if !gap.is_empty() && !to.is_empty() && !to.ends_with(is_space) && !seamless {
            to.push(' ');
        }
        to.push_str(&word[..end]);
        rest = &word[end..];
    }
}

/// Matches white space that may be folded; no-break and ideographic spaces are content.
fn is_space(char: char) -> bool {
    char.is_ascii_whitespace()
}

/// Returns true if a character takes two columns, as those of Japanese and Chinese do.
pub(super) fn is_wide(char: char) -> bool {
    unicode_width::UnicodeWidthChar::width(char) == Some(2)
}

/// Escapes lines that look like headings.
fn escape_headings(text: &str) -> String {
    if !text.starts_with('#') && !text.contains("\n#") {
        return text.to_owned();
    }
    let shield = |line: &str| {
        if line.starts_with('#') { format!("\\{line}") } else { line.to_owned() }
    };
    text.lines().map(shield).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_stand_apart_and_items_together() {
        let mut page = MarkdownWriter::new(1000);
        page.heading(9, "A\n title").unwrap();
        page.paragraph("#1 is no heading").unwrap();
        page.item(1, "-", "one").unwrap();
        page.item(2, "2.", "two").unwrap();
        page.table(&[vec!["a|b".into(), "c".into()], vec!["1".into()]]).unwrap();
        page.code("\n  x\n").unwrap();
        assert_eq!(
            page.finish().unwrap(),
            "###### A title\n\n\\#1 is no heading\n\n- one\n  2. two\n\n\
             | a\\|b | c |\n| --- | --- |\n| 1 |  |\n\n```\n  x\n```\n"
        );
    }

    #[test]
    fn line_breaks_within_japanese_are_no_spaces() {
        assert_eq!(one_line(" 夜間に\n 処理 され\nnight\nrun "), "夜間に処理 され night run");
    }

    #[test]
    fn no_text_grows_past_its_limit() {
        let mut page = MarkdownWriter::new(10);
        page.paragraph("12345").unwrap();
        assert!(matches!(page.paragraph("12345"), Err(ReadError::TooMuchText { limit: 10 })));
    }
}
