//! Tables as aligned text for people, and as CSV for spreadsheets.

use unicode_width::UnicodeWidthStr;

/// Aligns columns: the first `texts` of them to the left, numbers to the right.
pub(super) fn aligned(rows: &[Vec<String>], texts: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |n: usize| {
        rows.iter().filter_map(|row| row.get(n)).map(|cell| display_width(cell)).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(n, cell)| {
            let space = " ".repeat(widths[n].saturating_sub(display_width(cell)));
            if n < texts { format!("{cell}{space}") } else { format!("{space}{cell}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// Returns the width on a terminal, where Chinese, Japanese and Korean characters take two columns.
fn display_width(text: &str) -> usize {
    text.width()
}

/// Formats rows as CSV by RFC 4180.
pub(super) fn csv(rows: &[Vec<String>]) -> String {
    let mut writer =
        csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(vec![]);
    for row in rows {
        // Writing to memory can't fail, and all rows are equally long.
        let _ = writer.write_record(row);
    }
    writer.into_inner().ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn wide_characters_keep_the_columns_in_line() {
        let rows = rows(&[&["team", "jobs"], &["東京", "12"], &["a", "3"]]);
        assert_eq!(aligned(&rows, 1), "team  jobs\n東京    12\na        3\n");
    }

    #[test]
    fn cells_with_commas_and_quotes_are_quoted() {
        assert_eq!(csv(&rows(&[&["a,b", "say \"c\""]])), "\"a,b\",\"say \"\"c\"\"\"\r\n");
    }
}
