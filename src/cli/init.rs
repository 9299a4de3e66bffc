//! `promptmill init`: creates what the configured backends need.

use super::{Exit, Failure, print, say};
use crate::backends;
use crate::config::{self, Config};

/// Create the database and its containers, or the local state file; what is there stays
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) async fn run(_args: Args, config: Config) -> Result<Exit, Failure> {
    for line in backends::init(&config).await? {
        print(&format!("ready: {line}"));
    }
    if let config::Queue::ServiceBus(settings) = &config.queue {
        say(&format!(
            "note: the Service Bus queue '{}' is created in Azure, not here; switch duplicate \
             detection on for it",
            settings.queue
        ));
    }
    Ok(Exit::AllDone)
}
