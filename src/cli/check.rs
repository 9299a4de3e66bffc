//! `promptmill check`: tries every configured service and says what is wrong.

use serde_json::json;

use super::{Exit, Failure, print};
use crate::check::{self, Ask};
use crate::config::Config;

/// Try the queue, the store and every deployment; say what is wrong and how to mend it
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print as JSON on standard output
    #[arg(long)]
    json: bool,
    /// Make one short call to each deployment, which is billed, to see the quota that its answer tells
    #[arg(long)]
    call: bool,
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    let targets = config.targets().map_err(Failure::usage)?;
    let ask = if args.call { Ask::AWord } else { Ask::Nothing };
    let findings = check::all(&config, targets, ask).await;
    if args.json {
        print(&json!({ "services": findings }).to_string());
    } else {
        for finding in &findings {
            print(&finding.to_string());
        }
    }
    let all_well = findings.iter().all(|finding| finding.problem.is_none());
    Ok(if all_well { Exit::AllDone } else { Exit::Unreachable })
}
