//! Recipe of a night: which documents, how they are split, what is asked about each part, and what
//! becomes of the answers.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::schema::{AnswerColumn, AnswerSchema};

/// Longest name of a recipe: batch names contain it, with a date behind it.
const LONGEST_NAME: usize = 60;

/// Fields of the body that other keys of the recipe set.
const OWN_FIELDS: [&str; 4] = ["model", "messages", "response_format", "stream"];

/// A recipe file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name that its nights share to reuse answers; absent: the file's name.
    #[serde(default)]
    pub name: String,
    /// Globs under the source, such as `**/*.md`.
    #[serde(default = "everything")]
    pub include: Vec<String>,
    /// Globs of documents to leave out.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Documents larger than this are not read, in MiB.
    #[serde(default = "max_file_mib")]
    pub max_file_mib: u64,
    /// The model of every request.
    pub model: String,
    /// The most tokens of a part, by the o200k_base tokenizer; absent: documents stay whole.
    pub part_tokens: Option<usize>,
    /// The most tokens that a part repeats of the one before.
    #[serde(default)]
    pub overlap_tokens: usize,
    /// The system prompt, a template.
    pub system: Option<String>,
    /// The user's prompt, a template.
    pub prompt: String,
    /// A file beside the recipe: the JSON schema of every answer.
    #[serde(rename = "schema")]
    pub(super) schema_file: Option<PathBuf>,
    #[serde(skip)]
    pub schema: Option<AnswerSchema>,
    /// Examples of questions and their answers, put before each prompt.
    #[serde(default)]
    pub examples: Vec<RecipeExample>,
    /// Further fields of the request body, such as `max_completion_tokens`.
    #[serde(default)]
    pub parameters: Map<String, Value>,
    /// Combination of many parts' answers into one; absent: each stands alone.
    pub reduce: Option<ReduceSettings>,
    /// Columns of the table by their names, each a JSON pointer into the answer; none: the schema's
    /// properties.
    #[serde(default)]
    pub columns: BTreeMap<String, String>,
}

/// A question and its desired answer, both verbatim: no templates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecipeExample {
    pub user: String,
    pub assistant: String,
}

/// Combination of answers: in groups, level by level, until one is left.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReduceSettings {
    /// The system prompt, a template; absent: none.
    pub system: Option<String>,
    /// The user's prompt, a template.
    pub prompt: String,
    /// The most tokens of the answers in a group; two answers go together in any case.
    #[serde(default = "group_tokens")]
    pub group_tokens: usize,
}

impl Recipe {
    pub(super) fn check(&self) -> Result<(), String> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > LONGEST_NAME || !self.name.chars().all(legal) {
            return Err(format!(
                "'{}' is not a valid name: use 1 to {LONGEST_NAME} of a-z, A-Z, 0-9, '-', '_' and '.'",
                self.name
            ));
        }
        if self.part_tokens == Some(0) {
            return Err("part_tokens must be at least 1".into());
        }
        // Repeating more than half of each part would multiply the cost.
        if self.overlap_tokens > self.part_tokens.unwrap_or(0) / 2 {
            return Err("overlap_tokens must be at most half of part_tokens".into());
        }
        if let Some(name) = OWN_FIELDS.iter().find(|name| self.parameters.contains_key(**name)) {
            return Err(format!("'{name}' can't be a parameter: other keys of the recipe set it"));
        }
        if self.reduce.is_some() && self.part_tokens.is_none() {
            return Err(
                "[reduce] goes with part_tokens: whole documents have one answer each".into()
            );
        }
        if !self.columns.is_empty() && self.schema_file.is_none() {
            return Err("[columns] goes with a schema: they point into its answers".into());
        }
        if let Some((name, _)) = self.columns.iter().find(|(_, at)| !at.starts_with('/')) {
            return Err(format!("the column '{name}' must be a JSON pointer, such as \"/total\""));
        }
        Ok(())
    }

    /// Returns the table's columns beside those that every table has.
    pub fn table_columns(&self) -> Vec<AnswerColumn> {
        let Some(schema) = &self.schema else { return Vec::new() };
        if self.columns.is_empty() {
            return schema.properties();
        }
        self.columns.iter().map(|(name, at)| schema.column(name, at)).collect()
    }

    /// Returns the hash of all that decides the requests about a document's bytes.
    pub fn fingerprint(&self) -> String {
        let reduce = self.reduce.as_ref().map(|r| (&r.system, &r.prompt, r.group_tokens));
        let examples: Vec<_> = self.examples.iter().map(|e| (&e.user, &e.assistant)).collect();
        let all = (
            (&self.model, self.part_tokens, self.overlap_tokens, self.max_file_mib),
            (&self.system, &self.prompt, examples, &self.parameters),
            (self.schema.as_ref().map(|schema| &schema.value), reduce),
        );
        super::requests::RequestKey::of(serde_json::to_string(&all).unwrap_or_default().as_bytes())
            .to_string()
    }
}

fn everything() -> Vec<String> {
    vec!["**/*".into()]
}

fn max_file_mib() -> u64 {
    32
}

fn group_tokens() -> usize {
    8_000
}
