//! `promptmill config`: prints the settings in force, with their origins.

use super::exit::{CommandError, ExitStatus};
use super::output::print;
use crate::config::{Config, ConfigLayers};

/// Print the effective configuration: each value with its origin, secrets hidden
#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {}

pub(super) fn run(
    _args: ConfigArgs,
    config: &Config,
    layers: &ConfigLayers,
) -> Result<ExitStatus, CommandError> {
    let text = layers.explain(config).map_err(CommandError::internal)?;
    print(text.trim())?;
    Ok(ExitStatus::AllDone)
}
