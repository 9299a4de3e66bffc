//! All that is asked in one night: each request once, by the hash of what it asks.
//!
//! Bodies lie in a file, one line of a batch file each; in memory is what became of them.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use domain::outcome::Usage;

/// The hash of a request body: text, template, model, parameters and schema all count. It is the
/// request's `custom_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    pub fn of(body: &[u8]) -> Self {
        Self(Sha256::digest(body).into())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(from)?;
        let mut key = [0; 32];
        let digits = text.as_bytes().chunks_exact(2);
        let whole = text.len() == 64 && text.is_ascii();
        for (byte, digits) in key.iter_mut().zip(digits) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).map_err(serde::de::Error::custom)?;
        }
        if whole { Ok(Self(key)) } else { Err(serde::de::Error::custom("not a key")) }
    }
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Asked tonight; its outcome is not known yet.
    Open,
    /// Its answer is in this batch.
    Answered { batch: u16, usage: Option<Usage> },
    /// Its answer did not fit the schema, and this request asks once more.
    Repaired { batch: u16, usage: Option<Usage>, by: Key },
    /// It was refused, or its answer is no use: asking again would be paid for nothing.
    Failed { batch: u16, usage: Option<Usage>, why: Box<str> },
    /// It has no answer for a reason that may pass; the next night asks again.
    Unfinished { why: Box<str> },
}

/// A request of this night.
#[derive(Debug)]
pub struct Ask {
    pub state: State,
    /// Whether an earlier night had it.
    pub was_known: bool,
    /// Where its line is, if it was not known.
    line: Option<Line>,
    /// The request whose answer this one is to mend.
    pub repairs: Option<Key>,
}

#[derive(Debug, Clone, Copy)]
struct Line {
    at: u64,
    bytes: u32,
}

/// The requests of one night.
pub struct Asks {
    known: HashMap<Key, Ask>,
    /// What is asked tonight, in the order in which it was added.
    asked: Vec<Key>,
    /// How many of them are in the queue.
    sent: usize,
    file: File,
    path: PathBuf,
    end: u64,
}

/// What else stands in a request's line.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// The first document that asks it.
    pub document: String,
    pub recipe: String,
}

impl Asks {
    /// # Errors
    /// If the file can't be made.
    pub fn new(scratch: &Path) -> io::Result<Self> {
        let path = scratch.join("asks.jsonl");
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let (known, asked) = (HashMap::new(), Vec::new());
        Ok(Self { known, asked, sent: 0, file, path, end: 0 })
    }

    pub fn get(&self, key: &Key) -> Option<&Ask> {
        self.known.get(key)
    }

    /// What became of a request, or of the one that mended its answer.
    pub fn state(&self, key: &Key) -> (Key, &State) {
        const NEVER: &State = &State::Open;
        match self.known.get(key).map(|ask| &ask.state) {
            Some(State::Repaired { by, .. }) => self.state(by),
            Some(state) => (*key, state),
            None => (*key, NEVER),
        }
    }

    pub fn set(&mut self, key: &Key, state: State) {
        if let Some(ask) = self.known.get_mut(key) {
            ask.state = state;
        }
    }

    /// Takes over what an earlier night knows.
    pub fn know(&mut self, key: Key, state: State) {
        let ask = Ask { state, was_known: true, line: None, repairs: None };
        self.known.entry(key).or_insert(ask);
    }

    /// Adds a request, if it is not there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn ask(&mut self, body: &Value, terms: &Terms, repairs: Option<Key>) -> io::Result<Key> {
        let body = body.to_string();
        let key = Key::of(body.as_bytes());
        if self.known.contains_key(&key) {
            return Ok(key);
        }
        let metadata = json!({"document": terms.document, "recipe": terms.recipe});
        let line = format!(
            r#"{{"custom_id":"{key}","method":"POST","url":"/v1/chat/completions","metadata":{metadata},"body":{body}}}"#,
        );
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        let bytes = u32::try_from(line.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a request of over 4 GiB"))?;
        let line = Some(Line { at: self.end, bytes });
        self.end += u64::from(bytes) + 1;
        self.known.insert(key, Ask { state: State::Open, was_known: false, line, repairs });
        self.asked.push(key);
        Ok(key)
    }

    /// The line of a request that is asked tonight.
    ///
    /// # Errors
    /// If it is not there, or the file can't be read.
    pub fn line(&self, key: &Key) -> io::Result<String> {
        let line = self.known.get(key).and_then(|ask| ask.line);
        let line =
            line.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such request"))?;
        let mut bytes = vec![0; line.bytes as usize];
        self.file.read_exact_at(&mut bytes, line.at)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    /// All requests of tonight as a batch file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is asked tonight, in the order in which it was added.
    pub fn asked(&self) -> &[Key] {
        &self.asked
    }

    /// What became of those that earlier nights had. Only what tonight's documents ask is here.
    pub fn known(&self) -> impl Iterator<Item = &State> {
        self.known.values().filter(|ask| ask.was_known).map(|ask| &ask.state)
    }

    /// The next requests that are not in the queue yet, with their places.
    pub fn to_send(&self, at_most: usize) -> impl Iterator<Item = (u64, &Key)> {
        self.asked.iter().enumerate().skip(self.sent).take(at_most).map(|(n, key)| (n as u64, key))
    }

    /// How many are in the queue, or were.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// So many more are in the queue.
    pub fn were_sent(&mut self, count: usize) {
        self.sent += count;
    }

    /// Requests in the queue whose outcome is not known yet.
    pub fn open(&self) -> Vec<Key> {
        self.all_open().copied().collect()
    }

    /// How many of them there are.
    pub fn open_count(&self) -> usize {
        self.all_open().count()
    }

    fn all_open(&self) -> impl Iterator<Item = &Key> {
        let is_open = |key: &&Key| matches!(self.known[*key].state, State::Open);
        self.asked[..self.sent].iter().filter(is_open)
    }

    /// Whether nothing is left to be sent or waited for.
    pub fn all_ended(&self) -> bool {
        self.sent == self.asked.len() && self.open_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered() -> State {
        State::Answered { batch: 0, usage: None }
    }

    #[test]
    fn equal_requests_are_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut asks = Asks::new(folder.path()).unwrap();
        let terms = Terms { document: "a \"b\"".into(), ..Terms::default() };
        let one = asks.ask(&json!({"model": "m", "x": 1}), &terms, None).unwrap();
        let same = asks.ask(&json!({"x": 1, "model": "m"}), &terms, None).unwrap();
        let other = asks.ask(&json!({"model": "m", "x": 2}), &terms, None).unwrap();
        assert_eq!((one == same, asks.asked().len()), (true, 2));
        let line: Value = serde_json::from_str(&asks.line(&other).unwrap()).unwrap();
        assert_eq!(line["body"]["x"], 2);
        assert_eq!(line["custom_id"], other.to_string());
        assert_eq!(line["metadata"]["document"], "a \"b\"");
        assert_eq!(std::fs::read_to_string(asks.path()).unwrap().lines().count(), 2);
        assert_eq!(asks.to_send(9).count(), 2);
        asks.were_sent(1);
        assert_eq!((asks.open(), asks.all_ended()), (vec![one], false));
        asks.were_sent(1);
        asks.set(&one, answered());
        asks.set(&other, State::Repaired { batch: 0, usage: None, by: one });
        assert!(asks.all_ended());
        assert_eq!(asks.state(&other), (one, &answered()));
    }

    #[test]
    fn what_is_known_is_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut asks = Asks::new(folder.path()).unwrap();
        let body = json!({"model": "m"});
        let key = Key::of(body.to_string().as_bytes());
        asks.know(key, answered());
        assert_eq!(asks.ask(&body, &Terms::default(), None).unwrap(), key);
        assert!(asks.asked().is_empty() && asks.all_ended());
    }

    #[test]
    fn keys_travel_as_text() {
        let key = Key::of(b"x");
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&text).unwrap(), key);
        for wrong in ["\"00\"", "\"zz\"", "\"\"", "7"] {
            assert!(serde_json::from_str::<Key>(wrong).is_err(), "{wrong}");
        }
    }
}
