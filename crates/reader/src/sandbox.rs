//! Sandbox for readers: a process of its own, this program again, with one document to read.
//!
//! The child limits itself before it opens the file, on Linux by address space and processor time,
//! and gets no environment, so no keys either. The parent waits no longer than the limit, reads no
//! more than the limit, and converts every way to die into a [`ReadError`].

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::read::{SniffedFile, read};
use super::{Document, ReadError, ReadLimits, kind};

/// The hidden command that reads one document; its one argument is a [`ReadRequest`] in JSON.
const COMMAND: &str = "documents-reader";

/// Most bytes read of the child's stderr.
const STDERR_BYTES: u64 = 16 << 10;

/// Request to the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadRequest {
    pub path: PathBuf,
    pub name: String,
    pub limits: ReadLimits,
}

/// Reads like [`read()`], but the intricate kinds (all but plain text, rows and images) in a
/// process of their own, which runs `program`, this one, as its hidden command `documents-reader`.
///
/// # Errors
/// Those of [`read()`], and if the child takes too long or too much memory, or dies.
pub async fn read_sandboxed(
    program: &Path,
    path: &Path,
    name: &str,
    limits: &ReadLimits,
) -> Result<Document, ReadError> {
    let request = ReadRequest { path: path.into(), name: name.into(), limits: limits.clone() };
    let in_process = tokio::task::spawn_blocking({
        let request = request.clone();
        move || {
            let ReadRequest { path, name, limits } = &request;
            let kind = kind::detect(&SniffedFile::at(path, limits)?.head, name)?;
            if kind.needs_sandbox() { Ok(None) } else { read(path, name, limits).map(Some) }
        }
    });
    match in_process.await.map_err(|error| ReadError::Died { how: error.to_string() })?? {
        Some(document) => Ok(document),
        None => read_in_child(program, &request).await,
    }
}

/// Runs in the child: limits the process, reads, and answers in JSON.
///
/// # Errors
/// If it can't be limited or the answer can't be written; the result of reading is in the answer.
pub fn answer_request(request: &ReadRequest, to: &mut dyn io::Write) -> io::Result<()> {
    bound_this_process(&request.limits)?;
    let limits = &request.limits;
    let read = read(&request.path, &request.name, limits).map_err(|error| match error {
        // Reading a file into memory reports this as an error; other allocations abort.
        ReadError::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => {
            ReadError::TooMuchMemory { limit: limits.memory_bytes }
        }
        error => error,
    });
    serde_json::to_writer(to, &read)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn bound_this_process(limits: &ReadLimits) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let bound = |resource, most: u64| {
        // The hard limit, which kills, is just above the soft one, whose signal can be reported.
        let maximum = Some(most.saturating_add(1));
        setrlimit(resource, Rlimit { current: Some(most), maximum })
    };
    bound(Resource::As, limits.memory_bytes.saturating_add(address_space()?))?;
    // The parent ends it on time. This is for the case that the parent is gone.
    bound(Resource::Cpu, limits.time.as_secs().saturating_add(2))?;
    // No core dump: it would hold the document.
    bound(Resource::Core, 0)?;
    Ok(())
}

/// Returns the address space of the program before it reads anything, in bytes.
#[cfg(target_os = "linux")]
fn address_space() -> io::Result<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = pages.split(' ').next().and_then(|all| all.parse().ok()).unwrap_or_default();
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// Other systems lack such limits, or set them otherwise: only the parent's timeout holds.
#[cfg(not(target_os = "linux"))]
fn bound_this_process(_: &ReadLimits) -> io::Result<()> {
    Ok(())
}

async fn read_in_child(program: &Path, request: &ReadRequest) -> Result<Document, ReadError> {
    let limits = &request.limits;
    let request_json = serde_json::to_string(request).map_err(|e| ReadError::Start(e.into()))?;
    let mut child = Command::new(program)
        .arg(COMMAND)
        .arg(request_json)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(ReadError::Start)?;
    // JSON writes a control character in six bytes. Past that the child does not keep its limits.
    let most = limits.text_bytes.saturating_mul(6).saturating_add(STDERR_BYTES);
    let end = tokio::time::timeout(limits.time, wait_for_exit(&mut child, most));
    let (answer, stderr, status) = match end.await {
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
        return Err(exit_error(status, &stderr, limits));
    }
    serde_json::from_slice::<Result<Document, ReadError>>(&answer)
        .map_err(|error| ReadError::Died { how: format!("its answer makes no sense, {error}") })?
}

/// Returns what the child wrote to its two pipes, and its exit status.
async fn wait_for_exit(child: &mut Child, most: u64) -> io::Result<(Vec<u8>, String, ExitStatus)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (answer, stderr_bytes) =
        tokio::join!(read_up_to(stdout, most + 1), read_up_to(stderr, STDERR_BYTES));
    // The pipes are closed by now, so a child with more to write ends too.
    let status = child.wait().await?;
    Ok((answer?, String::from_utf8_lossy(&stderr_bytes?).into_owned(), status))
}

async fn read_up_to(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(most).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn exit_error(status: ExitStatus, stderr: &str, limits: &ReadLimits) -> ReadError {
    // Message of Rust's allocator before it aborts.
    if stderr.contains("memory allocation of") {
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
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    // A panic's message is in the line after its location.
    let why = if first.contains("panicked at") { lines.next().unwrap_or(first) } else { first };
    let how = if why.is_empty() { status.to_string() } else { format!("{status}: {why}") };
    ReadError::Died { how }
}
