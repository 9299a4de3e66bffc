//! `promptmill config`: what is in force, and where it comes from.

use super::{Exit, Failure, print};
use crate::config::{Config, Layers};

/// Print the effective configuration, secrets hidden, each value with where it came from
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, config: &Config, layers: &Layers) -> Result<Exit, Failure> {
    let text = layers.explain(config).map_err(Failure::usage)?;
    print(text.trim());
    Ok(Exit::AllDone)
}
