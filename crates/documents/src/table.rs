//! A night's answers as one table: a row for each document, or for each of its parts where they stand
//! alone.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value as Json;

use super::answer;
use super::asks::{Key, State};
use super::conduct::{ConductError, Conductor};
use super::recipe::Recipe;
use super::schema::Column;
use domain::outcome::Outcome;
use report::results::table::{Format, Table};
use report::results::{Kind, ResultsError, Target, Value};

/// Answers that are read together and held at a time.
const CHUNK: usize = 64;

/// What kind of file, by the ending of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Csv,
    Parquet,
    Jsonl,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("{}: its name must end in .csv, .parquet or .jsonl", .0.display())]
    Form(PathBuf),
    #[error(transparent)]
    Results(#[from] ResultsError),
    #[error(transparent)]
    Conduct(#[from] ConductError),
    #[error("can't write the table")]
    Write(#[from] io::Error),
}

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    Answered,
    /// Asking again would be paid for nothing.
    Failed,
    /// The next night asks again.
    Unfinished,
    /// Nothing could be asked.
    Unread,
}

impl Ended {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
            Self::Unread => "unread",
        }
    }
}

/// A row.
#[derive(Debug, Serialize)]
pub struct Row {
    pub document: String,
    /// From 1; absent where the answer is about the whole document.
    pub part: Option<u64>,
    pub parts: u64,
    /// Beside the night before: new, changed, same.
    pub standing: &'static str,
    pub state: Ended,
    pub error: Option<String>,
    /// As text, or with a schema as JSON.
    pub answer: Option<Json>,
    /// What the answer cost, whichever night asked for it.
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

impl Form {
    /// # Errors
    /// If the name ends otherwise.
    pub fn of(path: &Path) -> Result<Self, TableError> {
        let extension = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            Some("jsonl") => Ok(Self::Jsonl),
            _ => Err(TableError::Form(path.to_owned())),
        }
    }
}

impl Conductor<'_> {
    /// Writes the table, which appears whole, under its name, at the end; `seen` gets every row. What
    /// an answer cost is taken down for the ledger on the way.
    ///
    /// # Errors
    /// If the store or the file fails.
    pub async fn write_table(
        &mut self,
        path: Option<&Path>,
        mut seen: impl FnMut(&Row),
    ) -> Result<(), TableError> {
        let Some(path) = path else {
            return self.write_rows(&mut Sheet::<Vec<u8>>::None, &mut seen).await;
        };
        let form = Form::of(path)?;
        let mut target = Target::create(path)?;
        let mut sheet = Sheet::begin(&mut target.file, form, self.recipe)
            .map_err(|source| written_to(path, source))?;
        self.write_rows(&mut sheet, &mut seen).await?;
        sheet.finish().map_err(|source| written_to(path, source))?;
        Ok(target.finish()?)
    }

    async fn write_rows<W: Write + Send>(
        &mut self,
        sheet: &mut Sheet<W>,
        seen: &mut impl FnMut(&Row),
    ) -> Result<(), TableError> {
        for n in 0..self.documents.len() {
            for rows in self.rows(n).chunks(CHUNK) {
                for row in self.fill(rows).await? {
                    seen(&row);
                    sheet.add(&row)?;
                }
            }
        }
        Ok(())
    }

    /// A document's rows, each with the request that its answer comes from.
    fn rows(&self, n: usize) -> Vec<(Row, Option<Key>)> {
        let document = &self.documents[n];
        let row = |part: Option<u64>, state, error| Row {
            document: document.name.clone(),
            part,
            parts: document.parts.len() as u64,
            standing: document.standing.as_str(),
            state,
            error,
            answer: None,
            prompt_tokens: 0,
            completion_tokens: 0,
        };
        if let Some(why) = &document.unread {
            return vec![(row(None, Ended::Unread, Some(why.clone())), None)];
        }
        let stands_alone = self.recipe.reduce.is_none() && document.parts.len() > 1;
        if stands_alone || document.level.len() == 1 {
            let keys = document.level.iter().enumerate();
            let keys = keys.map(|(n, key)| {
                let part = stands_alone.then_some(n as u64 + 1);
                let (by, state) = self.asks.state(key);
                let (ended, error) = ending(state);
                (row(part, ended, error), (ended == Ended::Answered).then_some(by))
            });
            return keys.collect();
        }
        // What is to be combined is not all there: the first that lacks says why.
        let (at, ended, error) = document
            .level
            .iter()
            .enumerate()
            .map(|(n, key)| (n, ending(self.asks.state(key).1)))
            .find(|(_, (ended, _))| *ended != Ended::Answered)
            .map_or((0, Ended::Unfinished, None), |(n, (ended, error))| (n, ended, error));
        let which = if document.depth == 0 { "part" } else { "group of parts" };
        let error =
            error.map(|error| format!("{which} {} of {}: {error}", at + 1, document.level.len()));
        vec![(row(None, ended, error), None)]
    }

    /// Reads the answers of rows.
    async fn fill(&mut self, rows: &[(Row, Option<Key>)]) -> Result<Vec<Row>, TableError> {
        let keys: Vec<_> = rows.iter().filter_map(|(_, key)| *key).collect();
        let mut outcomes = self.outcomes(&keys).await?.into_iter();
        let mut filled = Vec::with_capacity(rows.len());
        for (row, key) in rows {
            let mut row = Row {
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

    fn read_answer(&mut self, key: Key, outcome: Option<&Outcome>, row: &mut Row) {
        let Some(outcome) = outcome else {
            row.state = Ended::Unfinished;
            row.error = Some("its answer is gone from the store; the next night asks again".into());
            self.asks.set(&key, State::Unfinished { why: "gone from the store".into() });
            return;
        };
        (row.prompt_tokens, row.completion_tokens) =
            (outcome.usage.prompt, outcome.usage.completion);
        let usage = Some(outcome.usage);
        let batch = super::ledger::batch_of(self.asks.state(&key).1).unwrap_or(self.tonight);
        match answer::text(outcome) {
            Some(text) => {
                self.asks.set(&key, State::Answered { batch, usage });
                let read = self.recipe.schema.as_ref().map(|_| serde_json::from_str(&text));
                row.answer = Some(read.and_then(Result::ok).unwrap_or(Json::String(text)));
            }
            None => {
                let why =
                    "the answer holds no text: it was refused, or its tokens were used up before";
                self.asks.set(&key, State::Failed { batch, usage, why: why.into() });
                (row.state, row.error) = (Ended::Failed, Some(why.into()));
            }
        }
    }
}

fn ending(state: &State) -> (Ended, Option<String>) {
    match state {
        State::Answered { .. } | State::Repaired { .. } => (Ended::Answered, None),
        State::Failed { why, .. } => (Ended::Failed, Some(why.to_string())),
        State::Unfinished { why } => (Ended::Unfinished, Some(why.to_string())),
        State::Open => (Ended::Unfinished, Some("it was not answered yet".into())),
    }
}

/// Where rows go.
enum Sheet<W: Write + Send> {
    None,
    Jsonl(W),
    Table { table: Table<W>, columns: Vec<Column> },
}

impl<W: Write + Send> Sheet<W> {
    fn begin(to: W, form: Form, recipe: &Recipe) -> io::Result<Self> {
        let format = match form {
            Form::Jsonl => return Ok(Self::Jsonl(to)),
            Form::Csv => Format::Csv,
            Form::Parquet => Format::Parquet,
        };
        let columns = recipe.table_columns();
        let own = OWN_COLUMNS.map(|(name, kind)| (name.to_owned(), kind)).into_iter();
        let of_answers = columns.iter().map(|column| (column.name.clone(), kind(column)));
        let table = Table::begin(to, format, own.chain(of_answers).collect())?;
        Ok(Self::Table { table, columns })
    }

    fn add(&mut self, row: &Row) -> io::Result<()> {
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

/// What stands in every table, before the columns of the answers.
const OWN_COLUMNS: [(&str, Kind); 9] = [
    ("document", Kind::Text),
    ("part", Kind::Number),
    ("parts", Kind::Number),
    ("standing", Kind::Text),
    ("state", Kind::Text),
    ("error", Kind::Text),
    ("prompt_tokens", Kind::Number),
    ("completion_tokens", Kind::Number),
    ("answer", Kind::Text),
];

fn cells(row: &Row, columns: &[Column]) -> Vec<Value> {
    let number = |n: u64| Value::Number(i64::try_from(n).ok());
    let mut cells = vec![
        Value::Text(Some(row.document.clone())),
        Value::Number(row.part.and_then(|n| i64::try_from(n).ok())),
        number(row.parts),
        Value::Text(Some(row.standing.into())),
        Value::Text(Some(row.state.as_str().into())),
        Value::Text(row.error.clone()),
        number(row.prompt_tokens),
        number(row.completion_tokens),
        Value::Text(row.answer.as_ref().map(text)),
    ];
    let answer = row.answer.as_ref();
    cells.extend(columns.iter().map(|column| {
        let found = answer.and_then(|answer| answer.pointer(&column.at));
        cell(kind(column), found.filter(|value| !value.is_null()))
    }));
    cells
}

/// What a column holds, by the schema's type of it.
fn kind(column: &Column) -> Kind {
    match column.of.as_deref() {
        Some("integer") => Kind::Number,
        Some("number") => Kind::Float,
        Some("boolean") => Kind::Truth,
        _ => Kind::Text,
    }
}

fn cell(kind: Kind, value: Option<&Json>) -> Value {
    match kind {
        Kind::Text => Value::Text(value.map(text)),
        Kind::Number => Value::Number(value.and_then(Json::as_i64)),
        Kind::Float => Value::Float(value.and_then(Json::as_f64)),
        Kind::Truth => Value::Truth(value.and_then(Json::as_bool)),
    }
}

/// A text as it is, all else as its JSON.
fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn written_to(path: &Path, source: io::Error) -> TableError {
    ResultsError::Write { path: path.to_owned(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_name_says_what_kind_of_file() {
        assert_eq!(Form::of(Path::new("a/b.CSV")).unwrap(), Form::Csv);
        assert_eq!(Form::of(Path::new("b.jsonl")).unwrap(), Form::Jsonl);
        assert!(Form::of(Path::new("b.xlsx")).unwrap_err().to_string().contains(".parquet"));
    }

    #[test]
    fn columns_are_taken_out_of_the_answer_by_their_types() {
        let column = |name: &str, at: &str, of: &str| Column {
            name: name.into(),
            at: at.into(),
            of: Some(of.into()),
        };
        let columns = [
            column("total", "/total/amount", "number"),
            column("items", "/items", "array"),
            column("paid", "/paid", "boolean"),
            column("count", "/count", "integer"),
        ];
        let row = Row {
            document: "d".into(),
            part: None,
            parts: 1,
            standing: "new",
            state: Ended::Answered,
            error: None,
            answer: Some(json!({"total": {"amount": 7}, "items": ["a"], "paid": null, "count": 3})),
            prompt_tokens: 5,
            completion_tokens: 3,
        };
        let cells = cells(&row, &columns);
        let expected = [
            Value::Float(Some(7.0)),
            Value::Text(Some("[\"a\"]".into())),
            Value::Truth(None),
            Value::Number(Some(3)),
        ];
        assert_eq!(cells[OWN_COLUMNS.len()..], expected);
    }
}
