//! What a night's work is: which files, how they are cut, and what is asked about each part.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

/// A recipe file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The model of every request.
    pub model: String,
    /// Globs under the source folder, such as `**/*.md`.
    #[serde(default = "everything")]
    pub include: Vec<String>,
    /// Files larger than this are not read, in MiB.
    #[serde(default = "max_file_mib")]
    pub max_file_mib: u64,
    /// The most tokens of a part, by the o200k_base tokenizer; absent: documents stay whole.
    pub part_tokens: Option<usize>,
    /// The most tokens that a part repeats of the one before.
    #[serde(default)]
    pub overlap_tokens: usize,
    /// The system prompt, a template.
    pub system: Option<String>,
    /// The user's prompt, a template.
    pub prompt: String,
    /// What was asked before, as it were, and how it was answered.
    #[serde(default)]
    pub examples: Vec<Example>,
    /// Further fields of the request body, such as `max_completion_tokens`.
    #[serde(default)]
    pub parameters: Map<String, Value>,
}

/// A question and the answer that is wanted to it, both as they are: no templates.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Example {
    pub user: String,
    pub assistant: String,
}

/// Why a recipe is none.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("can't read the recipe {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the recipe {} is wrong: {what}", path.display())]
    Wrong { path: PathBuf, what: String },
}

impl Recipe {
    /// # Errors
    /// If the file can't be read, has an unknown or wrong field, or sets what is not a parameter.
    pub fn load(path: &Path) -> Result<Self, RecipeError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| RecipeError::Read { path: path.to_owned(), source })?;
        let wrong = |what| RecipeError::Wrong { path: path.to_owned(), what };
        let recipe: Self = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if recipe.part_tokens == Some(0) {
            return Err(wrong("part_tokens must be at least 1".into()));
        }
        // Parts of which more than half is repeated would multiply the cost.
        if recipe.overlap_tokens > recipe.part_tokens.unwrap_or(0) / 2 {
            return Err(wrong("overlap_tokens must be at most half of part_tokens".into()));
        }
        if let Some(name) =
            ["model", "messages"].iter().find(|n| recipe.parameters.contains_key(**n))
        {
            return Err(wrong(format!("'{name}' is no parameter: it has a place of its own")));
        }
        Ok(recipe)
    }
}

fn everything() -> Vec<String> {
    vec!["**/*".into()]
}

fn max_file_mib() -> u64 {
    32
}
