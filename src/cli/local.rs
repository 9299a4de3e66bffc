//! Flags of commands that do all the work themselves: the deployment that answers, and the
//! directory of the queue and the outcomes.

use std::path::PathBuf;

use super::endpoint::{EndpointFlags, LimitFlags};
use super::exit::CommandError;
use super::failure_rate::FailureRateFlag;
use crate::app::simulated;
use crate::config::{Config, DeploymentConfig};
use domain::job::BatchId;
use simulator::Simulator;

#[derive(Debug, clap::Args)]
pub(super) struct LocalFlags {
    /// Directory of the queue and the outcomes [default: .promptmill]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Answer from the built-in Azure OpenAI simulator: no key, no network, no cost
    #[arg(long, conflicts_with = "endpoint")]
    pub(super) simulate: bool,
    #[command(flatten)]
    endpoint_flags: EndpointFlags,
    /// Deployment name, if it is not the jobs' model
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    deployment: Option<String>,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    failure_rate: FailureRateFlag,
}

impl LocalFlags {
    /// Returns whether any of them was given.
    #[cfg(feature = "documents")]
    pub(super) fn is_given(&self) -> bool {
        self.state.is_some()
            || self.simulate
            || self.endpoint_flags.endpoint.is_some()
            || self.limits.is_given()
            || self.failure_rate.is_given()
    }

    /// Applies the flags to the configuration.
    pub(super) fn apply(&self, mut config: Config) -> Result<Config, CommandError> {
        if let Some(dir) = &self.state {
            config.state.dir.clone_from(dir);
        }
        if self.endpoint_flags.endpoint.is_some() || self.simulate {
            let given = self.endpoint_flags.deployment(self.deployment.as_deref());
            let name = self.simulate.then(|| "simulator".into());
            config.deployments = vec![DeploymentConfig { name, ..given }];
        }
        if config.deployments.is_empty() {
            return Err(CommandError::usage_text(
                "no endpoint to send the prompts to: give --endpoint URL, \
                 or --simulate to try it without one",
            ));
        }
        self.limits.apply(&mut config.deployments)?;
        self.failure_rate.apply(&mut config);
        Ok(config)
    }

    /// Returns the name that a batch has where these flags send it: one that the simulator answers
    /// has a name of its own, and no other can have such a name.
    pub(super) fn batch_name(&self, batch: BatchId) -> Result<BatchId, CommandError> {
        if self.simulate {
            return Ok(batch.simulated());
        }
        refuse_simulated(&batch)?;
        Ok(batch)
    }

    /// Starts the simulator, if asked for, with the quota of the deployment.
    pub(super) async fn start_simulator(
        &self,
        mut config: Config,
    ) -> Result<(Option<Simulator>, Config), CommandError> {
        if !self.simulate {
            return Ok((None, config));
        }
        let deployment = &mut config.deployments[0];
        let simulator = simulated::start(deployment).await.map_err(CommandError::internal)?;
        Ok((Some(simulator), config))
    }
}

/// Refuses a name under which only the simulator answers.
pub(super) fn refuse_simulated(batch: &BatchId) -> Result<(), CommandError> {
    if batch.is_simulated() {
        let text = format!(
            "'{batch}' is the name of a simulated batch: choose one without the end '-simulated'"
        );
        return Err(CommandError::usage_text(text));
    }
    Ok(())
}
