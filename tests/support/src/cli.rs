//! The real binary in a folder of its own, and the files it leaves.
//!
//! It always logs everything, so that `secrets` can look through it; tests see what it says by
//! default, unless they ask for the rest.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use std::process::ExitStatus;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::secrets;

/// A folder to run the binary in.
pub struct Place(tempfile::TempDir, AtomicUsize);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap(), AtomicUsize::new(0))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), content).unwrap();
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"] {
            command.env_remove(name);
        }
        command.env("PROMPTMILL_LOG", if is_measured() { "info" } else { "trace" });
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::from(self.command(args).output().unwrap())
    }

    /// Starts a process that writes to files: nobody reads a pipe while it is at work.
    pub fn spawn(&self, args: &[&str]) -> Running {
        let number = self.1.fetch_add(1, Ordering::Relaxed);
        let paths = ["out", "err"].map(|what| self.path(&format!("process-{number}.{what}")));
        let [out, err] = paths.each_ref().map(|path| File::create(path).unwrap());
        let child = self.command(args).stdout(out).stderr(err).spawn().unwrap();
        Running { child, paths, checked: false }
    }

    /// The custom_ids of a results or errors file, in its order.
    pub fn ids(&self, name: &str) -> Vec<String> {
        let id = |line: Value| line["custom_id"].as_str().unwrap().to_owned();
        self.lines(name).into_iter().map(id).collect()
    }

    pub fn lines(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.path(".promptmill/promptmill.db")).unwrap()
    }

    /// Jobs in the queue; 0 also where there is none.
    pub fn queued(&self) -> i64 {
        if !Path::exists(&self.path(".promptmill/promptmill.db")) {
            return 0;
        }
        self.database().query_row("SELECT count(*) FROM queue", [], |row| row.get(0)).unwrap()
    }
}

/// The binary under test; `benches/scale` names one that was built to be fast.
pub fn program() -> OsString {
    std::env::var_os("PROMPTMILL_MEASURED_PROGRAM").unwrap_or_else(built_program)
}

/// The program that cargo built beside the test that runs.
fn built_program() -> OsString {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join("promptmill").into_os_string()
}

fn is_measured() -> bool {
    std::env::var_os("PROMPTMILL_MEASURED_PROGRAM").is_some()
}

/// A process of the binary. It is killed with this value.
pub struct Running {
    child: Child,
    paths: [PathBuf; 2],
    checked: bool,
}

impl Running {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// What it has written to stdout so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.paths[0]).unwrap()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.paths[1]).unwrap()
    }

    /// The address that it says it serves on, when it has it.
    pub async fn address(&mut self) -> String {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let said = async {
            loop {
                tick.tick().await;
                let out = self.said();
                if let Some(line) = out.lines().find(|line| line.starts_with("http://")) {
                    return line.to_owned();
                }
                assert!(
                    self.is_running(),
                    "it ended: {}",
                    std::fs::read_to_string(&self.paths[1]).unwrap()
                );
            }
        };
        tokio::time::timeout(Duration::from_secs(60), said).await.unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn wait(&mut self) -> Ended {
        let status = self.child.wait().unwrap();
        self.ended(status)
    }

    fn ended(&mut self, status: ExitStatus) -> Ended {
        let [stdout, stderr] = self.paths.each_ref().map(|path| std::fs::read(path).unwrap());
        self.checked = true;
        Ended::from(Output { status, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let status = self.child.wait();
        if !std::thread::panicking() && !self.checked {
            self.ended(status.unwrap());
        }
    }
}

/// How a run of the binary ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    /// What it says by default.
    pub err: String,
    /// All that went to stderr.
    pub log: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let [out, log] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        secrets::check(&out);
        secrets::check(&log);
        let err = log.lines().filter(|line| !is_quiet(line)).map(|line| format!("{line}\n"));
        Self { code: output.status.code(), err: err.collect(), out, log }
    }
}

/// Whether this is a log line that is not shown by default: those start with a coloured time.
fn is_quiet(line: &str) -> bool {
    let is_log = line.starts_with("\u{1b}[2m20");
    is_log && !["WARN", "ERROR"].iter().any(|level| line[..60.min(line.len())].contains(level))
}

/// One chat line of a batch file.
pub fn chat(custom_id: &str, prompt: &str, max_tokens: u32) -> Value {
    json!({
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-4.1-mini",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
        },
    })
}

/// A batch file of this many chat lines, all different.
pub fn chats(n: usize) -> String {
    (0..n).map(|i| format!("{}\n", chat(&format!("job-{i}"), &format!("prompt {i}"), 32))).collect()
}
