//! Configuration of one deployment, and the call target and admission member built from it.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, ConfigFault};
use super::sections::WorkerConfig;
use admission::PoolMember;
use admission::deployment::DeploymentLimits;
#[cfg(not(feature = "azure"))]
use domain::build_feature::MissingFeatureError;
use domain::deployment::ServiceKind;
use domain::prices::Prices;
use identity::Identity;
use model::endpoint::{Endpoint, EndpointConfig, EndpointError};
use model::entra::BearerTokenCache;
use model::{CallTimeouts, ModelClient, ServiceTier};
use worker::WorkerTarget;

/// Environment variables searched for a key when the configuration names none.
const DEFAULT_KEY_VARIABLES: [&str; 2] = ["AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"];

/// Default limit of calls in flight at one deployment of which no quota is known.
pub const DEFAULT_CONCURRENCY: usize = 64;

/// Default limit where a known quota limits the calls: some 100 to 200 MB of connections and answers.
const MOST_PACED_CALLS: usize = 4096;

/// Open files that are kept for all else: the state file, the queue, the store, logs.
const OTHER_FILES: u64 = 256;

/// One deployment of a model.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeploymentConfig {
    /// Name in outcomes, logs and reports; absent: the deployment's or the host's name.
    pub name: Option<String>,
    pub endpoint: String,
    pub api_version: Option<String>,
    /// Deployment name at the service, if it differs from the model.
    pub deployment: Option<String>,
    /// Model that it serves; without this and `models`: any.
    pub model: Option<String>,
    /// Further model names that jobs may use for it.
    pub models: Vec<String>,
    /// Tier of preference: 0 is used first.
    pub tier: u8,
    /// Share of the work while its whole tier has room; absent: by the quotas.
    pub weight: Option<f64>,
    pub tpm: Option<u64>,
    pub rpm: Option<u64>,
    pub concurrency: Option<usize>,
    /// Provisioned throughput: no quota a minute.
    pub ptu: bool,
    /// Calls request the flex tier.
    pub flex: bool,
    /// Fraction of the quota left to other callers, from 0 to below 1.
    pub reserve: f64,
    /// Time limits of its calls, instead of the worker's.
    pub request_timeout_seconds: Option<u64>,
    pub first_byte_timeout_seconds: Option<u64>,
    pub idle_timeout_seconds: Option<u64>,
    pub key_env: Option<String>,
    pub key_file: Option<PathBuf>,
    pub key_header: Option<String>,
    /// Entra ID instead of a key.
    pub credential: Option<Identity>,
    /// Scope of the Entra ID tokens, if the endpoint's usual one is wrong.
    pub token_scope: Option<String>,
}

impl DeploymentConfig {
    /// Returns all settings of the deployment with number `n` that can't be used.
    pub(super) fn faults(&self, n: usize) -> Vec<ConfigFault> {
        let key = |name: &str| format!("deployments.{n}.{name}");
        let counts = [
            ("tpm", self.tpm),
            ("rpm", self.rpm),
            ("concurrency", self.concurrency.map(|calls| calls as u64)),
            ("request_timeout_seconds", self.request_timeout_seconds),
            ("first_byte_timeout_seconds", self.first_byte_timeout_seconds),
            ("idle_timeout_seconds", self.idle_timeout_seconds),
        ];
        let zeros = counts.into_iter().filter(|(_, value)| *value == Some(0));
        let zeros = zeros.map(|(name, _)| (name, ConfigError::Zero { key: key(name) }));
        let mut causes: Vec<_> = zeros.collect();
        if !(0.0..1.0).contains(&self.reserve) {
            let must = "from 0 to below 1";
            causes.push(("reserve", ConfigError::Range { key: key("reserve"), must }));
        }
        if !self.weight.is_none_or(|weight| weight.is_finite() && weight > 0.0) {
            causes.push(("weight", ConfigError::Range { key: key("weight"), must: "above 0" }));
        }
        if self.ptu && (self.tpm.is_some() || self.flex) {
            causes.push(("ptu", ConfigError::PtuWithQuota(n)));
        }
        // Without one it can still be simulated.
        if !self.endpoint.is_empty()
            && let Err(source) = self.endpoint(None)
        {
            let name = match source {
                EndpointError::HeaderName(_) => "key_header",
                _ => "endpoint",
            };
            causes.push((name, ConfigError::DeploymentEndpoint { key: key(name), source }));
        }
        if let Err(error) = self.check_credential() {
            causes.push(("credential", error));
        }
        causes.into_iter().map(|(name, cause)| ConfigFault::new(key(name), cause)).collect()
    }

    fn check_credential(&self) -> Result<(), ConfigError> {
        let name = || self.display_name();
        match &self.credential {
            None if self.token_scope.is_some() => Err(ConfigError::ScopeWithoutCredential(name())),
            Some(_) if self.key_env.is_some() || self.key_file.is_some() => {
                Err(ConfigError::KeyBesideCredential(name()))
            }
            _ => Ok(()),
        }
    }

    /// Builds the call target.
    pub(super) fn target(&self, worker: &WorkerConfig) -> Result<WorkerTarget, ConfigError> {
        let endpoint = self.endpoint(self.key()?)?;
        let member = self.member_at(&endpoint);
        let tokens = self.bearer_tokens(&member.name, endpoint.token_scope())?;
        let client = ModelClient::new(endpoint, self.timeouts(worker))?;
        let client =
            client.with_tier(if self.flex { ServiceTier::Flex } else { ServiceTier::AsAsked });
        Ok(WorkerTarget {
            member,
            client: tokens.into_iter().fold(client, ModelClient::with_bearer_tokens),
        })
    }

    fn timeouts(&self, worker: &WorkerConfig) -> CallTimeouts {
        let whole = self.request_timeout_seconds.unwrap_or(worker.request_timeout_seconds);
        let first_byte = self.first_byte_timeout_seconds.or(worker.first_byte_timeout_seconds);
        let idle = self.idle_timeout_seconds.unwrap_or(worker.idle_timeout_seconds);
        CallTimeouts {
            whole: Duration::from_secs(whole),
            first_byte: first_byte.map(Duration::from_secs),
            idle: Some(Duration::from_secs(idle)),
        }
    }

    /// Builds the admission member, for users that make no call and need no key.
    pub(super) fn member(&self) -> Result<PoolMember, ConfigError> {
        Ok(self.member_at(&self.endpoint(None)?))
    }

    fn endpoint(&self, key: Option<SecretString>) -> Result<Endpoint, EndpointError> {
        Endpoint::new(EndpointConfig {
            url: self.endpoint.clone(),
            api_version: self.api_version.clone(),
            deployment: self.name_at_service(),
            key,
            key_header: self.key_header.clone(),
        })
    }

    fn member_at(&self, endpoint: &Endpoint) -> PoolMember {
        let host = endpoint.base().host_str().unwrap_or_default().to_owned();
        let plain_name = || self.deployment.clone().unwrap_or(host);
        // The standard and the flex entry of one deployment need two names.
        let lane_name = || if self.flex { plain_name() + "-flex" } else { plain_name() };
        let models = self.model_names();
        PoolMember {
            name: self.name.clone().unwrap_or_else(lane_name),
            quota: endpoint.quota_key(models.first().map(String::as_str)),
            models,
            tier: self.tier,
            weight: self.weight,
            limits: self.limits(),
        }
    }

    /// Returns all model names that jobs may use for it; none: it serves any model.
    pub(super) fn model_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.model.iter().chain(&self.models).cloned().collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns whether it can serve jobs for the model.
    pub fn serves(&self, model: &str) -> bool {
        let names = self.model_names();
        names.is_empty() || names.iter().any(|name| name == model)
    }

    /// Returns whether the price of a job for the model is known here.
    pub fn has_price(&self, model: &str, prices: &Prices) -> bool {
        let names = self.model_names();
        let mut names = std::iter::once(model).chain(names.iter().map(String::as_str));
        names.any(|name| prices.of(name).is_some())
    }

    /// Returns the name to show to people.
    pub fn display_name(&self) -> String {
        let name = self.name.as_ref().or(self.deployment.as_ref()).or(self.model.as_ref());
        name.unwrap_or(&self.endpoint).clone()
    }

    /// Returns its name at the service. If jobs have several names for it, none of theirs is sent.
    fn name_at_service(&self) -> Option<String> {
        let first = || self.model.as_ref().or(self.models.first()).cloned();
        self.deployment.clone().or_else(|| first().filter(|_| !self.models.is_empty()))
    }

    fn limits(&self) -> DeploymentLimits {
        DeploymentLimits {
            tpm: self.tpm,
            rpm: self.rpm,
            concurrency: self.concurrency.unwrap_or_else(most_paced_calls),
            unpaced_concurrency: self.concurrency.unwrap_or(DEFAULT_CONCURRENCY),
            service: match (self.ptu, self.flex) {
                (true, _) => ServiceKind::Provisioned,
                (_, true) => ServiceKind::Flex,
                _ => ServiceKind::Standard,
            },
            reserve: self.reserve,
        }
    }

    fn bearer_tokens(
        &self,
        name: &str,
        usual_scope: &str,
    ) -> Result<Option<BearerTokenCache>, ConfigError> {
        self.check_credential()?;
        let Some(identity) = &self.credential else { return Ok(None) };
        let scope = self.token_scope.as_deref().unwrap_or(usual_scope);
        bearer_tokens(identity, name.to_owned(), scope).map(Some)
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
        Ok(DEFAULT_KEY_VARIABLES.iter().find_map(|name| std::env::var(name).ok()).map(Into::into))
    }
}

/// Returns how many calls may be in flight at a deployment where the user sets no limit and a quota
/// does: each takes a connection, so the process's limit of open files bounds them.
pub(super) fn most_paced_calls() -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let calls = files.map_or(u64::MAX, |files| files.saturating_sub(OTHER_FILES) / 2);
    usize::try_from(calls).unwrap_or(usize::MAX).clamp(DEFAULT_CONCURRENCY, MOST_PACED_CALLS)
}

#[cfg(feature = "azure")]
fn bearer_tokens(
    identity: &Identity,
    name: String,
    scope: &str,
) -> Result<BearerTokenCache, ConfigError> {
    let credential = identity.credential();
    let credential = credential.map_err(|source| ConfigError::Identity { name, source })?;
    Ok(BearerTokenCache::new(credential, scope))
}

#[cfg(not(feature = "azure"))]
fn bearer_tokens(_: &Identity, name: String, _: &str) -> Result<BearerTokenCache, ConfigError> {
    let source = MissingFeatureError { feature: "azure" };
    Err(ConfigError::Feature { key: format!("deployment {name}"), source })
}
