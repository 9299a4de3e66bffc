//! `promptmill documents`: a folder of documents into a batch file.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::ValueHint;

use super::{Exit, Failure, print, say};
use crate::documents::{Night, Recipe, gather};

/// Make a batch file of a folder of documents, for run or enqueue under one --batch every night
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder of documents
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    source: PathBuf,
    /// What is asked about them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    recipe: PathBuf,
    /// The batch file that is written
    #[arg(long, value_name = "FILE", required_unless_present = "preview")]
    out: Option<PathBuf>,
    /// Print the first N requests and their tokens instead
    #[arg(long, value_name = "N", conflicts_with = "out")]
    preview: Option<usize>,
}

pub(super) async fn run(args: Args) -> Result<Exit, Failure> {
    let read = tokio::task::spawn_blocking(move || {
        let recipe = Recipe::load(&args.recipe).map_err(Failure::usage)?;
        let night = gather(&args.source, &recipe).map_err(Failure::usage)?;
        if let Some(out) = &args.out {
            write(&night, out).map_err(Failure::unreachable)?;
        }
        Ok::<_, Failure>((night, args.preview))
    });
    let (night, preview) = read.await.map_err(Failure::unreachable)??;
    for prompt in night.prompts.iter().take(preview.unwrap_or(0)) {
        print(&prompt.body);
        say(&format!("{} tokens", prompt.tokens));
    }
    for unread in &night.unread {
        say(&format!("{}: {}", unread.document, unread.why));
    }
    let tokens: u64 = night.prompts.iter().map(|prompt| prompt.tokens).sum();
    say(&format!(
        "{} documents, {} of them unread; {} parts, {} different prompts, {tokens} tokens of text",
        night.documents,
        night.unread.len(),
        night.parts,
        night.prompts.len()
    ));
    Ok(if night.unread.is_empty() { Exit::AllDone } else { Exit::SomeFailed })
}

/// The file appears whole, under its name, at the end.
fn write(night: &Night, out: &std::path::Path) -> anyhow::Result<()> {
    use anyhow::Context;
    let failed = || format!("can't write {}", out.display());
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| std::path::Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    let mut to = BufWriter::new(&mut file);
    night.write(&mut to).and_then(|()| to.flush()).with_context(failed)?;
    drop(to);
    file.persist(out).with_context(failed)?;
    Ok(())
}
