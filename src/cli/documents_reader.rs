//! `promptmill documents-reader`: reads one document in a sandbox. Internal: `documents` starts it.

use std::io::{BufWriter, Write};

use super::exit::{CommandError, ExitStatus};
use reader::{ReadRequest, answer_request};

/// Read one document within limits
#[derive(Debug, clap::Args)]
pub(super) struct DocumentsReaderArgs {
    /// Document and limits, as JSON
    request: String,
}

pub(super) fn run(args: &DocumentsReaderArgs) -> Result<ExitStatus, CommandError> {
    let request: ReadRequest = serde_json::from_str(&args.request).map_err(CommandError::usage)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    answer_request(&request, &mut out)
        .and_then(|()| out.flush())
        .map_err(CommandError::internal)?;
    Ok(ExitStatus::AllDone)
}
