//! An outcome as a row: the columns of CSV and Parquet files.

use serde::Deserialize;
use serde_json::value::RawValue;

use domain::outcome::Outcome;

/// A cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(Option<String>),
    Number(Option<i64>),
    Float(Option<f64>),
    Truth(Option<bool>),
}

/// What every cell of a column is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    Float,
    Truth,
}

type Cell = fn(&Outcome) -> Value;

/// The columns' names, kinds and what stands in them, in their order.
pub(super) const COLUMNS: [(&str, Kind, Cell); 20] = [
    ("batch_id", Kind::Text, |o| text(o.batch_id.as_str())),
    ("custom_id", Kind::Text, |o| text(&o.custom_id)),
    ("position", Kind::Number, |o| number(o.position)),
    ("ending", Kind::Text, |o| text(o.ending.as_str())),
    ("answer", Kind::Text, |o| Value::Text(o.body.as_deref().and_then(answer))),
    ("error_code", Kind::Text, |o| Value::Text(o.failure.as_ref().map(|f| f.code.clone()))),
    ("error_message", Kind::Text, |o| Value::Text(o.failure.as_ref().map(|f| f.message.clone()))),
    ("model", Kind::Text, |o| text(&o.model)),
    ("deployment", Kind::Text, |o| text(&o.deployment)),
    ("prompt_tokens", Kind::Number, |o| number(o.usage.prompt)),
    ("cached_tokens", Kind::Number, |o| number(o.usage.cached)),
    ("completion_tokens", Kind::Number, |o| number(o.usage.completion)),
    ("reasoning_tokens", Kind::Number, |o| number(o.usage.reasoning)),
    ("attempts", Kind::Number, |o| number(o.attempts.into())),
    ("latency_ms", Kind::Number, |o| number(o.latency_ms)),
    ("finished_at", Kind::Text, |o| text(&o.finished_at.to_string())),
    ("status_code", Kind::Number, |o| Value::Number(o.status_code.map(i64::from))),
    ("request_id", Kind::Text, |o| Value::Text(o.request_id.clone())),
    ("metadata", Kind::Text, |o| Value::Text(o.metadata.as_deref().map(Into::into))),
    ("body", Kind::Text, |o| {
        Value::Text(o.body.as_deref().map(|body| String::from_utf8_lossy(body).into_owned()))
    }),
];

/// The names and kinds of [`COLUMNS`].
pub(super) fn header() -> Vec<(String, Kind)> {
    COLUMNS.map(|(name, kind, _)| (name.to_owned(), kind)).to_vec()
}

/// An outcome's cells.
pub(super) fn row(outcome: &Outcome) -> Vec<Value> {
    COLUMNS.map(|(_, _, cell)| cell(outcome)).to_vec()
}

impl Value {
    /// As a text file has it; what is absent is empty.
    fn written(self) -> String {
        match self {
            Self::Text(text) => text.unwrap_or_default(),
            Self::Number(number) => number.map(|n| n.to_string()).unwrap_or_default(),
            Self::Float(number) => number.map(|n| n.to_string()).unwrap_or_default(),
            Self::Truth(truth) => truth.map(|t| t.to_string()).unwrap_or_default(),
        }
    }

    /// Bytes that it holds in memory, roughly.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Text(Some(text)) => text.len(),
            _ => 8,
        }
    }
}

impl From<Value> for String {
    fn from(value: Value) -> Self {
        value.written()
    }
}

fn text(text: &str) -> Value {
    Value::Text(Some(text.to_owned()))
}

fn number(number: u64) -> Value {
    Value::Number(i64::try_from(number).ok())
}

/// The text of a chat or Responses answer, its first choice; what has none has no answer.
pub fn answer(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Body<'a> {
        #[serde(borrow, default)]
        choices: Option<Vec<Choice<'a>>>,
        #[serde(borrow, default)]
        output: Option<Vec<Item<'a>>>,
    }
    #[derive(Deserialize)]
    struct Choice<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct Message {
        content: Option<String>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        #[serde(borrow, default)]
        content: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        text: Option<String>,
    }
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    if let Some(choice) = body.choices.iter().flatten().next() {
        return serde_json::from_str::<Message>(choice.message.get()).ok()?.content;
    }
    let contents = body.output?.into_iter().filter_map(|item| item.content);
    let parts = contents.filter_map(|raw| serde_json::from_str::<Vec<Part>>(raw.get()).ok());
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
