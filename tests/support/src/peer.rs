//! A receiver that others wrote the best part of, as a process: it prints its port, then a line of JSON
//! for each request.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

/// A script of `tests/peers` that listens; it ends with this value.
pub struct Peer {
    child: Child,
    pub url: String,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Peer {
    /// None where there is no interpreter for it.
    pub fn start(script: &str, args: &[&str]) -> Option<Self> {
        let python = std::env::var("PROMPTMILL_PEER_PYTHON").ok().filter(|p| !p.is_empty())?;
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../peers/");
        let mut child = Command::new(python)
            .arg(format!("{folder}{script}"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        let lines = Arc::<Mutex<Vec<Value>>>::default();
        let into = lines.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                into.lock().unwrap().push(serde_json::from_str(&line).unwrap());
            }
        });
        Some(Self { child, url: format!("http://127.0.0.1:{}", port.trim()), lines })
    }

    /// What it printed so far.
    pub fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends when its input does, and whatever it started with it.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
