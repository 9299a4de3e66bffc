//! `promptmill init`: creates what the configured backends need.

use super::exit::{CommandError, ExitStatus};
use super::output::{print, say};
use crate::backends;
use crate::config::Config;

/// Create the queue, the database and its containers, or the local state file, if missing
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {}

pub(super) async fn run(_args: InitArgs, config: Config) -> Result<ExitStatus, CommandError> {
    let ready = backends::init(&config).await?;
    for line in ready.done {
        print(&format!("ready: {line}"))?;
    }
    for line in ready.manual_steps {
        say(&format!("note: {line}"));
    }
    Ok(ExitStatus::AllDone)
}
