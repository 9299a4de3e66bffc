//! `promptmill init`: creates what the configured backends need.

use super::{Exit, Failure, print, say};
use crate::backends;
use crate::config::Config;

/// Create the queue, the database and its containers, or the local state file; what is there stays
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_args: Args, config: Config) -> Result<Exit, Failure> {
    let ready = backends::init(&config).await?;
    for line in ready.done {
        print(&format!("ready: {line}"));
    }
    for line in ready.left {
        say(&format!("note: {line}"));
    }
    Ok(Exit::AllDone)
}
