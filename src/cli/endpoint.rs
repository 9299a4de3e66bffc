//! Flags for the endpoint that is called, its key, and its limits.

use std::path::PathBuf;

use super::exit::CommandError;
use crate::config::DeploymentConfig;

#[derive(Debug, clap::Args)]
pub(super) struct EndpointFlags {
    /// URL of Azure OpenAI, an API Management gateway, or any OpenAI-compatible server
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,
    /// Use Azure's deployments path with this API version
    #[arg(long, value_name = "VERSION", requires = "endpoint")]
    api_version: Option<String>,
    /// Variable that holds the API key [default: AZURE_OPENAI_API_KEY, then OPENAI_API_KEY]
    #[arg(long, value_name = "VARIABLE", requires = "endpoint")]
    api_key_env: Option<String>,
    /// File that holds the API key
    #[arg(long, value_name = "FILE", requires = "endpoint", conflicts_with = "api_key_env")]
    api_key_file: Option<PathBuf>,
    /// Header that carries the key, such as Ocp-Apim-Subscription-Key for API Management
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    api_key_header: Option<String>,
}

impl EndpointFlags {
    /// Builds the deployment that the flags name, without other settings of the configuration.
    pub(super) fn deployment(&self, deployment: Option<&str>) -> DeploymentConfig {
        DeploymentConfig {
            endpoint: self.endpoint.clone().unwrap_or_default(),
            api_version: self.api_version.clone(),
            deployment: deployment.map(Into::into),
            key_env: self.api_key_env.clone(),
            key_file: self.api_key_file.clone(),
            key_header: self.api_key_header.clone(),
            ..DeploymentConfig::default()
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct LimitFlags {
    /// Deployment's quota in tokens a minute
    #[arg(long, value_name = "N")]
    pub(super) tpm: Option<u64>,
    /// Deployment's quota in requests a minute
    #[arg(long, value_name = "N")]
    pub(super) rpm: Option<u64>,
    /// Calls in flight at a time [default: 64]
    #[arg(long, value_name = "N")]
    pub(super) concurrency: Option<usize>,
}

impl LimitFlags {
    pub(super) fn is_given(&self) -> bool {
        self.tpm.is_some() || self.rpm.is_some() || self.concurrency.is_some()
    }

    /// Applies the limits to the only deployment.
    pub(super) fn apply(&self, deployments: &mut [DeploymentConfig]) -> Result<(), CommandError> {
        match deployments {
            _ if !self.is_given() => Ok(()),
            [one] => {
                one.tpm = self.tpm.or(one.tpm);
                one.rpm = self.rpm.or(one.rpm);
                one.concurrency = self.concurrency.or(one.concurrency);
                let zero = [one.tpm, one.rpm, one.concurrency.map(|c| c as u64)].contains(&Some(0));
                if zero {
                    let message = "--tpm, --rpm and --concurrency must be at least 1";
                    return Err(CommandError::usage_text(message));
                }
                Ok(())
            }
            _ => Err(CommandError::usage_text(
                "--tpm, --rpm and --concurrency are for one deployment; \
                 the configuration has several: set theirs in [[deployments]]",
            )),
        }
    }
}
