//! `promptmill documents-reader`: one document, read apart. Not for people: `documents` starts it.

use std::io::{BufWriter, Write};

use super::{Exit, Failure};
use reader::{Request, answer};

/// Read one document within bounds
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to read and within which bounds, as JSON
    request: String,
}

pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let request: Request = serde_json::from_str(&args.request).map_err(Failure::usage)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    answer(&request, &mut out).and_then(|()| out.flush()).map_err(Failure::unreachable)?;
    Ok(Exit::AllDone)
}
