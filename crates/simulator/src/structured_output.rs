//! Structured output: answers that conform to a JSON schema (OpenAI docs: "Structured Outputs").
//!
//! The JSON is written around the answer's words: they fill its first free string, all else is the
//! minimum that conforms. A truncated answer lacks its end and so is invalid, as at the service.

use serde_json::{Map, Value, json};

/// Placeholder for the words while the JSON is built. No JSON text has it unescaped.
const WORDS_PLACEHOLDER: char = '\u{1}';

/// Maximum depth to which a schema is followed.
const MAX_DEPTH: usize = 12;

/// JSON before and after the words, escaped for use inside a JSON string.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StructuredOutput {
    pub before: String,
    pub after: String,
    /// Tokens of both.
    pub tokens: u32,
    /// There is a string to put words into.
    pub takes_words: bool,
}

impl StructuredOutput {
    /// Builds the JSON that a `response_format` requires; `None` if it requires none.
    pub fn from_response_format(
        response_format: &str,
        count: impl Fn(&str) -> usize,
    ) -> Option<Self> {
        let format: Value = serde_json::from_str(response_format).ok()?;
        let instance = match format["type"].as_str()? {
            "json_schema" => {
                let schema = &format["json_schema"]["schema"];
                SchemaFiller { root: schema, has_words: false }.fill(schema, 0)
            }
            "json_object" => json!({"answer": WORDS_PLACEHOLDER.to_string()}),
            _ => return None,
        };
        // serde_json escapes the placeholder.
        let text = instance.to_string();
        let mark = "\\u0001";
        let (before, after) = text.split_once(mark).unwrap_or((&text, ""));
        let tokens = count(before) + count(after);
        Some(Self {
            before: escaped(before),
            after: escaped(after),
            tokens: u32::try_from(tokens).unwrap_or(u32::MAX),
            takes_words: text.contains(mark),
        })
    }
}

impl StructuredOutput {
    /// Adds text before the JSON, as a model does that ignores the format: invalid JSON.
    pub fn add_preamble(&mut self, count: impl Fn(&str) -> usize) {
        const TALK: &str = "Here it is: ";
        self.before.insert_str(0, TALK);
        self.tokens += u32::try_from(count(TALK)).unwrap_or_default();
    }
}

struct SchemaFiller<'a> {
    root: &'a Value,
    has_words: bool,
}

impl SchemaFiller<'_> {
    fn fill(&mut self, schema: &Value, depth: usize) -> Value {
        if depth > MAX_DEPTH {
            return Value::Null;
        }
        if let Some(at) = schema["$ref"].as_str().and_then(|at| at.strip_prefix('#')) {
            let root = self.root;
            return root.pointer(at).map_or(Value::Null, |schema| self.fill(schema, depth + 1));
        }
        if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
            return first.clone();
        }
        if let Some(value) = schema.get("const") {
            return value.clone();
        }
        if let Some(first) = schema["anyOf"].as_array().and_then(|schemas| schemas.first()) {
            return self.fill(first, depth + 1);
        }
        let of = match &schema["type"] {
            Value::Array(several) => several.first().and_then(Value::as_str),
            one => one.as_str(),
        };
        match of {
            Some("object") => {
                let properties = schema["properties"].as_object();
                let filled = properties.into_iter().flatten();
                let filled = filled.map(|(name, of)| (name.clone(), self.fill(of, depth + 1)));
                filled.collect::<Map<_, _>>().into()
            }
            Some("array") => json!([self.fill(&schema["items"], depth + 1)]),
            Some("number" | "integer") => schema.get("minimum").cloned().unwrap_or(json!(1)),
            Some("boolean") => json!(true),
            Some("string") => self.text(schema["format"].as_str()),
            _ => Value::Null,
        }
    }

    fn text(&mut self, format: Option<&str>) -> Value {
        match format {
            Some("date") => "2026-01-01".into(),
            Some("date-time") => "2026-01-01T00:00:00Z".into(),
            Some("email") => "someone@example.com".into(),
            _ if self.has_words => "paper".into(),
            _ => {
                self.has_words = true;
                WORDS_PLACEHOLDER.to_string().into()
            }
        }
    }
}

fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(schema: &Value) -> (String, StructuredOutput) {
        let asked = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        let form =
            StructuredOutput::from_response_format(&asked.to_string(), |text| text.len()).unwrap();
        let text = format!("\"{}WORDS{}\"", form.before, form.after);
        (serde_json::from_str(&text).unwrap(), form)
    }

    #[test]
    fn the_words_stand_in_the_first_free_text() {
        let schema = json!({"type": "object", "$defs": {"day": {"type": "string", "format": "date"}},
        "properties": {
            "a": {"enum": ["x", "y"]},
            "b": {"type": ["string", "null"]},
            "c": {"type": "array", "items": {"$ref": "#/$defs/day"}},
            "d": {"type": "string"},
            "e": {"type": "integer", "minimum": 5},
        }});
        let (text, form) = form(&schema);
        let expected = r#"{"a":"x","b":"WORDS","c":["2026-01-01"],"d":"paper","e":5}"#;
        assert_eq!(text, expected);
        assert!(form.takes_words && form.tokens as usize == expected.len() - "WORDS".len());
    }

    #[test]
    fn a_form_without_a_free_text_takes_none() {
        let (text, form) =
            form(&json!({"type": "object", "properties": {"n": {"type": "number"}}}));
        assert_eq!((text.as_str(), form.takes_words), (r#"{"n":1}WORDS"#, false));
        assert_eq!(StructuredOutput::from_response_format(r#"{"type":"text"}"#, str::len), None);
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        let (text, _) = form(&schema);
        assert!(serde_json::from_str::<Value>(&text.replace("WORDS", "")).is_ok());
    }
}
