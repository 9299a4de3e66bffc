//! An OpenAI-compatible endpoint with whatever habits a test gives it: any status, headers, bytes.
//!
//! Plain sockets and threads, so that nothing mends on the way what a test wants to see sent.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

/// One request, as the endpoint reads it.
pub struct EndpointRequest {
    pub path: String,
    /// Header names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Value,
    /// Text of the last message, or of the input.
    pub prompt: String,
    /// Number of this request, from 1, of all and of those with this prompt.
    pub number: usize,
    pub seen: usize,
    pub at: Instant,
}

/// One reply.
pub struct EndpointReply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub delay: Duration,
    /// The connection ends after this many bytes of the body.
    pub cut_at: Option<usize>,
}

impl EndpointReply {
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref().to_vec();
        Self { status, headers: Vec::new(), body, delay: Duration::ZERO, cut_at: None }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::new(status, body.to_string())
    }

    /// A chat answer of some words.
    pub fn chat(text: &str) -> Self {
        Self::json(200, &chat(text))
    }

    /// An error of the service.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &json!({"error": {"code": code, "message": message}}))
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
}

/// Body of a chat answer.
pub fn chat(text: &str) -> Value {
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                     "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    })
}

type Behaviour = dyn Fn(&EndpointRequest) -> EndpointReply + Send + Sync;

/// The endpoint; it answers until the test ends.
pub struct Endpoint {
    address: SocketAddr,
    counts: Arc<Mutex<RequestCounts>>,
}

#[derive(Default)]
struct RequestCounts {
    all: usize,
    by_prompt: HashMap<String, usize>,
}

impl Endpoint {
    pub fn start(
        behaviour: impl Fn(&EndpointRequest) -> EndpointReply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Mutex<RequestCounts>>::default();
        let (behaviour, shared): (Arc<Behaviour>, _) = (Arc::new(behaviour), counts.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (behaviour, counts) = (behaviour.clone(), shared.clone());
                std::thread::spawn(move || serve(stream, behaviour.as_ref(), &counts));
            }
        });
        Self { address, counts }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requests so far.
    pub fn calls(&self) -> usize {
        self.counts.lock().unwrap().all
    }

    /// Requests so far with this prompt.
    pub fn calls_for(&self, prompt: &str) -> usize {
        self.counts.lock().unwrap().by_prompt.get(prompt).copied().unwrap_or(0)
    }

    /// Most requests with one prompt.
    pub fn most_calls(&self) -> usize {
        self.counts.lock().unwrap().by_prompt.values().copied().max().unwrap_or(0)
    }
}

fn serve(stream: TcpStream, behaviour: &Behaviour, counts: &Mutex<RequestCounts>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    while let Some((path, headers, body)) = read(&mut reader) {
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let prompt = prompt_of(&body);
        let (number, seen) = {
            let mut counts = counts.lock().unwrap();
            counts.all += 1;
            let seen = counts.by_prompt.entry(prompt.clone()).or_default();
            *seen += 1;
            let seen = *seen;
            (counts.all, seen)
        };
        let at = Instant::now();
        let request = EndpointRequest { path, headers, body, prompt, number, seen, at };
        if write(&mut writer, &behaviour(&request)).is_none() {
            return;
        }
    }
}

fn prompt_of(body: &Value) -> String {
    let last = body["messages"].as_array().and_then(|messages| messages.last());
    let text = last.map_or(&body["input"], |message| &message["content"]);
    text.as_str().map_or_else(|| text.to_string(), Into::into)
}

type RequestParts = (String, HashMap<String, String>, Vec<u8>);

fn read(reader: &mut impl BufRead) -> Option<RequestParts> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = HashMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, headers, body))
}

/// Writes the reply; `None` if the connection is at its end.
fn write(to: &mut TcpStream, reply: &EndpointReply) -> Option<()> {
    if !reply.delay.is_zero() {
        let (_keep_open, never) = std::sync::mpsc::channel::<()>();
        let _ = never.recv_timeout(reply.delay);
    }
    let mut bytes = format!("HTTP/1.1 {} X\r\n", reply.status).into_bytes();
    if !reply.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        bytes.extend_from_slice(b"content-type: application/json\r\n");
    }
    for (name, value) in &reply.headers {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", reply.body.len()).as_bytes());
    let body = &reply.body[..reply.cut_at.unwrap_or(reply.body.len()).min(reply.body.len())];
    bytes.extend_from_slice(body);
    to.write_all(&bytes).ok()?;
    reply.cut_at.is_none().then_some(())
}
