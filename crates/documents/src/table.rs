//! Answer table of a night: a row for each document, or for each of its parts where they stand
//! alone.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;

use super::answer;
use super::error::NightRunError;
use super::recipe::Recipe;
use super::requests::{RequestKey, RequestState};
use super::run::NightRunner;
use super::schema::AnswerColumn;
use domain::build_feature::MissingFeatureError;
use domain::outcome::Outcome;
use report::results::table::{TableFormat, TableWriter};
use report::results::{AtomicFile, CellValue, ColumnKind, ResultsError};

/// Answers read together and held at a time.
const CHUNK: usize = 64;

/// Format of the file, by the extension of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerTableFormat {
    Jsonl,
    Table(TableFormat),
}

/// Reason why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("{}: its name must end in .csv, .parquet or .jsonl", .0.display())]
    Format(PathBuf),
    #[error(transparent)]
    Feature(#[from] MissingFeatureError),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error(transparent)]
    Conduct(#[from] NightRunError),
    #[error("can't write the table")]
    Write(#[from] io::Error),
}

/// State of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RowState {
    Answered,
    /// Asking again would be paid for nothing.
    Failed,
    /// The next night asks again.
    Unfinished,
    /// No request could be made.
    Unread,
}

impl RowState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
            Self::Unread => "unread",
        }
    }
}

/// A row of the table.
#[derive(Debug, Serialize)]
pub struct AnswerRow {
    pub document: String,
    /// From 1; absent where the answer is about the whole document.
    pub part: Option<u64>,
    pub parts: u64,
    /// Change since the night before: new, changed, same.
    pub standing: &'static str,
    pub state: RowState,
    pub error: Option<String>,
    /// Text, or with a schema JSON.
    pub answer: Option<Json>,
    /// Usage of the answer, whichever night requested it.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

impl AnswerTableFormat {
    /// # Errors
    /// If the name ends otherwise.
    pub fn of(path: &Path) -> Result<Self, TableError> {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("csv") => Ok(Self::Table(TableFormat::Csv)),
            Some("parquet") => Ok(Self::Table(TableFormat::parquet()?)),
            Some("jsonl") => Ok(Self::Jsonl),
            _ => Err(TableError::Format(path.to_owned())),
        }
    }
}

impl NightRunner<'_> {
    /// Writes the table, which appears under its name only when complete; calls `on_row` for every
    /// row. Records the usage of each answer for the ledger.
    ///
    /// # Errors
    /// If the store or the file fails.
    pub async fn write_table(
        &mut self,
        path: Option<&Path>,
        mut on_row: impl FnMut(&AnswerRow),
    ) -> Result<(), TableError> {
        let Some(path) = path else {
            return self.write_rows(&mut AnswerSink::<Vec<u8>>::None, &mut on_row).await;
        };
        let form = AnswerTableFormat::of(path)?;
        let mut target = AtomicFile::create(path)?;
        let mut sheet = AnswerSink::begin(&mut target.file, form, self.recipe)
            .map_err(|source| write_error(path, source))?;
        self.write_rows(&mut sheet, &mut on_row).await?;
        sheet.finish().map_err(|source| write_error(path, source))?;
        Ok(target.finish()?)
    }

    async fn write_rows<W: Write + Send>(
        &mut self,
        sheet: &mut AnswerSink<W>,
        on_row: &mut impl FnMut(&AnswerRow),
    ) -> Result<(), TableError> {
        for n in 0..self.documents.len() {
            for rows in self.rows(n).chunks(CHUNK) {
                for row in self.fill_answers(rows).await? {
                    on_row(&row);
                    sheet.add(&row)?;
                }
            }
        }
        Ok(())
    }

    /// Returns a document's rows, each with the request that its answer comes from.
    fn rows(&self, n: usize) -> Vec<(AnswerRow, Option<RequestKey>)> {
        let document = &self.documents[n];
        let row = |part: Option<u64>, state, error| AnswerRow {
            document: document.name.clone(),
            part,
            parts: document.parts.len() as u64,
            standing: document.change.as_str(),
            state,
            error,
            answer: None,
            prompt_tokens: 0,
            completion_tokens: 0,
        };
        if let Some(why) = &document.unread {
            return vec![(row(None, RowState::Unread, Some(why.clone())), None)];
        }
        let stands_alone = self.recipe.reduce.is_none() && document.parts.len() > 1;
        if stands_alone || document.level.len() == 1 {
            let keys = document.level.iter().enumerate();
            let keys = keys.map(|(n, key)| {
                let part = stands_alone.then_some(n as u64 + 1);
                let (by, state) = self.requests.state(key);
                let (ended, error) = row_state(state);
                (row(part, ended, error), (ended == RowState::Answered).then_some(by))
            });
            return keys.collect();
        }
        // Some answers to combine are missing: the first of them gives the reason.
        let (at, ended, error) = document
            .level
            .iter()
            .enumerate()
            .map(|(n, key)| (n, row_state(self.requests.state(key).1)))
            .find(|(_, (ended, _))| *ended != RowState::Answered)
            .map_or((0, RowState::Unfinished, None), |(n, (ended, error))| (n, ended, error));
        let which = if document.depth == 0 { "part" } else { "group of parts" };
        let error =
            error.map(|error| format!("{which} {} of {}: {error}", at + 1, document.level.len()));
        vec![(row(None, ended, error), None)]
    }

    /// Reads the answers of rows.
    async fn fill_answers(
        &mut self,
        rows: &[(AnswerRow, Option<RequestKey>)],
    ) -> Result<Vec<AnswerRow>, TableError> {
        let keys: Vec<_> = rows.iter().filter_map(|(_, key)| *key).collect();
        let mut outcomes = self.outcomes(&keys).await?.into_iter();
        let mut filled = Vec::with_capacity(rows.len());
        for (row, key) in rows {
            let mut row = AnswerRow {
                document: row.document.clone(),
                error: row.error.clone(),
                answer: None,
                ..*row
            };
            if let Some(key) = key {
                let outcome = outcomes.next().and_then(|(_, outcome)| outcome);
                self.read_answer(*key, outcome.as_ref(), &mut row);
            }
            filled.push(row);
        }
        Ok(filled)
    }

    fn read_answer(&mut self, key: RequestKey, outcome: Option<&Outcome>, row: &mut AnswerRow) {
        let Some(outcome) = outcome else {
            row.state = RowState::Unfinished;
            row.error = Some("its answer is gone from the store; the next night asks again".into());
            self.requests.set(&key, RequestState::Unfinished { why: "gone from the store".into() });
            return;
        };
        (row.prompt_tokens, row.completion_tokens) =
            (outcome.usage.prompt, outcome.usage.completion);
        let usage = Some(outcome.usage);
        let batch =
            super::ledger::batch_of(self.requests.state(&key).1).unwrap_or(self.batch_index);
        match answer::text(outcome) {
            Some(text) => {
                self.requests.set(&key, RequestState::Answered { batch, usage });
                let read = self.recipe.schema.as_ref().map(|_| serde_json::from_str(&text));
                row.answer = Some(read.and_then(Result::ok).unwrap_or(Json::String(text)));
            }
            None => {
                let why =
                    "the answer holds no text: it was refused, or its tokens were used up before";
                self.requests.set(&key, RequestState::Failed { batch, usage, why: why.into() });
                (row.state, row.error) = (RowState::Failed, Some(why.into()));
            }
        }
    }
}

fn row_state(state: &RequestState) -> (RowState, Option<String>) {
    match state {
        RequestState::Answered { .. } | RequestState::Repaired { .. } => (RowState::Answered, None),
        RequestState::Failed { why, .. } => (RowState::Failed, Some(why.to_string())),
        RequestState::Unfinished { why } => (RowState::Unfinished, Some(why.to_string())),
        RequestState::Open => (RowState::Unfinished, Some("it was not answered yet".into())),
    }
}

/// Destination of rows.
enum AnswerSink<W: Write + Send> {
    None,
    Jsonl(W),
    Table { table: TableWriter<W>, columns: Vec<AnswerColumn> },
}

impl<W: Write + Send> AnswerSink<W> {
    fn begin(to: W, form: AnswerTableFormat, recipe: &Recipe) -> io::Result<Self> {
        let format = match form {
            AnswerTableFormat::Jsonl => return Ok(Self::Jsonl(to)),
            AnswerTableFormat::Table(format) => format,
        };
        let columns = recipe.table_columns();
        let own = OWN_COLUMNS.map(|(name, kind)| (name.to_owned(), kind)).into_iter();
        let of_answers = columns.iter().map(|column| (column.name.clone(), column_kind(column)));
        let table = TableWriter::begin(to, format, own.chain(of_answers).collect())?;
        Ok(Self::Table { table, columns })
    }

    fn add(&mut self, row: &AnswerRow) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Jsonl(to) => {
                serde_json::to_writer(&mut *to, row)?;
                to.write_all(b"\n")
            }
            Self::Table { table, columns } => table.add(cells(row, columns)),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Jsonl(mut to) => to.flush(),
            Self::Table { table, .. } => table.finish(),
        }
    }
}

/// Columns of every table, before those of the answers.
const OWN_COLUMNS: [(&str, ColumnKind); 9] = [
    ("document", ColumnKind::Text),
    ("part", ColumnKind::Number),
    ("parts", ColumnKind::Number),
    ("standing", ColumnKind::Text),
    ("state", ColumnKind::Text),
    ("error", ColumnKind::Text),
    ("prompt_tokens", ColumnKind::Number),
    ("completion_tokens", ColumnKind::Number),
    ("answer", ColumnKind::Text),
];

fn cells(row: &AnswerRow, columns: &[AnswerColumn]) -> Vec<CellValue> {
    let number = |n: u64| CellValue::Number(i64::try_from(n).ok());
    let mut cells = vec![
        CellValue::Text(Some(row.document.clone())),
        CellValue::Number(row.part.and_then(|n| i64::try_from(n).ok())),
        number(row.parts),
        CellValue::Text(Some(row.standing.into())),
        CellValue::Text(Some(row.state.as_str().into())),
        CellValue::Text(row.error.clone()),
        number(row.prompt_tokens),
        number(row.completion_tokens),
        CellValue::Text(row.answer.as_ref().map(text)),
    ];
    let answer = row.answer.as_ref();
    cells.extend(columns.iter().map(|column| {
        let found = answer.and_then(|answer| answer.pointer(&column.pointer));
        cell(column_kind(column), found.filter(|value| !value.is_null()))
    }));
    cells
}

/// Returns the kind of a column's values, by their type in the schema.
fn column_kind(column: &AnswerColumn) -> ColumnKind {
    match column.json_type.as_deref() {
        Some("integer") => ColumnKind::Number,
        Some("number") => ColumnKind::Float,
        Some("boolean") => ColumnKind::Bool,
        _ => ColumnKind::Text,
    }
}

fn cell(kind: ColumnKind, value: Option<&Json>) -> CellValue {
    match kind {
        ColumnKind::Text => CellValue::Text(value.map(text)),
        ColumnKind::Number => CellValue::Number(value.and_then(Json::as_i64)),
        ColumnKind::Float => CellValue::Float(value.and_then(Json::as_f64)),
        ColumnKind::Bool => CellValue::Bool(value.and_then(Json::as_bool)),
    }
}

/// Returns a string as it is, any other value as its JSON.
fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn write_error(path: &Path, source: io::Error) -> TableError {
    ResultsError::Write { path: path.to_owned(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_name_says_what_kind_of_file() {
        let csv = AnswerTableFormat::Table(TableFormat::Csv);
        assert_eq!(AnswerTableFormat::of(Path::new("a/b.CSV")).unwrap(), csv);
        assert_eq!(AnswerTableFormat::of(Path::new("b.jsonl")).unwrap(), AnswerTableFormat::Jsonl);
        assert!(
            AnswerTableFormat::of(Path::new("b.xlsx"))
                .unwrap_err()
                .to_string()
                .contains(".parquet")
        );
    }

    #[test]
    fn columns_are_taken_out_of_the_answer_by_their_types() {
        let column = |name: &str, at: &str, of: &str| AnswerColumn {
            name: name.into(),
            pointer: at.into(),
            json_type: Some(of.into()),
        };
        let columns = [
            column("total", "/total/amount", "number"),
            column("items", "/items", "array"),
            column("paid", "/paid", "boolean"),
            column("count", "/count", "integer"),
        ];
        let row = AnswerRow {
            document: "d".into(),
            part: None,
            parts: 1,
            standing: "new",
            state: RowState::Answered,
            error: None,
            answer: Some(json!({"total": {"amount": 7}, "items": ["a"], "paid": null, "count": 3})),
            prompt_tokens: 5,
            completion_tokens: 3,
        };
        let cells = cells(&row, &columns);
        let expected = [
            CellValue::Float(Some(7.0)),
            CellValue::Text(Some("[\"a\"]".into())),
            CellValue::Bool(None),
            CellValue::Number(Some(3)),
        ];
        assert_eq!(cells[OWN_COLUMNS.len()..], expected);
    }
}
