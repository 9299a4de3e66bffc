//! Columns of CSV and Parquet files: one outcome is one row.

use serde::Deserialize;
use serde_json::value::RawValue;

use domain::outcome::Outcome;

/// Value of one cell.
#[derive(Debug, Clone, PartialEq)]
pub enum CellValue {
    Text(Option<String>),
    Number(Option<i64>),
    Float(Option<f64>),
    Bool(Option<bool>),
}

/// Type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    Text,
    Number,
    Float,
    Bool,
}

type CellReader = fn(&Outcome) -> CellValue;

/// Names, types and readers of the columns, in order.
pub(super) const COLUMNS: [(&str, ColumnKind, CellReader); 23] = [
    ("batch_id", ColumnKind::Text, |o| text(o.batch_id.as_str())),
    ("custom_id", ColumnKind::Text, |o| text(&o.custom_id)),
    ("position", ColumnKind::Number, |o| number(o.position)),
    ("ending", ColumnKind::Text, |o| text(o.ending.as_str())),
    ("answer", ColumnKind::Text, |o| CellValue::Text(o.body.as_deref().and_then(answer))),
    ("error_code", ColumnKind::Text, |o| {
        CellValue::Text(o.failure.as_ref().map(|f| f.code.clone()))
    }),
    ("error_message", ColumnKind::Text, |o| {
        CellValue::Text(o.failure.as_ref().map(|f| f.message.clone()))
    }),
    ("model", ColumnKind::Text, |o| text(&o.model)),
    ("deployment", ColumnKind::Text, |o| text(&o.deployment)),
    ("prompt_tokens", ColumnKind::Number, |o| number(o.usage.prompt)),
    ("cached_tokens", ColumnKind::Number, |o| number(o.usage.cached)),
    ("completion_tokens", ColumnKind::Number, |o| number(o.usage.completion)),
    ("reasoning_tokens", ColumnKind::Number, |o| number(o.usage.reasoning)),
    ("attempts", ColumnKind::Number, |o| number(o.attempts.into())),
    ("latency_ms", ColumnKind::Number, |o| number(o.latency_ms)),
    ("finished_at", ColumnKind::Text, |o| text(&o.finished_at.to_string())),
    ("status_code", ColumnKind::Number, |o| CellValue::Number(o.status_code.map(i64::from))),
    ("request_id", ColumnKind::Text, |o| CellValue::Text(o.request_id.clone())),
    ("metadata", ColumnKind::Text, |o| CellValue::Text(o.metadata.as_deref().map(Into::into))),
    ("body", ColumnKind::Text, |o| {
        CellValue::Text(o.body.as_deref().map(|body| String::from_utf8_lossy(body).into_owned()))
    }),
    ("finish", ColumnKind::Text, |o| {
        CellValue::Text(o.finish.map(|finish| finish.as_str().into()))
    }),
    ("unreported", ColumnKind::Number, |o| number(o.usage.unreported)),
    ("flaw", ColumnKind::Text, |o| CellValue::Text(o.flaw.map(|flaw| flaw.as_str().into()))),
];

/// Returns the names and types of [`COLUMNS`].
pub(super) fn header() -> Vec<(String, ColumnKind)> {
    COLUMNS.map(|(name, kind, _)| (name.to_owned(), kind)).to_vec()
}

/// Returns an outcome's cells.
pub(super) fn row(outcome: &Outcome) -> Vec<CellValue> {
    COLUMNS.map(|(_, _, cell)| cell(outcome)).to_vec()
}

impl CellValue {
    /// Formats the value for a text file; absent ones are empty.
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text.unwrap_or_default(),
            Self::Number(number) => number.map(|n| n.to_string()).unwrap_or_default(),
            Self::Float(number) => number.map(|n| n.to_string()).unwrap_or_default(),
            Self::Bool(truth) => truth.map(|t| t.to_string()).unwrap_or_default(),
        }
    }

    /// Returns roughly the bytes it holds in memory.
    #[cfg(feature = "parquet")]
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(Some(text)) => text.len(),
            _ => 8,
        }
    }
}

impl From<CellValue> for String {
    fn from(value: CellValue) -> Self {
        value.into_text()
    }
}

fn text(text: &str) -> CellValue {
    CellValue::Text(Some(text.to_owned()))
}

fn number(number: u64) -> CellValue {
    CellValue::Number(i64::try_from(number).ok())
}

/// Returns the text of a chat (first choice) or Responses answer; `None` if there is no text.
pub fn answer(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct ResultBody<'a> {
        #[serde(borrow, default)]
        choices: Option<Vec<ResultChoice<'a>>>,
        #[serde(borrow, default)]
        output: Option<Vec<ResultItem<'a>>>,
    }
    #[derive(Deserialize)]
    struct ResultChoice<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct ResultMessage {
        content: Option<String>,
    }
    #[derive(Deserialize)]
    struct ResultItem<'a> {
        #[serde(borrow, default)]
        content: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct ResultPart {
        #[serde(default)]
        text: Option<String>,
    }
    let body: ResultBody<'_> = serde_json::from_slice(body).ok()?;
    if let Some(choice) = body.choices.iter().flatten().next() {
        return serde_json::from_str::<ResultMessage>(choice.message.get()).ok()?.content;
    }
    let contents = body.output?.into_iter().filter_map(|item| item.content);
    let parts = contents.filter_map(|raw| serde_json::from_str::<Vec<ResultPart>>(raw.get()).ok());
    let texts: Vec<_> = parts.flatten().filter_map(|part| part.text).collect();
    (!texts.is_empty()).then(|| texts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_text_of_either_api() {
        let chat = r#"{"choices":[{"message":{"role":"assistant","content":"はい"}},{"message":{"content":"2"}}]}"#;
        assert_eq!(answer(chat.as_bytes()).as_deref(), Some("はい"));
        let responses = r#"{"output":[{"type":"reasoning","summary":[]},
            {"type":"message","content":[{"type":"output_text","text":"a"},{"type":"output_text","text":"b"}]}]}"#;
        assert_eq!(answer(responses.as_bytes()).as_deref(), Some("ab"));
        let tool = r#"{"choices":[{"message":{"content":null,"tool_calls":[]}}]}"#;
        for none in [tool, r#"{"data":[{"embedding":[0.1]}]}"#, "[]", "no JSON"] {
            assert_eq!(answer(none.as_bytes()), None, "{none}");
        }
    }
}
