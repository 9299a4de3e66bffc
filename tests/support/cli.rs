//! The real binary in a folder of its own, and the files it leaves.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

/// A folder to run the binary in.
pub struct Place(tempfile::TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.path(name), content).unwrap();
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_promptmill"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        for name in ["AZURE_OPENAI_API_KEY", "OPENAI_API_KEY", "PROMPTMILL_LOG"] {
            command.env_remove(name);
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        Ended::from(self.command(args).output().unwrap())
    }

    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
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

/// How a run of the binary ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
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
