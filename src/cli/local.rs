//! The flags of commands that do all of the work themselves: which deployment answers, and where the
//! queue and the outcomes are kept.

use std::path::PathBuf;

use super::Failure;
use super::endpoint::{EndpointFlags, LimitFlags};
use crate::config::{Config, Deployment};
use simulator::{self, Simulator};

#[derive(Debug, clap::Args)]
pub(super) struct LocalFlags {
    /// Where the queue and the outcomes are kept [default: .promptmill]
    #[arg(long, value_name = "DIR")]
    pub(super) state: Option<PathBuf>,
    /// Answer from the built-in Azure OpenAI simulator: no key, no network, no cost
    #[arg(long, conflicts_with = "endpoint")]
    pub(super) simulate: bool,
    #[command(flatten)]
    at: EndpointFlags,
    /// The deployment's name, where it is not the jobs' model
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    deployment: Option<String>,
    #[command(flatten)]
    limits: LimitFlags,
}

impl LocalFlags {
    /// Whether any of them was given.
    pub(super) fn any(&self) -> bool {
        self.state.is_some()
            || self.simulate
            || self.at.endpoint.is_some()
            || self.limits.is_given()
    }

    /// Lays the flags over the configuration.
    pub(super) fn apply(&self, mut config: Config) -> Result<Config, Failure> {
        if let Some(dir) = &self.state {
            config.state.dir.clone_from(dir);
        }
        if self.at.endpoint.is_some() || self.simulate {
            let given = self.at.deployment(self.deployment.as_deref());
            let name = self.simulate.then(|| "simulator".into());
            config.deployments = vec![Deployment { name, ..given }];
        }
        if config.deployments.is_empty() {
            return Err(Failure::usage(anyhow::anyhow!(
                "no endpoint to send the prompts to: give --endpoint URL, \
                 or --simulate to try it without one"
            )));
        }
        self.limits.set(&mut config.deployments)?;
        Ok(config)
    }

    /// Starts the simulator, where that was asked for, with the quota that the deployment was given.
    pub(super) async fn answering(
        &self,
        mut config: Config,
    ) -> Result<(Option<Simulator>, Config), Failure> {
        if !self.simulate {
            return Ok((None, config));
        }
        let one = &mut config.deployments[0];
        let settings = simulator::Settings {
            tpm: one.tpm,
            rpm: one.rpm,
            ledger_samples: false,
            ..simulator::Settings::default()
        };
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        let simulator = simulator::start(address, settings).await.map_err(Failure::unreachable)?;
        one.endpoint = format!("http://{}/openai/v1", simulator.addr());
        Ok((Some(simulator), config))
    }
}
