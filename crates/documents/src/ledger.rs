//! Ledger of a recipe's nights: their documents, the requests about them, and the batch that holds
//! each answer. The answers themselves stay in the store.
//!
//! Rewritten at the end of each night as compressed lines of JSON, with only what that night used.
//! In memory it takes some 200 bytes a request and document.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write};

use serde::{Deserialize, Serialize};

use super::requests::{NightRequests, RequestKey, RequestState};
use domain::job::BatchId;
use domain::outcome::TokenUsage;

/// Version of all lines; any other is rejected.
const VERSION: u32 = 1;

/// Fast enough for a million lines in a few seconds.
const ZSTD_LEVEL: i32 = 3;

/// A document as the last night recorded it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LedgerDocument {
    pub version: String,
    /// Requests about its parts.
    pub parts: Vec<RequestKey>,
    /// Requests that its answers came from in the end.
    pub ends: Vec<RequestKey>,
    /// Requests of the levels in between.
    pub between: Vec<RequestKey>,
}

/// Records of earlier nights.
#[derive(Debug, Default)]
pub struct NightLedger {
    /// Fingerprint of the recipe at the time of writing.
    pub fingerprint: String,
    /// Batches that hold answers; states refer to them by their index.
    pub batches: Vec<BatchId>,
    pub documents: HashMap<String, LedgerDocument>,
    pub answers: HashMap<RequestKey, RequestState>,
}

/// Reason why a ledger can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("the ledger of earlier nights can't be read: {0}")]
    Io(#[from] io::Error),
    #[error("the ledger of earlier nights can't be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the ledger of earlier nights was written by a later version of promptmill")]
    Version,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LedgerLine {
    Head { version: u32, fingerprint: String, batches: Vec<BatchId> },
    Document { name: String, known: LedgerDocument },
    Answer(LedgerAnswer),
}

#[derive(Serialize, Deserialize)]
struct LedgerAnswer {
    key: RequestKey,
    batch: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<TokenUsage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repaired_by: Option<RequestKey>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<Box<str>>,
}

impl NightLedger {
    /// # Errors
    /// If it is broken or of another version.
    pub fn read(bytes: &[u8]) -> Result<Self, LedgerError> {
        let mut ledger = Self::default();
        for line in BufReader::new(zstd::Decoder::new(bytes)?).lines() {
            match serde_json::from_str(&line?)? {
                LedgerLine::Head { version, .. } if version != VERSION => {
                    return Err(LedgerError::Version);
                }
                LedgerLine::Head { fingerprint, batches, .. } => {
                    (ledger.fingerprint, ledger.batches) = (fingerprint, batches);
                }
                LedgerLine::Document { name, known } => drop(ledger.documents.insert(name, known)),
                LedgerLine::Answer(answer) => {
                    drop(ledger.answers.insert(answer.key, answer.into()))
                }
            }
        }
        Ok(ledger)
    }

    /// # Errors
    /// Only if memory runs out.
    pub fn write(&self) -> io::Result<Vec<u8>> {
        let mut to = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
        let mut line = |line: &LedgerLine| {
            serde_json::to_writer(&mut to, line)?;
            to.write_all(b"\n")
        };
        let used: BTreeSet<u16> = self.answers.values().filter_map(batch_of).collect();
        let place = |batch: u16| used.iter().position(|used| *used == batch).unwrap_or_default();
        let batches = used.iter().map(|at| self.batches[usize::from(*at)].clone()).collect();
        line(&LedgerLine::Head {
            version: VERSION,
            fingerprint: self.fingerprint.clone(),
            batches,
        })?;
        for (name, known) in &self.documents {
            line(&LedgerLine::Document { name: name.clone(), known: known.clone() })?;
        }
        for (key, state) in &self.answers {
            if let Some(mut answer) = LedgerAnswer::of(*key, state) {
                answer.batch = u16::try_from(place(answer.batch)).map_err(io::Error::other)?;
                line(&LedgerLine::Answer(answer))?;
            }
        }
        to.finish()
    }

    /// Returns the ledger after a night: its documents, and the states of all their requests.
    /// `batches` begins with those of this ledger.
    pub fn after(
        &self,
        fingerprint: String,
        batches: Vec<BatchId>,
        documents: HashMap<String, LedgerDocument>,
        requests: &NightRequests,
    ) -> Self {
        let mut answers = HashMap::new();
        for known in documents.values() {
            for key in known.keys() {
                self.remember(*key, requests, &mut answers);
            }
        }
        Self { fingerprint, batches, documents, answers }
    }

    fn remember(
        &self,
        key: RequestKey,
        requests: &NightRequests,
        answers: &mut HashMap<RequestKey, RequestState>,
    ) {
        let before = || self.answers.get(&key);
        let state = requests.get(&key).map(|ask| &ask.state).or_else(before);
        let Some(state) = state.filter(|state| batch_of(state).is_some()) else { return };
        if answers.insert(key, state.clone()).is_some() {
            return;
        }
        if let RequestState::Repaired { by, .. } = state {
            self.remember(*by, requests, answers);
        }
    }

    /// Returns the requests behind a document's answers, if the states of all are known.
    pub fn complete_keys<'a>(&'a self, known: &'a LedgerDocument) -> Option<HashSet<RequestKey>> {
        let mut keys = HashSet::new();
        let mut all = known.keys().copied().collect::<Vec<_>>();
        while let Some(key) = all.pop() {
            if let RequestState::Repaired { by, .. } = self.answers.get(&key)? {
                all.push(*by);
            }
            keys.insert(key);
        }
        Some(keys)
    }
}

impl LedgerDocument {
    pub fn keys(&self) -> impl Iterator<Item = &RequestKey> {
        self.parts.iter().chain(&self.between).chain(&self.ends)
    }
}

/// Returns the index of the batch that holds a request's outcome.
pub fn batch_of(state: &RequestState) -> Option<u16> {
    match state {
        RequestState::Answered { batch, .. }
        | RequestState::Repaired { batch, .. }
        | RequestState::Failed { batch, .. } => Some(*batch),
        RequestState::Open | RequestState::Unfinished { .. } => None,
    }
}

impl LedgerAnswer {
    fn of(key: RequestKey, state: &RequestState) -> Option<Self> {
        let (batch, usage, repaired_by, failed) = match state {
            RequestState::Answered { batch, usage } => (*batch, *usage, None, None),
            RequestState::Repaired { batch, usage, by } => (*batch, *usage, Some(*by), None),
            RequestState::Failed { batch, usage, why } => (*batch, *usage, None, Some(why.clone())),
            RequestState::Open | RequestState::Unfinished { .. } => return None,
        };
        Some(Self { key, batch, usage, repaired_by, failed })
    }
}

impl From<LedgerAnswer> for RequestState {
    fn from(LedgerAnswer { batch, usage, repaired_by, failed, .. }: LedgerAnswer) -> Self {
        match (repaired_by, failed) {
            (Some(by), _) => Self::Repaired { batch, usage, by },
            (None, Some(why)) => Self::Failed { batch, usage, why },
            (None, None) => Self::Answered { batch, usage },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> RequestKey {
        RequestKey::of(text.as_bytes())
    }

    #[test]
    fn what_was_written_is_read_and_what_is_not_used_is_gone() {
        let batch = |name: &str| name.parse::<BatchId>().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut asks = NightRequests::new(folder.path()).unwrap();
        let usage = Some(TokenUsage { prompt: 5, ..TokenUsage::default() });
        asks.reuse(key("a"), RequestState::Repaired { batch: 2, usage, by: key("b") });
        asks.reuse(key("b"), RequestState::Answered { batch: 0, usage });
        asks.reuse(
            key("c"),
            RequestState::Failed { batch: 2, usage: None, why: "content_filter".into() },
        );
        asks.reuse(key("late"), RequestState::Unfinished { why: "expired".into() });
        asks.reuse(key("nobody's"), RequestState::Answered { batch: 1, usage });
        let known = LedgerDocument {
            version: "v".into(),
            parts: vec![key("a"), key("c"), key("late")],
            ends: vec![key("a")],
            between: Vec::new(),
        };
        let documents = HashMap::from([("d".to_owned(), known.clone())]);
        let batches = vec![batch("n0"), batch("n1"), batch("n2")];
        let ledger = NightLedger::default().after("f".into(), batches, documents, &asks);
        let again = NightLedger::read(&ledger.write().unwrap()).unwrap();
        assert_eq!(again.batches, [batch("n0"), batch("n2")]);
        assert_eq!(again.documents["d"], known);
        assert_eq!(again.answers.len(), 3);
        assert_eq!(
            again.answers[&key("a")],
            RequestState::Repaired { batch: 1, usage, by: key("b") },
            "its batch has another place now"
        );
        assert_eq!(again.complete_keys(&known), None, "one is unfinished");
        let done = LedgerDocument { parts: vec![key("a")], ..known };
        assert_eq!(again.complete_keys(&done), Some(HashSet::from([key("a"), key("b")])));
    }

    #[test]
    fn a_broken_ledger_is_told() {
        assert!(NightLedger::read(b"no zstd").is_err());
        let later = zstd::encode_all(
            &br#"{"head":{"version":9,"fingerprint":"","batches":[]}}"#[..],
            ZSTD_LEVEL,
        );
        assert!(matches!(NightLedger::read(&later.unwrap()), Err(LedgerError::Version)));
    }
}
