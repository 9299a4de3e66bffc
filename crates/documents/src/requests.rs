//! All requests of one night: each distinct one once, by the hash of its body.
//!
//! Bodies are in a file, one line of a batch file each; memory holds only their states.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use domain::outcome::TokenUsage;

/// SHA-256 of a request body: text, template, model, parameters and schema all count. It is the
/// request's `custom_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey([u8; SHA256_OUTPUT_LEN]);

impl RequestKey {
    pub fn of(body: &[u8]) -> Self {
        let digest = digest(&SHA256, body);
        Self(digest.as_ref().try_into().expect("it has the algorithm's length"))
    }
}

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for RequestKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RequestKey {
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

/// State of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestState {
    /// Requested tonight; its outcome is not known yet.
    Open,
    /// Answered; the answer is in this batch.
    Answered { batch: u16, usage: Option<TokenUsage> },
    /// Its answer did not fit the schema; the request `by` asks once more.
    Repaired { batch: u16, usage: Option<TokenUsage>, by: RequestKey },
    /// Refused, or its answer is unusable: asking again would be paid for nothing.
    Failed { batch: u16, usage: Option<TokenUsage>, why: Box<str> },
    /// Without an answer for a reason that may pass; the next night asks again.
    Unfinished { why: Box<str> },
}

/// A request of this night.
#[derive(Debug)]
pub struct NightRequest {
    pub state: RequestState,
    /// True if its state comes from an earlier night.
    pub is_reused: bool,
    /// Location of its line in the file; `None` if its state was reused.
    line: Option<LineSpan>,
    /// The request whose answer this one repairs.
    pub repairs: Option<RequestKey>,
}

#[derive(Debug, Clone, Copy)]
struct LineSpan {
    offset: u64,
    bytes: u32,
}

/// The requests of one night.
pub struct NightRequests {
    entries: HashMap<RequestKey, NightRequest>,
    /// Requests added tonight, in order of addition.
    added: Vec<RequestKey>,
    /// Number of them that are in the queue.
    sent: usize,
    file: File,
    path: PathBuf,
    end: u64,
}

/// Tags in a request's line, as its `metadata`.
#[derive(Debug, Clone, Default)]
pub struct RequestTags {
    /// The first document that makes this request.
    pub document: String,
    pub recipe: String,
}

impl NightRequests {
    /// # Errors
    /// If the file can't be made.
    pub fn new(scratch: &Path) -> io::Result<Self> {
        let path = scratch.join("requests.jsonl");
        let file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let (entries, added) = (HashMap::new(), Vec::new());
        Ok(Self { entries, added, sent: 0, file, path, end: 0 })
    }

    pub fn get(&self, key: &RequestKey) -> Option<&NightRequest> {
        self.entries.get(key)
    }

    /// Returns the state of a request, or of the one that repaired its answer.
    pub fn state(&self, key: &RequestKey) -> (RequestKey, &RequestState) {
        const NEVER: &RequestState = &RequestState::Open;
        match self.entries.get(key).map(|ask| &ask.state) {
            Some(RequestState::Repaired { by, .. }) => self.state(by),
            Some(state) => (*key, state),
            None => (*key, NEVER),
        }
    }

    pub fn set(&mut self, key: &RequestKey, state: RequestState) {
        if let Some(ask) = self.entries.get_mut(key) {
            ask.state = state;
        }
    }

    /// Takes over the state that an earlier night recorded.
    pub fn reuse(&mut self, key: RequestKey, state: RequestState) {
        let ask = NightRequest { state, is_reused: true, line: None, repairs: None };
        self.entries.entry(key).or_insert(ask);
    }

    /// Adds a request, if it is not there.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn add(
        &mut self,
        body: &Value,
        tags: &RequestTags,
        repairs: Option<RequestKey>,
    ) -> io::Result<RequestKey> {
        let body = body.to_string();
        let key = RequestKey::of(body.as_bytes());
        if self.entries.contains_key(&key) {
            return Ok(key);
        }
        let metadata = json!({"document": tags.document, "recipe": tags.recipe});
        let line = format!(
            r#"{{"custom_id":"{key}","method":"POST","url":"/v1/chat/completions","metadata":{metadata},"body":{body}}}"#,
        );
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")?;
        let bytes = u32::try_from(line.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a request of over 4 GiB"))?;
        let line = Some(LineSpan { offset: self.end, bytes });
        self.end += u64::from(bytes) + 1;
        self.entries.insert(
            key,
            NightRequest { state: RequestState::Open, is_reused: false, line, repairs },
        );
        self.added.push(key);
        Ok(key)
    }

    /// Returns the line of a request added tonight.
    ///
    /// # Errors
    /// If it is not there, or the file can't be read.
    pub fn line(&self, key: &RequestKey) -> io::Result<String> {
        let line = self.entries.get(key).and_then(|ask| ask.line);
        let line =
            line.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such request"))?;
        let mut bytes = vec![0; line.bytes as usize];
        self.file.read_exact_at(&mut bytes, line.offset)?;
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    /// Returns the batch file of all requests added tonight.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the requests added tonight, in order of addition.
    pub fn added(&self) -> &[RequestKey] {
        &self.added
    }

    /// Returns the states from earlier nights. Only requests of tonight's documents are here.
    pub fn reused(&self) -> impl Iterator<Item = &RequestState> {
        self.entries.values().filter(|ask| ask.is_reused).map(|ask| &ask.state)
    }

    /// Returns the next requests that are not in the queue yet, with their positions.
    pub fn to_send(&self, at_most: usize) -> impl Iterator<Item = (u64, &RequestKey)> {
        self.added.iter().enumerate().skip(self.sent).take(at_most).map(|(n, key)| (n as u64, key))
    }

    /// Number of requests that are in the queue, or were.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// Marks `count` more requests as enqueued.
    pub fn mark_sent(&mut self, count: usize) {
        self.sent += count;
    }

    /// Returns the enqueued requests whose outcome is not known yet.
    pub fn open(&self) -> Vec<RequestKey> {
        self.all_open().copied().collect()
    }

    /// Number of enqueued requests whose outcome is not known yet.
    pub fn open_count(&self) -> usize {
        self.all_open().count()
    }

    fn all_open(&self) -> impl Iterator<Item = &RequestKey> {
        let is_open = |key: &&RequestKey| matches!(self.entries[*key].state, RequestState::Open);
        self.added[..self.sent].iter().filter(is_open)
    }

    /// Returns true if nothing is left to send or to wait for.
    pub fn all_ended(&self) -> bool {
        self.sent == self.added.len() && self.open_count() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered() -> RequestState {
        RequestState::Answered { batch: 0, usage: None }
    }

    #[test]
    fn equal_requests_are_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut asks = NightRequests::new(folder.path()).unwrap();
        let terms = RequestTags { document: "a \"b\"".into(), ..RequestTags::default() };
        let one = asks.add(&json!({"model": "m", "x": 1}), &terms, None).unwrap();
        let same = asks.add(&json!({"x": 1, "model": "m"}), &terms, None).unwrap();
        let other = asks.add(&json!({"model": "m", "x": 2}), &terms, None).unwrap();
        assert_eq!((one == same, asks.added().len()), (true, 2));
        let line: Value = serde_json::from_str(&asks.line(&other).unwrap()).unwrap();
        assert_eq!(line["body"]["x"], 2);
        assert_eq!(line["custom_id"], other.to_string());
        assert_eq!(line["metadata"]["document"], "a \"b\"");
        assert_eq!(std::fs::read_to_string(asks.path()).unwrap().lines().count(), 2);
        assert_eq!(asks.to_send(9).count(), 2);
        asks.mark_sent(1);
        assert_eq!((asks.open(), asks.all_ended()), (vec![one], false));
        asks.mark_sent(1);
        asks.set(&one, answered());
        asks.set(&other, RequestState::Repaired { batch: 0, usage: None, by: one });
        assert!(asks.all_ended());
        assert_eq!(asks.state(&other), (one, &answered()));
    }

    #[test]
    fn what_is_known_is_not_asked() {
        let folder = tempfile::tempdir().unwrap();
        let mut asks = NightRequests::new(folder.path()).unwrap();
        let body = json!({"model": "m"});
        let key = RequestKey::of(body.to_string().as_bytes());
        asks.reuse(key, answered());
        assert_eq!(asks.add(&body, &RequestTags::default(), None).unwrap(), key);
        assert!(asks.added().is_empty() && asks.all_ended());
    }

    #[test]
    fn keys_travel_as_text() {
        let key = RequestKey::of(b"x");
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<RequestKey>(&text).unwrap(), key);
        for wrong in ["\"00\"", "\"zz\"", "\"\"", "7"] {
            assert!(serde_json::from_str::<RequestKey>(wrong).is_err(), "{wrong}");
        }
    }
}
