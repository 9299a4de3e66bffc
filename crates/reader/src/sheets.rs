//! Spreadsheets: XLSX, XLSB, XLS and ODS.
//!
//! One sheet whose first row names its columns becomes rows, as a CSV file would. Anything else
//! becomes Markdown: a heading and a table for each sheet. Cells are taken one by one where the
//! format allows, since two cells far apart would otherwise make a rectangle of billions.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read, Seek};

use calamine::{
    Data, ExcelDateTime, Reader, Sheet, SheetType, SheetVisible, Sheets, XlsError, Xlsx,
    open_workbook_auto_from_rs,
};
use serde_json::{Map, Value};

use super::markdown::MarkdownWriter;
use super::package::OfficePackage;
use super::rows::names;
use super::{Document, DocumentContent, ReadError, ReadLimits};

/// Reads a workbook in a zip archive.
///
/// # Errors
/// If it is broken, unpacks too far, or has nothing in it or too much.
pub(super) fn read_package(
    mut package: OfficePackage,
    limits: &ReadLimits,
) -> Result<Document, ReadError> {
    let mut about = Document::text("sheets", String::new(), true);
    package.read_properties(&mut about)?;
    let mut document = read(package.verified()?, limits)?;
    for (name, value) in about.metadata {
        document.metadata.entry(name).or_insert(value);
    }
    Ok(document)
}

/// Reads a workbook in the older container, or reports what the container holds instead.
///
/// # Errors
/// If it is broken, protected, no workbook, or has nothing in it or too much.
pub(super) fn read_container(bytes: Vec<u8>, limits: &ReadLimits) -> Result<Document, ReadError> {
    let holds = |stream: &str| {
        let name: Vec<u8> = stream.encode_utf16().flat_map(u16::to_le_bytes).collect();
        memchr::memmem::find(&bytes, &name).is_some()
    };
    let unsupported = |kind: &str, hint: &str| {
        Err(ReadError::Unsupported { kind: kind.into(), hint: hint.into() })
    };
    // Office puts a whole DOCX, XLSX or PPTX in here when it has a password (MS-OFFCRYPTO, 2.3).
    if holds("EncryptedPackage") {
        return Err(ReadError::Encrypted);
    }
    if holds("WordDocument") {
        return unsupported("a Word document older than DOCX", "save it as DOCX");
    }
    if holds("PowerPoint Document") {
        return unsupported("a presentation older than PPTX", "save it as PPTX");
    }
    if holds("__substg1.0_") {
        return unsupported("an Outlook message (MSG)", "save it as EML");
    }
    read(Cursor::new(bytes), limits)
}

fn read<R: Read + Seek + Clone>(file: R, limits: &ReadLimits) -> Result<Document, ReadError> {
    let mut book = open_workbook_auto_from_rs(file).map_err(broken)?;
    let all = book.sheets_metadata().to_vec();
    let mut sheets = Vec::new();
    // Hidden sheets, such as the choices for a column, are not meant as part of the document.
    let shown = |sheet: &&Sheet| {
        sheet.typ == SheetType::WorkSheet && sheet.visible == SheetVisible::Visible
    };
    for sheet in all.iter().filter(shown) {
        let cells = match &mut book {
            Sheets::Xlsx(book) => one_by_one(book, &sheet.name, limits)?,
            _ => all_at_once(&mut book, &sheet.name, limits)?,
        };
        sheets.push((sheet.name.clone(), cells));
    }
    let titles: Vec<&str> = sheets.iter().map(|(name, _)| name.as_str()).collect();
    let titles = Value::from(titles);
    let filled: Vec<_> = sheets.into_iter().filter(|(_, cells)| !cells.is_empty()).collect();
    let content = match filled.as_slice() {
        [] => return Err(ReadError::Empty),
        [(_, cells)] if let Some(rows) = rows(cells) => DocumentContent::Rows(rows),
        sheets => DocumentContent::Text { text: tables(sheets, limits)?, markdown: true },
    };
    let mut document = Document::new("sheets", content);
    document.set_metadata("sheets", titles);
    Ok(document)
}

fn broken(error: calamine::Error) -> ReadError {
    match error {
        calamine::Error::Xls(XlsError::Password) => ReadError::Encrypted,
        calamine::Error::Xlsx(calamine::XlsxError::Password)
        | calamine::Error::Ods(calamine::OdsError::Password) => ReadError::Encrypted,
        error => ReadError::broken("workbook", error),
    }
}

/// Cells of a sheet, by row and column.
type SheetCells = BTreeMap<u32, BTreeMap<u32, Value>>;

/// Counts the text it collects: a workbook may point to one long text from a million cells.
struct CellCollector {
    cells: SheetCells,
    left: u64,
    limit: u64,
}

impl CellCollector {
    fn new(limits: &ReadLimits) -> Self {
        Self { cells: SheetCells::new(), left: limits.text_bytes, limit: limits.text_bytes }
    }

    fn add(&mut self, row: u32, column: u32, value: Value) -> Result<(), ReadError> {
        let size = match &value {
            Value::Null => return Ok(()),
            Value::String(text) if text.trim().is_empty() => return Ok(()),
            Value::String(text) => text.len() as u64,
            _ => 8,
        };
        self.left =
            self.left.checked_sub(size).ok_or(ReadError::TooMuchText { limit: self.limit })?;
        self.cells.entry(row).or_default().insert(column, value);
        Ok(())
    }
}

fn one_by_one<R: Read + Seek>(
    book: &mut Xlsx<R>,
    sheet: &str,
    limits: &ReadLimits,
) -> Result<SheetCells, ReadError> {
    let failed = |error: calamine::XlsxError| broken(error.into());
    let mut reader = book.worksheet_cells_reader(sheet).map_err(failed)?;
    let mut collector = CellCollector::new(limits);
    while let Some(cell) = reader.next_cell().map_err(failed)? {
        let (row, column) = cell.get_position();
        collector.add(row, column, value(cell.get_value().clone().into()))?;
    }
    Ok(collector.cells)
}

fn all_at_once<R: Read + Seek>(
    book: &mut Sheets<R>,
    sheet: &str,
    limits: &ReadLimits,
) -> Result<SheetCells, ReadError> {
    let range = book.worksheet_range(sheet).map_err(broken)?;
    let (top, left) = range.start().unwrap_or_default();
    let mut collector = CellCollector::new(limits);
    for (row, column, data) in range.used_cells() {
        // A sheet has at most 2^20 rows, so the positions fit.
        let place = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        collector.add(
            top.saturating_add(place(row)),
            left.saturating_add(place(column)),
            value(data.clone()),
        )?;
    }
    Ok(collector.cells)
}

fn value(data: Data) -> Value {
    match data {
        Data::Int(number) => number.into(),
        // Workbooks store whole numbers as floats; nobody means 3.0 by a 3.
        Data::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
            (number as i64).into()
        }
        Data::Float(number) => number.into(),
        Data::String(text) | Data::DateTimeIso(text) | Data::DurationIso(text) => text.into(),
        Data::Bool(yes) => yes.into(),
        Data::DateTime(time) => date_time(&time).into(),
        Data::Error(error) => error.to_string().into(),
        Data::Empty => Value::Null,
    }
}

/// Formats a date, a date and time, or for less than a day a time.
fn date_time(time: &ExcelDateTime) -> String {
    if time.is_duration() {
        let minutes = (time.as_f64() * 24.0 * 60.0).round();
        return format!("{}:{:02}", (minutes / 60.0).floor(), minutes.rem_euclid(60.0));
    }
    let (year, month, day, hour, minute, second, _) = time.to_ymd_hms_milli();
    let date = format!("{year:04}-{month:02}-{day:02}");
    let clock = format!("{hour:02}:{minute:02}:{second:02}");
    if time.as_f64() < 1.0 {
        clock
    } else if clock == "00:00:00" {
        date
    } else {
        format!("{date} {clock}")
    }
}

/// Returns rows by the names in the first row, if it has nothing but different texts, more than
/// one, and none of the others goes beyond it.
fn rows(cells: &SheetCells) -> Option<Vec<Map<String, Value>>> {
    let mut lines = cells.values();
    let header = lines.next()?;
    let mut texts = BTreeSet::new();
    let named = header.values().all(|name| name.as_str().is_some_and(|name| texts.insert(name)));
    let within = lines.clone().all(|row| row.keys().all(|column| header.contains_key(column)));
    if !named || !within || header.len() < 2 || cells.len() < 2 {
        return None;
    }
    let columns = names(header.values().map(|name| name.as_str().unwrap_or_default().to_owned()));
    let row = |cells: &BTreeMap<u32, Value>| {
        let cell = |column| cells.get(column).cloned().unwrap_or(Value::Null);
        columns.iter().cloned().zip(header.keys().map(cell)).collect()
    };
    Some(lines.map(row).collect())
}

fn tables(sheets: &[(String, SheetCells)], limits: &ReadLimits) -> Result<String, ReadError> {
    let mut out = MarkdownWriter::new(limits.text_bytes);
    for (name, cells) in sheets {
        out.heading(2, name)?;
        let used: BTreeSet<u32> = cells.values().flat_map(|row| row.keys().copied()).collect();
        // Each row is as wide as the widest: checked before the rows are made.
        let size = (used.len() as u64).saturating_mul(cells.len() as u64).saturating_mul(3);
        if size > limits.text_bytes {
            return Err(ReadError::TooMuchText { limit: limits.text_bytes });
        }
        let text = |value: Option<&Value>| match value {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        };
        let row =
            |row: &BTreeMap<u32, Value>| used.iter().map(|column| text(row.get(column))).collect();
        let rows: Vec<Vec<String>> = cells.values().map(row).collect();
        out.table(&rows)?;
    }
    out.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cells(rows: &[&[Value]]) -> SheetCells {
        let mut kept = CellCollector::new(&ReadLimits::default());
        for (n, row) in (0..).zip(rows) {
            for (m, value) in (0..).zip(row.iter()) {
                kept.add(n, m, value.clone()).unwrap();
            }
        }
        kept.cells
    }

    #[test]
    fn a_sheet_with_named_columns_is_rows_and_any_other_a_table() {
        let named = cells(&[&[json!("a"), json!("b")], &[json!(1), Value::Null]]);
        assert_eq!(json!(rows(&named)), json!([{"a": 1, "b": null}]));
        for other in [
            cells(&[&[json!("Costs")], &[json!("a"), json!("b")], &[json!(1), json!(2)]]),
            cells(&[&[json!("a"), json!("a")], &[json!(1), json!(2)]]),
            cells(&[&[json!("a"), json!(7)], &[json!(1), json!(2)]]),
        ] {
            assert_eq!(rows(&other), None);
        }
    }

    #[test]
    fn a_text_that_many_cells_share_counts_as_often_as_it_is_shown() {
        let mut kept = CellCollector::new(&ReadLimits { text_bytes: 10, ..ReadLimits::default() });
        kept.add(0, 0, json!("12345")).unwrap();
        assert!(kept.add(0, 1, json!("123456")).is_err());
    }

    #[test]
    fn numbers_and_dates_are_written_as_people_do() {
        assert_eq!(value(Data::Float(3.0)), json!(3));
        assert_eq!(value(Data::Float(2.5)), json!(2.5));
    }
}
