//! The flags that say which endpoint is called, and with which key.

use std::path::PathBuf;

use crate::config::Deployment;

#[derive(Debug, clap::Args)]
pub(super) struct EndpointFlags {
    /// Azure OpenAI, an API Management gateway, or any OpenAI-compatible server
    #[arg(long, value_name = "URL")]
    pub(super) endpoint: Option<String>,
    /// Use Azure's deployments path with this API version
    #[arg(long, value_name = "VERSION", requires = "endpoint")]
    api_version: Option<String>,
    /// The variable that holds the API key [default: AZURE_OPENAI_API_KEY, then OPENAI_API_KEY]
    #[arg(long, value_name = "VARIABLE", requires = "endpoint")]
    api_key_env: Option<String>,
    /// The file that holds the API key
    #[arg(long, value_name = "FILE", requires = "endpoint", conflicts_with = "api_key_env")]
    api_key_file: Option<PathBuf>,
    /// The header that carries the key, such as Ocp-Apim-Subscription-Key for API Management
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    api_key_header: Option<String>,
}

impl EndpointFlags {
    /// The deployment that the flags name, and no other setting of the configuration.
    pub(super) fn deployment(&self, deployment: Option<&str>) -> Deployment {
        Deployment {
            endpoint: self.endpoint.clone().unwrap_or_default(),
            api_version: self.api_version.clone(),
            deployment: deployment.map(Into::into),
            key_env: self.api_key_env.clone(),
            key_file: self.api_key_file.clone(),
            key_header: self.api_key_header.clone(),
            ..Deployment::default()
        }
    }
}
