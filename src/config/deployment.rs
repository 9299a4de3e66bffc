//! One deployment as it is configured, and what is made of it.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use admission::Member;
use admission::deployment::{Limits, Service};
use domain::prices::Prices;
use identity::Identity;
use model::endpoint::{Endpoint, EndpointError, Given};
use model::tokens::Tokens;
use model::{Client, Tier};
use worker::Target;

/// The variables that a key is looked for in where none is named.
const USUAL_KEY_VARIABLES: [&str; 2] = ["AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"];

/// Calls in flight at a time for one deployment, where nothing was said.
pub const DEFAULT_CONCURRENCY: usize = 64;

/// One deployment of a model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Deployment {
    /// What outcomes, logs and reports call it; the deployment's or the host's name if absent.
    pub name: Option<String>,
    pub endpoint: String,
    pub api_version: Option<String>,
    /// Its name at the service, where that differs from the model.
    pub deployment: Option<String>,
    /// The model it serves; absent: whatever is asked for.
    pub model: Option<String>,
    /// More names that jobs may ask for it by.
    pub models: Vec<String>,
    /// 0 is asked first.
    pub tier: u8,
    /// Its part of the work while its whole tier has room; absent: by the quotas.
    pub weight: Option<f64>,
    pub tpm: Option<u64>,
    pub rpm: Option<u64>,
    pub concurrency: Option<usize>,
    /// Provisioned throughput: no quota a minute.
    pub ptu: bool,
    /// Calls ask for the flex tier.
    pub flex: bool,
    /// The part of the quota that is left to others, from 0 to below 1.
    pub reserve: f64,
    pub key_env: Option<String>,
    pub key_file: Option<PathBuf>,
    pub key_header: Option<String>,
    /// Entra ID instead of a key.
    pub credential: Option<Identity>,
    /// Whom the tokens are for, where the endpoint's usual scope is not right.
    pub token_scope: Option<String>,
}

impl Deployment {
    /// # Errors
    /// If a value is out of its range, or two exclude each other.
    pub(super) fn check(&self, n: usize) -> Result<(), ConfigError> {
        let range = |is_right: bool, name: &str, must| match is_right {
            true => Ok(()),
            false => Err(ConfigError::Range { key: format!("deployments.{n}.{name}"), must }),
        };
        range((0.0..1.0).contains(&self.reserve), "reserve", "from 0 to below 1")?;
        let weighs = self.weight.is_none_or(|weight| weight.is_finite() && weight > 0.0);
        range(weighs, "weight", "above 0")?;
        if self.ptu && (self.tpm.is_some() || self.flex) {
            return Err(ConfigError::PtuWithQuota(n));
        }
        Ok(())
    }

    /// Ready to be called.
    pub(super) fn target(&self, request_timeout: Duration) -> Result<Target, ConfigError> {
        let endpoint = self.endpoint(self.key()?)?;
        let member = self.member_at(&endpoint);
        let tokens = self.tokens(&member.name, endpoint.token_scope())?;
        let client = Client::new(endpoint, request_timeout)?;
        let client = client.with_tier(if self.flex { Tier::Flex } else { Tier::AsAsked });
        Ok(Target { member, client: tokens.into_iter().fold(client, Client::with_tokens) })
    }

    /// As admission knows it: for who calls nobody and needs no key.
    pub(super) fn member(&self) -> Result<Member, ConfigError> {
        Ok(self.member_at(&self.endpoint(None)?))
    }

    fn endpoint(&self, key: Option<SecretString>) -> Result<Endpoint, EndpointError> {
        Endpoint::new(Given {
            url: self.endpoint.clone(),
            api_version: self.api_version.clone(),
            deployment: self.name_at_service(),
            key,
            key_header: self.key_header.clone(),
        })
    }

    fn member_at(&self, endpoint: &Endpoint) -> Member {
        let host = endpoint.base().host_str().unwrap_or_default().to_owned();
        let plain_name = || self.deployment.clone().unwrap_or(host);
        // Two lanes of one deployment need two names.
        let lane_name = || if self.flex { plain_name() + "-flex" } else { plain_name() };
        let models = self.names();
        Member {
            name: self.name.clone().unwrap_or_else(lane_name),
            quota: endpoint.quota_key(models.first().map(String::as_str)),
            models,
            tier: self.tier,
            weight: self.weight,
            limits: self.limits(),
        }
    }

    /// All names that jobs may ask for it by; none: it serves whatever is asked for.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.model.iter().chain(&self.models).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether jobs for the model can go to it.
    pub fn serves(&self, model: &str) -> bool {
        let names = self.names();
        names.is_empty() || names.iter().any(|name| name == model)
    }

    /// Whether it is known what a job for the model costs here.
    pub fn has_price(&self, model: &str, prices: &Prices) -> bool {
        let names = self.names();
        let mut names = std::iter::once(model).chain(names.iter().map(String::as_str));
        names.any(|name| prices.of(name).is_some())
    }

    /// What people know it by.
    pub fn shown_name(&self) -> String {
        let name = self.name.as_ref().or(self.deployment.as_ref()).or(self.model.as_ref());
        name.unwrap_or(&self.endpoint).clone()
    }

    /// What the service calls it. Where jobs have several names for it, none of theirs can be sent.
    fn name_at_service(&self) -> Option<String> {
        let first = || self.model.as_ref().or(self.models.first()).cloned();
        self.deployment.clone().or_else(|| first().filter(|_| !self.models.is_empty()))
    }

    fn limits(&self) -> Limits {
        Limits {
            tpm: self.tpm,
            rpm: self.rpm,
            concurrency: self.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
            service: match (self.ptu, self.flex) {
                (true, _) => Service::Provisioned,
                (_, true) => Service::Flex,
                _ => Service::Standard,
            },
            reserve: self.reserve,
        }
    }

    fn tokens(&self, name: &str, usual_scope: &str) -> Result<Option<Tokens>, ConfigError> {
        let name = || name.to_owned();
        let Some(identity) = &self.credential else {
            return match self.token_scope {
                Some(_) => Err(ConfigError::ScopeWithoutCredential(name())),
                None => Ok(None),
            };
        };
        if self.key_env.is_some() || self.key_file.is_some() {
            return Err(ConfigError::KeyBesideCredential(name()));
        }
        let credential = identity.credential();
        let credential =
            credential.map_err(|source| ConfigError::Identity { name: name(), source })?;
        Ok(Some(Tokens::new(credential, self.token_scope.as_deref().unwrap_or(usual_scope))))
    }

    fn key(&self) -> Result<Option<SecretString>, ConfigError> {
        if self.credential.is_some() {
            return Ok(None);
        }
        if let Some(path) = &self.key_file {
            let key = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::KeyFile { path: path.clone(), source })?;
            return Ok(Some(key.trim().to_owned().into()));
        }
        if let Some(variable) = &self.key_env {
            let key = std::env::var(variable)
                .map_err(|_| ConfigError::NoKeyVariable(variable.clone()))?;
            return Ok(Some(key.into()));
        }
        Ok(USUAL_KEY_VARIABLES.iter().find_map(|name| std::env::var(name).ok()).map(Into::into))
    }
}
