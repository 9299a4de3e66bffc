//! A document of one night: what became of it since the last, and the requests that it has now.

use serde_json::{Map, Value};

use super::ledger::LedgerDocument;
use super::requests::RequestKey;
use super::source::ListedDocument;

/// Change of a document since the last night.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DocumentChange {
    New,
    Changed,
    Same,
}

impl DocumentChange {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Same => "same",
        }
    }
}

/// A document of this night.
#[derive(Debug)]
pub struct NightDocument {
    pub name: String,
    pub version: String,
    pub change: DocumentChange,
    /// Reason why no request can be made about it.
    pub unread: Option<String>,
    /// For the templates of `[reduce]`.
    pub metadata: Map<String, Value>,
    /// Requests about its parts.
    pub parts: Vec<RequestKey>,
    /// Requests that its answers come from: those about its parts, or those that combine them.
    pub level: Vec<RequestKey>,
    /// Number of levels of combining so far.
    pub depth: u32,
    /// Requests of the levels before, except those about its parts.
    pub between: Vec<RequestKey>,
}

impl NightDocument {
    pub(super) fn new(listed: &ListedDocument, change: DocumentChange) -> Self {
        Self {
            name: listed.name.clone(),
            version: listed.version.to_string(),
            change,
            unread: None,
            metadata: Map::new(),
            parts: Vec::new(),
            level: Vec::new(),
            depth: 0,
            between: Vec::new(),
        }
    }

    /// Returns its entry for the ledger.
    pub fn to_ledger(&self) -> LedgerDocument {
        LedgerDocument {
            version: self.version.clone(),
            parts: self.parts.clone(),
            ends: self.level.clone(),
            between: self.between.clone(),
        }
    }
}
