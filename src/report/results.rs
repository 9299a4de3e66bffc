//! Outcomes become the output and error files of the OpenAI/Azure Batch format.
//!
//! A line: `{"id","custom_id","response":{"status_code","request_id","body"},"error"}`. Answers go to
//! the output file, all other endings to the error file. Where the service itself refused, its words
//! stand in `response` and `error` is null, as in the Batch API; where we gave up, `error` says why.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::job::BatchId;
use crate::outcome::{Ending, Outcome};
use crate::store::{Order, Store, StoreError};

/// Why results could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("can't write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the stored body of '{custom_id}' is not JSON")]
    Body { custom_id: String, source: serde_json::Error },
}

/// Where the lines go.
#[derive(Debug, Clone)]
pub struct Paths {
    pub out: PathBuf,
    pub errors: PathBuf,
}

/// Lines written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    pub results: u64,
    pub errors: u64,
}

/// Streams a batch's outcomes into the two files. A file appears whole, under its name, at the end.
/// `first_errors` may put lines before the outcomes' errors: those of the input.
///
/// # Errors
/// If the store or a file fails; earlier files stay as they were.
pub async fn write(
    store: &dyn Store,
    batch: &BatchId,
    order: Order,
    paths: &Paths,
    first_errors: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Written, ResultsError> {
    let mut out = Target::create(&paths.out)?;
    let mut errors = Target::create(&paths.errors)?;
    first_errors(&mut errors.file).map_err(|source| errors.failed(source))?;
    let mut written = Written::default();
    let mut outcomes = store.outcomes(batch, order).await?;
    while let Some(outcome) = outcomes.next().await {
        let outcome = outcome?;
        let (target, count) = if outcome.ending == Ending::Succeeded {
            (&mut out, &mut written.results)
        } else {
            (&mut errors, &mut written.errors)
        };
        let line = line_of(&outcome).map_err(|source| ResultsError::Body {
            custom_id: outcome.custom_id.clone(),
            source,
        })?;
        target.file.write_all(&line).map_err(|source| target.failed(source))?;
        *count += 1;
    }
    out.finish()?;
    errors.finish()?;
    Ok(written)
}

/// One outcome as one line.
fn line_of(outcome: &Outcome) -> Result<Vec<u8>, serde_json::Error> {
    let body: Option<&RawValue> =
        outcome.body.as_deref().map(serde_json::from_slice).transpose()?;
    let response = outcome.status_code.map(|status_code| Response {
        status_code,
        request_id: outcome.request_id.as_deref(),
        body,
    });
    let said_by_service = response.is_some() && body.is_some() && outcome.ending == Ending::Failed;
    let error = outcome.failure.as_ref().filter(|_| !said_by_service).map(|failure| Error {
        code: &failure.code,
        message: &failure.message,
        ending: outcome.ending,
        attempts: outcome.attempts,
    });
    let line = Line {
        id: format!("batch_req_{}", outcome.job_id),
        custom_id: &outcome.custom_id,
        response,
        error,
    };
    let mut bytes = Vec::with_capacity(256 + outcome.body.as_ref().map_or(0, |body| body.len()));
    serde_json::to_writer(&mut bytes, &line)?;
    // A body may have been sent over several lines; a line of the file must be one.
    if bytes.contains(&b'\n') {
        bytes.iter_mut().filter(|byte| **byte == b'\n' || **byte == b'\r').for_each(|b| *b = b' ');
    }
    bytes.push(b'\n');
    Ok(bytes)
}

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<Response<'a>>,
    error: Option<Error<'a>>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: Option<&'a str>,
    body: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    message: &'a str,
    ending: Ending,
    attempts: u32,
}

/// A file under a temporary name beside its own, or standard output.
struct Target {
    path: PathBuf,
    file: BufWriter<Box<dyn Write + Send>>,
    temporary: Option<tempfile::TempPath>,
}

impl Target {
    fn create(path: &Path) -> Result<Self, ResultsError> {
        let failed = |source| ResultsError::Write { path: path.to_owned(), source };
        let path = path.to_owned();
        // Pipes, terminals and /dev/null can't be replaced, only written to.
        let special = path.metadata().is_ok_and(|m| !m.is_file());
        if path.as_os_str() == "-" {
            let file = BufWriter::new(Box::new(io::stdout()) as Box<dyn Write + Send>);
            return Ok(Self { path, file, temporary: None });
        }
        if special {
            let file = File::options().write(true).open(&path).map_err(failed)?;
            let file = BufWriter::new(Box::new(file) as Box<dyn Write + Send>);
            return Ok(Self { path, file, temporary: None });
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".promptmill-")
            .permissions(permissions())
            .tempfile_in(folder)
            .map_err(failed)?;
        let (file, temporary) = temporary.into_parts();
        let file = BufWriter::with_capacity(256 * 1024, Box::new(file) as Box<dyn Write + Send>);
        Ok(Self { path, file, temporary: Some(temporary) })
    }

    fn finish(mut self) -> Result<(), ResultsError> {
        self.file.flush().map_err(|source| self.failed(source))?;
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        temporary.persist(&self.path).map_err(|e| self.failed(e.error))
    }

    fn failed(&self, source: io::Error) -> ResultsError {
        ResultsError::Write { path: self.path.clone(), source }
    }
}

/// What a new file usually gets; temporary files are private by default.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}
