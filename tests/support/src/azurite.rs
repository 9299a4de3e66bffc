//! Azurite, Microsoft's emulator of Blob Storage, and a container in it that Microsoft's Python SDK
//! fills. Both are processes that end with these values.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

/// The account that every Azurite has, and its key, which is no secret.
const ACCOUNT: &str = "devstoreaccount1";
const KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const AT_MOST: Duration = Duration::from_secs(30);

/// The emulator, and what it logged of requests.
pub struct Azurite {
    child: Child,
    /// Such as `http://127.0.0.1:10000`.
    pub url: String,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Azurite {
    /// None where it is not installed. With a folder that holds `server.pem` and `key.pem` it speaks
    /// TLS and takes Entra ID's tokens, whose signatures it does not look at.
    pub fn start(certificates: Option<&Path>) -> Option<Self> {
        let modules = std::env::var("PROMPTMILL_PEER_NODE_MODULES").ok();
        let Some(modules) = modules.filter(|m| !m.is_empty()) else {
            eprintln!("did not run: PROMPTMILL_PEER_NODE_MODULES is not set");
            return None;
        };
        let mut command = Command::new("node");
        command
            .arg(format!("{modules}/azurite/dist/src/blob/main.js"))
            .args(["--blobPort", "0", "--inMemoryPersistence", "--disableTelemetry"])
            .args(["--skipApiVersionCheck", "--disableProductStyleUrl"]);
        if let Some(folder) = certificates {
            command.arg("--cert").arg(folder.join("server.pem"));
            command.arg("--key").arg(folder.join("key.pem")).args(["--oauth", "basic"]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let said = "successfully listens on ";
        let listens = output.find(|line| line.contains(said)).unwrap();
        let url = listens.split(said).nth(1).unwrap().trim().to_owned();
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let into = log.clone();
        std::thread::spawn(move || {
            for line in output {
                into.0.lock().unwrap().push(line);
                into.1.notify_all();
            }
        });
        Some(Self { child, url, log })
    }

    /// The URL of a container.
    pub fn container(&self, name: &str) -> String {
        format!("{}/{ACCOUNT}/{name}", self.url)
    }

    /// How many blobs were downloaded, once the last download is that of `last`.
    pub fn downloads(&self, last: &str) -> usize {
        let is_download = |line: &&String| line.contains("\"GET ") && !line.contains("comp=list");
        let (lines, more) = &*self.log;
        let lines = lines.lock().unwrap();
        let unseen = |lines: &mut Vec<String>| {
            !lines.iter().rfind(is_download).is_some_and(|line| line.contains(last))
        };
        let (lines, waited) = more.wait_timeout_while(lines, AT_MOST, unseen).unwrap();
        assert!(!waited.timed_out(), "no download of {last}: {lines:#?}");
        lines.iter().filter(is_download).count()
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A container, and who fills it.
pub struct Filler {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Filler {
    /// None where there is no interpreter for it. `ca` is trusted.
    pub fn start(azurite: &Azurite, container: &str, ca: Option<&Path>) -> Option<Self> {
        let python = std::env::var("PROMPTMILL_PEER_PYTHON").ok().filter(|p| !p.is_empty());
        let Some(python) = python else {
            eprintln!("did not run: PROMPTMILL_PEER_PYTHON is not set");
            return None;
        };
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../peers/blob_sdk.py")).args([
            &azurite.url,
            ACCOUNT,
            KEY,
            container,
        ]);
        if let Some(ca) = ca {
            command.arg(ca);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut filler = Self { child, orders, answers };
        assert_eq!(filler.answer(), "ready");
        Some(filler)
    }

    /// Carries out one order of the script's.
    pub fn tell(&mut self, order: &Value) -> Value {
        writeln!(self.orders.as_ref().unwrap(), "{order}").unwrap();
        self.answer()
    }

    pub fn put(&mut self, name: &str, text: &str) {
        self.tell(&json!(["put", name, text]));
    }

    /// A signature that lets its bearer do so much, for so many hours.
    pub fn sas(&mut self, permission: &str, hours: i64) -> String {
        self.tell(&json!(["sas", permission, hours])).as_str().unwrap().to_owned()
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}
