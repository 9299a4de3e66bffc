//! Settings of Cosmos DB, and the client that is built from them.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use azure_core::credentials::Secret;
use azure_data_cosmos::options::{
    BinaryEncodingOptions, ConnectionPoolOptions, EndToEndOperationLatencyPolicy, OperationOptions,
    ReadConsistencyStrategy, Region, ServerCertificateValidation, ThrottlingRetryOptions,
};
use azure_data_cosmos::{
    AccountEndpoint, AccountReference, CosmosClient, CosmosRuntime, RoutingStrategy,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::error::store_error;
use crate::StoreError;
use domain::secret::hidden;
use identity::Identity;

/// 64 logical partitions of 20 GB and 10,000 RU/s each: more than any batch of a night.
const DEFAULT_SHARDS: NonZeroU32 = NonZeroU32::new(64).expect("64 is not 0");
/// At some 10 ms a write this is 3,000 writes/s, more than most quotas of models can fill.
const DEFAULT_WRITES_IN_FLIGHT: NonZeroUsize = NonZeroUsize::new(32).expect("32 is not 0");
const DEFAULT_PATIENCE_S: u64 = 30;
/// The service ends an operation after 5 s; the rest is for the network and one retry of the SDK.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The Cosmos DB account and how to use it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CosmosSettings {
    /// `https://NAME.documents.azure.com/`
    pub endpoint: String,
    #[serde(default = "default_database")]
    pub database: String,
    pub credential: CosmosCredential,
    /// Emulator on this machine: plain HTTP or its own certificate, HTTP/1.1, JSON as text.
    #[serde(default)]
    pub emulator: bool,
    /// Regions to ask first, by name; empty takes the account's order.
    #[serde(default)]
    pub preferred_regions: Vec<String>,
    #[serde(default)]
    pub consistency: CosmosConsistency,
    /// Logical partitions of a new batch. A batch keeps the number it began with.
    #[serde(default = "default_shards")]
    pub shards: NonZeroU32,
    #[serde(default = "default_writes_in_flight")]
    pub writes_in_flight: NonZeroUsize,
    /// Time that a call is retried, when the service is unreachable or overloaded, before it fails.
    #[serde(default = "default_patience_s")]
    pub patience_s: u64,
}

/// Authentication to the account.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CosmosCredential {
    /// The account key, best given by the environment.
    #[serde(serialize_with = "hidden")]
    Key(SecretString),
    #[serde(untagged)]
    Entra(Identity),
}

/// Freshness that reads require.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CosmosConsistency {
    /// Default of the account.
    #[default]
    Account,
    Eventual,
    Session,
    /// A quorum of the region: twice the price, and a worker sees at once what others recorded.
    LatestCommitted,
}

/// Settings with which no client can be made.
#[derive(Debug, thiserror::Error)]
enum CosmosSettingsError {
    #[error("the identity can't be used")]
    Identity(#[source] azure_core::Error),
}

impl CosmosSettings {
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_s)
    }

    pub(super) async fn client(&self) -> Result<CosmosClient, StoreError> {
        http_client::install_tls();
        let failed = |e| store_error("connecting to Cosmos DB", e);
        let endpoint: AccountEndpoint = self.endpoint.parse().map_err(failed)?;
        let mut pool = ConnectionPoolOptions::builder();
        if self.emulator {
            pool = pool
                .with_server_certificate_validation(
                    ServerCertificateValidation::RequiredUnlessEmulator,
                )
                .with_is_http2_allowed(false);
        }
        let runtime = CosmosRuntime::builder()
            .with_connection_pool(pool.build().map_err(failed)?)
            .build()
            .await
            .map_err(failed)?;
        let regions = self.preferred_regions.iter().cloned().map(Region::from).collect();
        let mut client = CosmosClient::builder()
            .with_runtime(runtime)
            .with_default_operation_options(self.operation_options());
        if self.emulator {
            client = client
                .with_binary_encoding_options(BinaryEncodingOptions::new().with_enabled(false));
        }
        let account = self.account(endpoint)?;
        client.build(account, RoutingStrategy::PreferredRegions(regions)).await.map_err(failed)
    }

    /// Turns off the SDK's own retries of a throttled call: 18, for minutes. The writer retries
    /// instead, since it has to see a 429 to slow down.
    fn operation_options(&self) -> OperationOptions {
        let mut throttling = ThrottlingRetryOptions::default();
        throttling.max_retry_count = Some(0);
        let mut options = OperationOptions::default();
        options.throttling_retry_options = Some(throttling);
        options.end_to_end_latency_policy = Some(EndToEndOperationLatencyPolicy::new(CALL_TIMEOUT));
        options.read_consistency_strategy = match self.consistency {
            CosmosConsistency::Account => None,
            CosmosConsistency::Eventual => Some(ReadConsistencyStrategy::Eventual),
            CosmosConsistency::Session => Some(ReadConsistencyStrategy::Session),
            CosmosConsistency::LatestCommitted => Some(ReadConsistencyStrategy::LatestCommitted),
        };
        options
    }

    fn account(&self, endpoint: AccountEndpoint) -> Result<AccountReference, StoreError> {
        let identity = match &self.credential {
            CosmosCredential::Key(key) => {
                let key = Secret::from(key.expose_secret().to_owned());
                return Ok(AccountReference::with_authentication_key(endpoint, key));
            }
            CosmosCredential::Entra(identity) => identity.credential(),
        };
        let identity =
            identity.map_err(|e| StoreError::Refused(CosmosSettingsError::Identity(e).into()))?;
        Ok(AccountReference::with_credential(endpoint, identity))
    }
}

fn default_database() -> String {
    "promptmill".into()
}

fn default_shards() -> NonZeroU32 {
    DEFAULT_SHARDS
}

fn default_writes_in_flight() -> NonZeroUsize {
    DEFAULT_WRITES_IN_FLIGHT
}

fn default_patience_s() -> u64 {
    DEFAULT_PATIENCE_S
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "endpoint = \"https://a.documents.azure.com/\"\n";

    #[test]
    fn an_account_and_a_credential_are_enough() {
        let text = format!("{ENDPOINT}credential = \"workload_identity\"");
        let settings: CosmosSettings = toml::from_str(&text).unwrap();
        assert_eq!((settings.shards.get(), settings.writes_in_flight.get()), (64, 32));
        assert!(!settings.emulator);
    }

    #[test]
    fn the_key_is_never_shown() {
        let text = format!("{ENDPOINT}credential = {{ key = \"c2VjcmV0\" }}");
        let settings: CosmosSettings = toml::from_str(&text).unwrap();
        assert!(!format!("{settings:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn an_unknown_setting_is_named() {
        let text = format!("{ENDPOINT}credential = \"developer_tools\"\nshard = 3");
        let error = toml::from_str::<CosmosSettings>(&text).unwrap_err().to_string();
        assert!(error.contains("shard"), "{error}");
    }
}
