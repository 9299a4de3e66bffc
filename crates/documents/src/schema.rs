//! JSON schema of answers: sent with the request, checked against what comes back.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

/// Most violations reported for an answer: few enough for the model to fix them all.
const MAX_REPORTED_FAULTS: usize = 5;

/// Names of response formats: at most 64 of `a-zA-Z0-9_-` (OpenAI docs: "Structured Outputs").
const LONGEST_NAME: usize = 64;

/// A JSON schema, compiled to check answers.
#[derive(Clone)]
pub struct AnswerSchema {
    name: String,
    pub value: Value,
    validator: Arc<jsonschema::Validator>,
}

/// Reason why a schema is invalid.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("can't read the schema {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the schema {} is not JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("the schema {}: {what}", path.display())]
    Wrong { path: PathBuf, what: String },
}

/// A column of the answer table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerColumn {
    pub name: String,
    /// A JSON pointer into the answer.
    pub pointer: String,
    /// The schema's `type` of that value, if it is a single one.
    pub json_type: Option<String>,
}

impl AnswerSchema {
    /// # Errors
    /// If the file is no JSON schema of an object.
    pub fn load(path: &Path) -> Result<Self, SchemaError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SchemaError::Read { path: path.to_owned(), source })?;
        let value: Value = serde_json::from_str(&text)
            .map_err(|source| SchemaError::Json { path: path.to_owned(), source })?;
        let wrong = |what| SchemaError::Wrong { path: path.to_owned(), what };
        // Required by the service at the top (OpenAI docs: "Structured Outputs").
        if value["type"] != "object" {
            return Err(wrong("its type must be \"object\"".into()));
        }
        let validator =
            jsonschema::validator_for(&value).map_err(|error| wrong(error.to_string()))?;
        let stem = path.file_name().unwrap_or_default().to_string_lossy();
        let legal = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
        let stem = stem.split('.').next().unwrap_or("answer");
        let name = stem.chars().take(LONGEST_NAME).map(legal).collect();
        Ok(Self { name, value, validator: Arc::new(validator) })
    }

    /// Returns the request's `response_format`.
    pub fn response_format(&self) -> Value {
        json!({
            "type": "json_schema",
            "json_schema": {"name": self.name, "strict": true, "schema": self.value},
        })
    }

    /// Parses an answer that fits the schema.
    ///
    /// # Errors
    /// Describes the violations, for the model and for people.
    pub fn parse_answer(&self, answer: &str) -> Result<Value, String> {
        let value: Value =
            serde_json::from_str(answer).map_err(|error| format!("it is not JSON: {error}"))?;
        let faults: Vec<_> = self
            .validator
            .iter_errors(&value)
            .take(MAX_REPORTED_FAULTS)
            .map(|error| {
                let place = error.instance_path().to_string();
                let place = if place.is_empty() { "the whole".to_owned() } else { place };
                format!("{place}: {error}")
            })
            .collect();
        if faults.is_empty() { Ok(value) } else { Err(faults.join("; ")) }
    }

    /// Returns the top-level properties, in the schema's order of names.
    pub fn properties(&self) -> Vec<AnswerColumn> {
        let properties = self.value["properties"].as_object();
        let names = properties.into_iter().flatten().map(|(name, _)| name);
        names.map(|name| self.column(name, &format!("/{}", escaped(name)))).collect()
    }

    /// Returns the column for a pointer into the answer.
    pub fn column(&self, name: &str, pointer: &str) -> AnswerColumn {
        let json_type = pointer.split('/').skip(1).try_fold(&self.value, |schema, step| {
            let step = step.replace("~1", "/").replace("~0", "~");
            schema.get("properties")?.get(&step)
        });
        let json_type = json_type.and_then(|schema| match &schema["type"] {
            Value::String(one) => Some(one.clone()),
            // A nullable type.
            Value::Array(several) => {
                let mut types = several.iter().filter_map(Value::as_str).filter(|t| *t != "null");
                types.next().filter(|_| types.next().is_none()).map(Into::into)
            }
            _ => None,
        });
        AnswerColumn { name: name.into(), pointer: pointer.into(), json_type }
    }
}

impl std::fmt::Debug for AnswerSchema {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Schema").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Escapes a name as a step of a JSON pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(text: &str) -> Result<AnswerSchema, SchemaError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bill of sale.schema.json");
        std::fs::write(&path, text).unwrap();
        AnswerSchema::load(&path)
    }

    const BILL: &str = r#"{"type": "object", "additionalProperties": false,
        "required": ["total", "kind", "from"],
        "properties": {
            "total": {"type": ["number", "null"]},
            "kind": {"enum": ["bill", "offer"]},
            "from": {"type": "object", "properties": {"a/b": {"type": "string"}}}}}"#;

    #[test]
    fn an_answer_that_does_not_fit_is_told_why() {
        let schema = schema(BILL).unwrap();
        assert!(schema.parse_answer(r#"{"total": 1.5, "kind": "bill", "from": {}}"#).is_ok());
        let said =
            schema.parse_answer(r#"{"total": "x", "kind": "bill", "from": {}}"#).unwrap_err();
        assert!(said.contains("/total"), "{said}");
        let said = schema.parse_answer("Here you are: {}").unwrap_err();
        assert!(said.contains("not JSON"), "{said}");
        let said = schema.parse_answer(r#"{"total": 1, "kind": "letter"}"#).unwrap_err();
        assert!(said.contains("from") && said.contains("/kind"), "{said}");
        assert_eq!(schema.response_format()["json_schema"]["name"], "bill_of_sale");
    }

    #[test]
    fn columns_are_the_properties_with_their_types() {
        let schema = schema(BILL).unwrap();
        let columns = schema.properties();
        let of = |name: &str| columns.iter().find(|c| c.name == name).unwrap().json_type.clone();
        assert_eq!(of("total").as_deref(), Some("number"));
        assert_eq!((of("kind"), of("from").as_deref()), (None, Some("object")));
        assert_eq!(schema.column("x", "/from/a~1b").json_type.as_deref(), Some("string"));
    }

    #[test]
    fn what_is_no_schema_of_an_object_is_refused() {
        for text in ["[]", r#"{"type":"array"}"#, r#"{"type":"object","properties":7}"#, "{"] {
            assert!(schema(text).is_err(), "{text}");
        }
    }
}
