//! Tables in text files: each row an object by its column names.

use serde_json::{Map, Value};

use super::{ReadError, kind};

/// Parses rows of CSV, TSV or JSON lines.
///
/// # Errors
/// If a row has not the header's number of cells, a line is no object, or there are no rows.
pub(super) fn read(
    text: &str,
    rows: kind::RowFormat,
) -> Result<Vec<Map<String, Value>>, ReadError> {
    let rows = match rows {
        kind::RowFormat::Comma => cells(text, separator(text))?,
        kind::RowFormat::Tab => cells(text, b'\t')?,
        kind::RowFormat::Json => objects(text)?,
    };
    if rows.is_empty() { Err(ReadError::Empty) } else { Ok(rows) }
}

fn cells(text: &str, separator: u8) -> Result<Vec<Map<String, Value>>, ReadError> {
    let mut reader =
        csv::ReaderBuilder::new().delimiter(separator).flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| ReadError::broken("CSV", error))?;
    let columns = names(header.iter().map(str::to_owned));
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| ReadError::broken("CSV", error))?;
        if record.len() != columns.len() {
            let line = record.position().map_or(0, csv::Position::line);
            let (cells, columns) = (record.len(), columns.len());
            return Err(ReadError::Ragged { line, cells, columns });
        }
        let row = columns.iter().cloned().zip(record.iter().map(Value::from));
        rows.push(row.collect());
    }
    Ok(rows)
}

/// Detects the separator in the header, outside its quotes: European spreadsheets use semicolons.
fn separator(text: &str) -> u8 {
    let mut quoted = false;
    let (mut commas, mut semicolons, mut tabs) = (0, 0, 0);
    for byte in text.bytes() {
        match byte {
            b'"' => quoted = !quoted,
            b'\n' if !quoted => break,
            b',' if !quoted => commas += 1,
            b';' if !quoted => semicolons += 1,
            b'\t' if !quoted => tabs += 1,
            _ => {}
        }
    }
    if semicolons > commas && semicolons >= tabs {
        b';'
    } else if tabs > commas {
        b'\t'
    } else {
        b','
    }
}

/// Makes column names distinct: the empty and the repeated ones get their number.
pub(super) fn names(header: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (n, name) in header.enumerate() {
        let name = name.trim();
        let name = match name {
            "" => format!("column {}", n + 1),
            name if seen.contains(name) => format!("{name} (column {})", n + 1),
            name => name.to_owned(),
        };
        seen.insert(name.clone());
        names.push(name);
    }
    names
}

fn objects(text: &str) -> Result<Vec<Map<String, Value>>, ReadError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let object = |(n, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| ReadError::NoObject { line: n + 1, what: error.to_string() })
    };
    lines.map(object).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_is_known_by_its_columns() {
        let rows = read("品名,数量,\n\"りんご, 青\",3,a\n", kind::RowFormat::Comma).unwrap();
        assert_eq!(json!(rows), json!([{"品名": "りんご, 青", "数量": "3", "column 3": "a"}]));
        let rows = read("a;b;a\n1,5;2;3\n", kind::RowFormat::Comma).unwrap();
        assert_eq!(json!(rows), json!([{"a": "1,5", "b": "2", "a (column 3)": "3"}]));
        let rows = read("a\tb\n1\t2\n", kind::RowFormat::Tab).unwrap();
        assert_eq!(json!(rows), json!([{"a": "1", "b": "2"}]));
        let rows = read("{\"a\": [1]}\n\n{\"b\": null}\n", kind::RowFormat::Json).unwrap();
        assert_eq!(json!(rows), json!([{"a": [1]}, {"b": null}]));
    }

    #[test]
    fn a_row_that_does_not_fit_is_told_with_its_line() {
        let told = read("a,b\n1,2\n1,2,3\n", kind::RowFormat::Comma).unwrap_err().to_string();
        assert!(told.starts_with("line 3 has 3 cells and the header 2"), "{told}");
        let told = read("{}\n[1]\n", kind::RowFormat::Json).unwrap_err().to_string();
        assert!(told.starts_with("line 2 is no JSON object"), "{told}");
        assert!(matches!(read("a,b\n", kind::RowFormat::Comma), Err(ReadError::Empty)));
    }
}
