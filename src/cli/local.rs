//! The flags of commands that do all of the work themselves: which deployment answers, and where the
//! queue and the outcomes are kept.

use std::path::PathBuf;

use super::Failure;
use super::endpoint::EndpointFlags;
use crate::config::{Config, Deployment};
use crate::simulator::{self, Simulator};

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
    /// The deployment's quota of tokens a minute
    #[arg(long, value_name = "N")]
    tpm: Option<u64>,
    /// The deployment's quota of requests a minute
    #[arg(long, value_name = "N")]
    rpm: Option<u64>,
    /// Calls in flight at a time [default: 64]
    #[arg(long, value_name = "N")]
    concurrency: Option<usize>,
}

impl LocalFlags {
    /// Whether any of them was given.
    pub(super) fn any(&self) -> bool {
        self.state.is_some()
            || self.simulate
            || self.at.endpoint.is_some()
            || self.tpm.is_some()
            || self.rpm.is_some()
            || self.concurrency.is_some()
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
        let limits = [self.tpm.is_some(), self.rpm.is_some(), self.concurrency.is_some()];
        match config.deployments.as_mut_slice() {
            [] => Err(Failure::usage(anyhow::anyhow!(
                "no endpoint to send the prompts to: give --endpoint URL, \
                 or --simulate to try it without one"
            ))),
            [one] => {
                one.tpm = self.tpm.or(one.tpm);
                one.rpm = self.rpm.or(one.rpm);
                one.concurrency = self.concurrency.or(one.concurrency);
                let zero = [one.tpm, one.rpm, one.concurrency.map(|c| c as u64)].contains(&Some(0));
                if zero {
                    let message = "--tpm, --rpm and --concurrency must be at least 1";
                    return Err(Failure::usage(anyhow::anyhow!(message)));
                }
                Ok(config)
            }
            _ if limits.contains(&true) => Err(Failure::usage(anyhow::anyhow!(
                "--tpm, --rpm and --concurrency are for one deployment; \
                 the configuration has several: set theirs in [[deployments]]"
            ))),
            _ => Ok(config),
        }
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
