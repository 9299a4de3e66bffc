//! What the nights of a recipe know: which documents there were, what was asked about them, and in
//! which batch each answer lies. The answers themselves stay where they are.
//!
//! It is written anew at the end of each night, as compressed lines of JSON, and holds only what that
//! night used. In memory it takes some 200 bytes a request and document.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Write};

use serde::{Deserialize, Serialize};

use super::asks::{Asks, Key, State};
use domain::job::BatchId;
use domain::outcome::Usage;

/// Of all lines; another version is not read.
const VERSION: u32 = 1;

/// Small enough for a few seconds a million lines.
const ZSTD_LEVEL: i32 = 3;

/// A document as it was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Known {
    pub version: String,
    /// What was asked about its parts.
    pub parts: Vec<Key>,
    /// What its answers came from in the end.
    pub ends: Vec<Key>,
    /// What was asked in between.
    pub between: Vec<Key>,
}

/// All that is known.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The recipe's, when it was written.
    pub fingerprint: String,
    /// Where answers lie; states name them by their place here.
    pub batches: Vec<BatchId>,
    pub documents: HashMap<String, Known>,
    pub answers: HashMap<Key, State>,
}

/// Why a ledger can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("what is known of earlier nights can't be read: {0}")]
    Io(#[from] io::Error),
    #[error("what is known of earlier nights can't be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error("what is known of earlier nights was written by a later version of promptmill")]
    Version,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Head { version: u32, fingerprint: String, batches: Vec<BatchId> },
    Document { name: String, known: Known },
    Answer(Answer),
}

#[derive(Serialize, Deserialize)]
struct Answer {
    key: Key,
    batch: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repaired_by: Option<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failed: Option<Box<str>>,
}

impl Ledger {
    /// # Errors
    /// If it is broken or of another version.
    pub fn read(bytes: &[u8]) -> Result<Self, LedgerError> {
        let mut ledger = Self::default();
        for line in BufReader::new(zstd::Decoder::new(bytes)?).lines() {
            match serde_json::from_str(&line?)? {
                Line::Head { version, .. } if version != VERSION => {
                    return Err(LedgerError::Version);
                }
                Line::Head { fingerprint, batches, .. } => {
                    (ledger.fingerprint, ledger.batches) = (fingerprint, batches);
                }
                Line::Document { name, known } => drop(ledger.documents.insert(name, known)),
                Line::Answer(answer) => drop(ledger.answers.insert(answer.key, answer.into())),
            }
        }
        Ok(ledger)
    }

    /// # Errors
    /// Never but for want of memory.
    pub fn write(&self) -> io::Result<Vec<u8>> {
        let mut to = zstd::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
        let mut line = |line: &Line| {
            serde_json::to_writer(&mut to, line)?;
            to.write_all(b"\n")
        };
        let used: BTreeSet<u16> = self.answers.values().filter_map(batch_of).collect();
        let place = |batch: u16| used.iter().position(|used| *used == batch).unwrap_or_default();
        let batches = used.iter().map(|at| self.batches[usize::from(*at)].clone()).collect();
        line(&Line::Head { version: VERSION, fingerprint: self.fingerprint.clone(), batches })?;
        for (name, known) in &self.documents {
            line(&Line::Document { name: name.clone(), known: known.clone() })?;
        }
        for (key, state) in &self.answers {
            if let Some(mut answer) = Answer::of(*key, state) {
                answer.batch = u16::try_from(place(answer.batch)).map_err(io::Error::other)?;
                line(&Line::Answer(answer))?;
            }
        }
        to.finish()
    }

    /// What is to be known after a night: its documents, and what became of all that was asked of
    /// them. `batches` begins with those of this ledger.
    pub fn after(
        &self,
        fingerprint: String,
        batches: Vec<BatchId>,
        documents: HashMap<String, Known>,
        asks: &Asks,
    ) -> Self {
        let mut answers = HashMap::new();
        for known in documents.values() {
            for key in known.keys() {
                self.remember(*key, asks, &mut answers);
            }
        }
        Self { fingerprint, batches, documents, answers }
    }

    fn remember(&self, key: Key, asks: &Asks, answers: &mut HashMap<Key, State>) {
        let before = || self.answers.get(&key);
        let state = asks.get(&key).map(|ask| &ask.state).or_else(before);
        let Some(state) = state.filter(|state| batch_of(state).is_some()) else { return };
        if answers.insert(key, state.clone()).is_some() {
            return;
        }
        if let State::Repaired { by, .. } = state {
            self.remember(*by, asks, answers);
        }
    }

    /// The requests by which a document's answers are known, if all of them are.
    pub fn whole<'a>(&'a self, known: &'a Known) -> Option<HashSet<Key>> {
        let mut keys = HashSet::new();
        let mut all = known.keys().copied().collect::<Vec<_>>();
        while let Some(key) = all.pop() {
            if let State::Repaired { by, .. } = self.answers.get(&key)? {
                all.push(*by);
            }
            keys.insert(key);
        }
        Some(keys)
    }
}

impl Known {
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.parts.iter().chain(&self.between).chain(&self.ends)
    }
}

/// Where a request's outcome is.
pub fn batch_of(state: &State) -> Option<u16> {
    match state {
        State::Answered { batch, .. }
        | State::Repaired { batch, .. }
        | State::Failed { batch, .. } => Some(*batch),
        State::Open | State::Unfinished { .. } => None,
    }
}

impl Answer {
    fn of(key: Key, state: &State) -> Option<Self> {
        let (batch, usage, repaired_by, failed) = match state {
            State::Answered { batch, usage } => (*batch, *usage, None, None),
            State::Repaired { batch, usage, by } => (*batch, *usage, Some(*by), None),
            State::Failed { batch, usage, why } => (*batch, *usage, None, Some(why.clone())),
            State::Open | State::Unfinished { .. } => return None,
        };
        Some(Self { key, batch, usage, repaired_by, failed })
    }
}

impl From<Answer> for State {
    fn from(Answer { batch, usage, repaired_by, failed, .. }: Answer) -> Self {
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

    fn key(text: &str) -> Key {
        Key::of(text.as_bytes())
    }

    #[test]
    fn what_was_written_is_read_and_what_is_not_used_is_gone() {
        let batch = |name: &str| name.parse::<BatchId>().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut asks = Asks::new(folder.path()).unwrap();
        let usage = Some(Usage { prompt: 5, ..Usage::default() });
        asks.know(key("a"), State::Repaired { batch: 2, usage, by: key("b") });
        asks.know(key("b"), State::Answered { batch: 0, usage });
        asks.know(key("c"), State::Failed { batch: 2, usage: None, why: "content_filter".into() });
        asks.know(key("late"), State::Unfinished { why: "expired".into() });
        asks.know(key("nobody's"), State::Answered { batch: 1, usage });
        let known = Known {
            version: "v".into(),
            parts: vec![key("a"), key("c"), key("late")],
            ends: vec![key("a")],
            between: Vec::new(),
        };
        let documents = HashMap::from([("d".to_owned(), known.clone())]);
        let batches = vec![batch("n0"), batch("n1"), batch("n2")];
        let ledger = Ledger::default().after("f".into(), batches, documents, &asks);
        let again = Ledger::read(&ledger.write().unwrap()).unwrap();
        assert_eq!(again.batches, [batch("n0"), batch("n2")]);
        assert_eq!(again.documents["d"], known);
        assert_eq!(again.answers.len(), 3);
        assert_eq!(
            again.answers[&key("a")],
            State::Repaired { batch: 1, usage, by: key("b") },
            "its batch has another place now"
        );
        assert_eq!(again.whole(&known), None, "one is unfinished");
        let done = Known { parts: vec![key("a")], ..known };
        assert_eq!(again.whole(&done), Some(HashSet::from([key("a"), key("b")])));
    }

    #[test]
    fn a_broken_ledger_is_told() {
        assert!(Ledger::read(b"no zstd").is_err());
        let later = zstd::encode_all(
            &br#"{"head":{"version":9,"fingerprint":"","batches":[]}}"#[..],
            ZSTD_LEVEL,
        );
        assert!(matches!(Ledger::read(&later.unwrap()), Err(LedgerError::Version)));
    }
}
