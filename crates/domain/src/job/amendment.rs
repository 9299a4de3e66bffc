//! Amendment of a dead letter that is worked again.

use serde::{Deserialize, Serialize};

/// Values that replace those of the body.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Amendment {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Longest answer in tokens. Embeddings have none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

impl Amendment {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Merges a later amendment, which takes precedence.
    pub(super) fn merge(&mut self, later: &Self) {
        self.model = later.model.clone().or_else(|| self.model.take());
        self.max_tokens = later.max_tokens.or(self.max_tokens);
    }
}
