//! Reading in a process of its own: this program again, with one document to read.
//!
//! The child bounds itself before it opens the file, on Linux by address space and processor time,
//! and gets no environment, so no keys either. The parent waits no longer than the limit, reads no
//! more than the limit, and makes a [`ReadError`] of every way to die.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::{Document, Limits, Opened, ReadError, kind, read};

/// The hidden command that reads one document; its one argument is a [`Request`] in JSON.
const COMMAND: &str = "documents-reader";

/// What is said of a dying child at most, in bytes.
const LAST_WORDS: u64 = 16 << 10;

/// What the child is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    pub path: PathBuf,
    pub name: String,
    pub limits: Limits,
}

/// As [`read()`], but the intricate kinds (all but plain text, rows and images) in a process of
/// their own, which runs `program`, this one, as its hidden command
/// `documents-reader`.
///
/// # Errors
/// As [`read()`]'s, and if the child takes too long or too much memory, or dies.
pub async fn read_apart(
    program: &Path,
    path: &Path,
    name: &str,
    limits: &Limits,
) -> Result<Document, ReadError> {
    let request = Request { path: path.into(), name: name.into(), limits: limits.clone() };
    let here = tokio::task::spawn_blocking({
        let request = request.clone();
        move || {
            let Request { path, name, limits } = &request;
            let kind = kind::of(&Opened::at(path, limits)?.head, name)?;
            if kind.is_intricate() { Ok(None) } else { read(path, name, limits).map(Some) }
        }
    });
    match here.await.map_err(|error| ReadError::Died { how: error.to_string() })?? {
        Some(document) => Ok(document),
        None => there(program, &request).await,
    }
}

/// What the child does: bounds itself, reads, and answers in JSON.
///
/// # Errors
/// If it can't be bounded or the answer can't be written; how the reading went is in the answer.
pub fn answer(request: &Request, to: &mut dyn io::Write) -> io::Result<()> {
    bound_this_process(&request.limits)?;
    let limits = &request.limits;
    let read = read(&request.path, &request.name, limits).map_err(|error| match error {
        // Whoever reads a file into memory is told kindly, others are ended.
        ReadError::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            ReadError::TooMuchMemory { limit: limits.memory_bytes }
        }
        error => error,
    });
    serde_json::to_writer(to, &read)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn bound_this_process(limits: &Limits) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let bound = |resource, most: u64| {
        // A little later than the bound that can be told by its signal comes the one that kills.
        let maximum = Some(most.saturating_add(1));
        setrlimit(resource, Rlimit { current: Some(most), maximum })
    };
    bound(Resource::As, limits.memory_bytes.saturating_add(address_space()?))?;
    // The parent ends it on time. This is for the case that the parent is no more.
    bound(Resource::Cpu, limits.time.as_secs().saturating_add(2))?;
    // One that dies leaves no core: a document is not to lie about.
    bound(Resource::Core, 0)?;
    Ok(())
}

/// What the program takes before it reads anything, in bytes.
#[cfg(target_os = "linux")]
fn address_space() -> io::Result<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').next().and_then(|all| all.parse().ok()).unwrap_or_default();
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Other systems don't keep such bounds, or not in this way; there the parent's clock is all.
#[cfg(not(target_os = "linux"))]
fn bound_this_process(_: &Limits) -> io::Result<()> {
    Ok(())
}

async fn there(program: &Path, request: &Request) -> Result<Document, ReadError> {
    let limits = &request.limits;
    let question = serde_json::to_string(request).map_err(|e| ReadError::Start(e.into()))?;
    let mut child = Command::new(program)
        .arg(COMMAND)
        .arg(question)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(ReadError::Start)?;
    // JSON writes a control character in six bytes. Past that the child does not keep its limits.
    let most = limits.text_bytes.saturating_mul(6).saturating_add(LAST_WORDS);
    let end = tokio::time::timeout(limits.time, wait(&mut child, most));
    let (answer, last_words, status) = match end.await {
        Ok(ended) => ended?,
        Err(_) => {
            child.kill().await?;
            return Err(ReadError::TooSlow { seconds: limits.time.as_secs_f64() });
        }
    };
    if answer.len() as u64 > most {
        return Err(ReadError::TooMuchText { limit: limits.text_bytes });
    }
    if !status.success() {
        return Err(death(status, &last_words, limits));
    }
    serde_json::from_slice::<Result<Document, ReadError>>(&answer)
        .map_err(|error| ReadError::Died { how: format!("its answer makes no sense, {error}") })?
}

/// What the child wrote to its two pipes, and how it ended.
async fn wait(child: &mut Child, most: u64) -> io::Result<(Vec<u8>, String, ExitStatus)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (answer, last_words) = tokio::join!(all(stdout, most + 1), all(stderr, LAST_WORDS));
    // The pipes are closed by now, so a child that has more to say ends too.
    let status = child.wait().await?;
    Ok((answer?, String::from_utf8_lossy(&last_words?).into_owned(), status))
}

async fn all(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(most).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn death(status: ExitStatus, last_words: &str, limits: &Limits) -> ReadError {
    // What Rust's allocator says before it aborts.
    if last_words.contains("memory allocation of") {
        return ReadError::TooMuchMemory { limit: limits.memory_bytes };
    }
    #[cfg(unix)]
    {
        use rustix::process::Signal;
        use std::os::unix::process::ExitStatusExt;
        if status.signal() == Some(Signal::XCPU.as_raw()) {
            return ReadError::TooSlow { seconds: limits.time.as_secs_f64() };
        }
    }
    let mut lines = last_words.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    // The line after a panic's place is what it says.
    let why = if first.contains("panicked at") { lines.next().unwrap_or(first) } else { first };
    let how = if why.is_empty() { status.to_string() } else { format!("{status}: {why}") };
    ReadError::Died { how }
}
