//! Settings of a Service Bus queue, and the parser of connection strings.
//!
//! Everything is checked here, before anything is connected, so that a wrong setting is reported
//! with its fix and never shows as a failed connection.

use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::cbs::{BrokerCredential, SharedKey};
use domain::build_feature::MissingFeatureError;
use domain::secret::hidden_option;
use identity::Identity;

const AMQPS_PORT: u16 = 5671;
const AMQP_PORT: u16 = 5672;
const HTTPS_PORT: u16 = 443;

/// HTTP port of Microsoft's emulator.
const EMULATOR_HTTP_PORT: u16 = 5300;

/// Longer than any clock skew, and what the SDKs of the service use.
const DEFAULT_SAS_LIFETIME: u64 = 3_600;

/// Long enough for a broker that moves to another node, short enough to be reported tonight.
const DEFAULT_PATIENCE: u64 = 60;

/// Connection to a queue. One of `connection_string` and `namespace` is needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceBusSettings {
    /// Connection string with a shared access key, as the portal shows it.
    #[serde(default, serialize_with = "hidden_option")]
    pub connection_string: Option<SecretString>,
    /// Host, such as `contoso.servicebus.windows.net`; Entra ID then provides the tokens.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Identity for the namespace.
    #[serde(default)]
    pub credential: Option<Identity>,
    /// A queue, or a subscription as `topic/Subscriptions/name`: jobs are then sent to the topic.
    pub queue: String,
    #[serde(default)]
    pub transport: ServiceBusTransport,
    /// With transport "https", which has no dead-lettering: a queue that gets a copy of each dead
    /// job's message, with the reason in its properties.
    #[serde(default)]
    pub dead_letter_queue: Option<String>,
    /// HTTP proxy, such as `http://proxy.contoso.com:3128`, for transport "https" and for the
    /// queue's description; HTTPS_PROXY if absent. NO_PROXY applies either way.
    #[serde(default, serialize_with = "hidden_option")]
    pub proxy: Option<SecretString>,
    /// Lifetime of one signature; it is renewed in time.
    #[serde(default = "default_sas_lifetime")]
    pub sas_lifetime_seconds: u64,
    /// Time that an operation waits for an unreachable queue before it fails.
    #[serde(default = "default_patience")]
    pub patience_seconds: u64,
}

/// Protocol that carries the messages: AMQP, or REST requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceBusTransport {
    /// TLS on port 5671.
    #[default]
    Amqp,
    /// A WebSocket on port 443, for networks that let nothing else out.
    Websocket,
    /// REST requests, for networks in which only an HTTP proxy leads out. Slower, with the limits
    /// that `https` lists.
    Https,
}

fn default_sas_lifetime() -> u64 {
    DEFAULT_SAS_LIFETIME
}

fn default_patience() -> u64 {
    DEFAULT_PATIENCE
}

impl ServiceBusSettings {
    /// Settings for a connection string, everything else by default.
    pub fn new(connection_string: impl Into<SecretString>, queue: impl Into<String>) -> Self {
        Self {
            connection_string: Some(connection_string.into()),
            namespace: None,
            credential: None,
            queue: queue.into(),
            transport: ServiceBusTransport::default(),
            dead_letter_queue: None,
            proxy: None,
            sas_lifetime_seconds: DEFAULT_SAS_LIFETIME,
            patience_seconds: DEFAULT_PATIENCE,
        }
    }

    /// Checks the settings before anything is connected, without fetching a token.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> Result<(), ServiceBusSettingsError> {
        match (&self.namespace, &self.credential) {
            (None, Some(_)) => return Err(ServiceBusSettingsError::CredentialBesideKey),
            (Some(_), None) => return Err(ServiceBusSettingsError::NoCredential),
            _ => {}
        }
        self.check_transport()?;
        let nobody: Arc<dyn TokenCredential> = Arc::new(PlaceholderCredential);
        ResolvedSettings::new(self, Some(nobody)).map(drop)
    }

    /// Checks that this build has the transport.
    pub(super) fn check_transport(&self) -> Result<(), MissingFeatureError> {
        if self.transport == ServiceBusTransport::Https && !cfg!(feature = "service-bus-https") {
            return Err(MissingFeatureError { feature: "service-bus-https" });
        }
        Ok(())
    }
}

/// Placeholder for a credential, while settings are only checked.
#[derive(Debug)]
struct PlaceholderCredential;

#[async_trait::async_trait]
impl TokenCredential for PlaceholderCredential {
    async fn get_token(
        &self,
        _scopes: &[&str],
        _options: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        Err(azure_core::Error::with_message(ErrorKind::Credential, "settings are only checked"))
    }
}

/// A fault in the settings.
#[derive(Debug, thiserror::Error)]
pub enum ServiceBusSettingsError {
    #[error("give either 'connection_string' or 'namespace'")]
    NotOneAddress,
    #[error("the connection string has no '{0}'")]
    Missing(&'static str),
    #[error("'Endpoint' in the connection string should be sb://HOST/")]
    BadEndpoint,
    #[error(
        "the connection string is for the queue '{of_string}', the setting 'queue' says '{set}'"
    )]
    OtherQueue { of_string: String, set: String },
    #[error("'queue' is empty: name a queue, or a subscription as topic/Subscriptions/name")]
    NoQueue,
    #[error("'credential' goes with 'namespace'; a connection string brings its own key")]
    CredentialBesideKey,
    #[error("'namespace' needs an Entra ID 'credential', such as {{ managed_identity = {{}} }}")]
    NoCredential,
    #[error("'{0}' must be at least 1")]
    Zero(&'static str),
    #[error("'dead_letter_queue' goes with transport = \"https\"; AMQP dead-letters in place")]
    DeadLetterQueueOverAmqp,
    #[error("'dead_letter_queue' must be another queue than 'queue'")]
    DeadLettersToItself,
    #[error("'proxy' should be a URL, such as http://proxy.contoso.com:3128")]
    BadProxy,
    #[error("transport = \"https\" is not AMQP")]
    NotAmqp,
    #[error(transparent)]
    Feature(#[from] MissingFeatureError),
    #[error("the HTTP client can't be set up")]
    HttpClient(#[source] reqwest::Error),
    #[error("the REST client can't be set up: {0}")]
    Rest(String),
}

/// Settings, parsed and checked.
pub(super) struct ResolvedSettings {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) transport: ServiceBusTransport,
    pub(super) credential: BrokerCredential,
    /// Entity that jobs are received from.
    pub(super) source: String,
    /// Entity that jobs are sent to; the same but for topics.
    pub(super) target: String,
    pub(super) patience: Duration,
    /// HTTP port of the namespace.
    pub(super) http_port: u16,
    pub(super) proxy: Option<SecretString>,
    pub(super) dead_letter_queue: Option<String>,
}

impl ResolvedSettings {
    pub(super) fn new(
        settings: &ServiceBusSettings,
        entra: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, ServiceBusSettingsError> {
        let counts = [
            ("sas_lifetime_seconds", settings.sas_lifetime_seconds),
            ("patience_seconds", settings.patience_seconds),
        ];
        if let Some((name, _)) = counts.into_iter().find(|(_, value)| *value == 0) {
            return Err(ServiceBusSettingsError::Zero(name));
        }
        let source = settings.queue.trim_matches('/').to_owned();
        if source.is_empty() {
            return Err(ServiceBusSettingsError::NoQueue);
        }
        let (given, credential) = match (&settings.connection_string, &settings.namespace) {
            (Some(string), None) => {
                let given = ConnectionString::parse(string.expose_secret())?;
                let credential = BrokerCredential::Sas {
                    key: given.key()?,
                    lifetime: Duration::from_secs(settings.sas_lifetime_seconds),
                };
                (given, credential)
            }
            (None, Some(namespace)) => {
                let entra = entra.ok_or(ServiceBusSettingsError::NoCredential)?;
                let given = ConnectionString { endpoint: namespace, ..ConnectionString::default() };
                (given, BrokerCredential::Entra(entra))
            }
            _ => return Err(ServiceBusSettingsError::NotOneAddress),
        };
        if let Some(path) = given.entity_path.filter(|path| !path.eq_ignore_ascii_case(&source)) {
            return Err(ServiceBusSettingsError::OtherQueue {
                of_string: path.to_owned(),
                set: source,
            });
        }
        let tls = !given.emulator;
        let (host, port) = host_and_port(given.endpoint)?;
        let usual_port = match (settings.transport, tls) {
            (ServiceBusTransport::Websocket | ServiceBusTransport::Https, true) => HTTPS_PORT,
            (ServiceBusTransport::Amqp, true) => AMQPS_PORT,
            (ServiceBusTransport::Https, false) => EMULATOR_HTTP_PORT,
            (ServiceBusTransport::Amqp | ServiceBusTransport::Websocket, false) => AMQP_PORT,
        };
        let is_https = settings.transport == ServiceBusTransport::Https;
        // A port that is named for AMQP is none for HTTP.
        let own_port = port.filter(|port| is_https || ![AMQP_PORT, AMQPS_PORT].contains(port));
        let dead_letter_queue = settings.dead_letter_queue.as_deref().map(|q| q.trim_matches('/'));
        match dead_letter_queue {
            Some(_) if !is_https => return Err(ServiceBusSettingsError::DeadLetterQueueOverAmqp),
            Some(name) if name.eq_ignore_ascii_case(&source) => {
                return Err(ServiceBusSettingsError::DeadLettersToItself);
            }
            _ => {}
        }
        Ok(Self {
            host,
            port: port.unwrap_or(usual_port),
            tls,
            transport: settings.transport,
            credential,
            http_port: own_port.unwrap_or(if tls { HTTPS_PORT } else { EMULATOR_HTTP_PORT }),
            proxy: settings.proxy.clone(),
            dead_letter_queue: dead_letter_queue.map(str::to_owned),
            target: topic_of(&source).to_owned(),
            source,
            patience: Duration::from_secs(settings.patience_seconds),
        })
    }
}

/// Returns the part before `/Subscriptions/`, or all of it.
fn topic_of(source: &str) -> &str {
    let at = source.to_ascii_lowercase().find("/subscriptions/");
    at.map_or(source, |at| &source[..at])
}

fn host_and_port(endpoint: &str) -> Result<(String, Option<u16>), ServiceBusSettingsError> {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => {
            (host, Some(port.parse().map_err(|_| ServiceBusSettingsError::BadEndpoint)?))
        }
        None => (authority, None),
    };
    if host.is_empty() {
        return Err(ServiceBusSettingsError::BadEndpoint);
    }
    Ok((host.to_owned(), port))
}

/// A connection string's parts.
#[derive(Default)]
struct ConnectionString<'a> {
    endpoint: &'a str,
    key_name: Option<&'a str>,
    key: Option<&'a str>,
    entity_path: Option<&'a str>,
    emulator: bool,
}

impl<'a> ConnectionString<'a> {
    fn parse(text: &'a str) -> Result<Self, ServiceBusSettingsError> {
        let mut given = Self::default();
        for part in text.split(';') {
            // A key may itself contain '=', so only the first one separates.
            let Some((name, value)) = part.trim().split_once('=') else { continue };
            match name.to_ascii_lowercase().as_str() {
                "endpoint" => given.endpoint = value,
                "sharedaccesskeyname" => given.key_name = Some(value),
                "sharedaccesskey" => given.key = Some(value),
                "entitypath" => given.entity_path = Some(value),
                "usedevelopmentemulator" => given.emulator = value.eq_ignore_ascii_case("true"),
                // Other programs' settings may stand in the same string.
                _ => {}
            }
        }
        if given.endpoint.is_empty() {
            return Err(ServiceBusSettingsError::Missing("Endpoint"));
        }
        Ok(given)
    }

    fn key(&self) -> Result<SharedKey, ServiceBusSettingsError> {
        let name = self.key_name.ok_or(ServiceBusSettingsError::Missing("SharedAccessKeyName"))?;
        let key = self.key.ok_or(ServiceBusSettingsError::Missing("SharedAccessKey"))?;
        Ok(SharedKey { name: name.to_owned(), key: key.to_owned().into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD: &str = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessKeyName=n;\
                         SharedAccessKey=c2VjcmV0=";

    fn plan(string: &str, queue: &str) -> Result<ResolvedSettings, ServiceBusSettingsError> {
        ResolvedSettings::new(&ServiceBusSettings::new(string, queue), None)
    }

    #[test]
    fn a_connection_string_says_where_and_how() {
        let cloud = plan(CLOUD, "jobs").unwrap();
        assert_eq!(
            (cloud.host.as_str(), cloud.port, cloud.tls),
            ("x.servicebus.windows.net", 5671, true)
        );
        let local = format!("{CLOUD};UseDevelopmentEmulator=true;")
            .replace("x.servicebus.windows.net", "127.0.0.1:999");
        let local = plan(&local, "jobs").unwrap();
        assert_eq!((local.host.as_str(), local.port, local.tls), ("127.0.0.1", 999, false));
    }

    #[test]
    fn a_websocket_goes_to_the_port_that_firewalls_let_through() {
        let mut settings = ServiceBusSettings::new(CLOUD, "jobs");
        settings.transport = ServiceBusTransport::Websocket;
        assert_eq!(ResolvedSettings::new(&settings, None).unwrap().port, 443);
    }

    #[test]
    fn https_has_ports_and_settings_of_its_own() {
        let mut settings = ServiceBusSettings::new(CLOUD, "jobs");
        assert_eq!(ResolvedSettings::new(&settings, None).unwrap().http_port, 443);
        settings.dead_letter_queue = Some("jobs-dead".into());
        let refused = ResolvedSettings::new(&settings, None).err().unwrap();
        assert!(refused.to_string().starts_with("'dead_letter_queue' goes with"), "{refused}");
        settings.transport = ServiceBusTransport::Https;
        let plan = ResolvedSettings::new(&settings, None).unwrap();
        assert_eq!((plan.port, plan.http_port), (443, 443));
        settings.dead_letter_queue = Some("Jobs".into());
        assert!(matches!(
            ResolvedSettings::new(&settings, None),
            Err(ServiceBusSettingsError::DeadLettersToItself)
        ));
        let named = format!("{CLOUD};UseDevelopmentEmulator=true").replace(".net/", ".net:5672/");
        assert_eq!(plan_of(&named).http_port, 5300);
    }

    fn plan_of(string: &str) -> ResolvedSettings {
        plan(string, "jobs").unwrap()
    }

    #[test]
    fn jobs_for_a_subscription_are_sent_to_its_topic() {
        let plan = plan(CLOUD, "night/Subscriptions/tokyo").unwrap();
        assert_eq!(
            (plan.source.as_str(), plan.target.as_str()),
            ("night/Subscriptions/tokyo", "night")
        );
    }

    #[test]
    fn wrong_settings_say_their_mend() {
        let said = |result: Result<ResolvedSettings, ServiceBusSettingsError>| match result {
            Ok(_) => panic!("taken"),
            Err(error) => error.to_string(),
        };
        assert_eq!(said(plan("SharedAccessKey=k", "q")), "the connection string has no 'Endpoint'");
        assert!(said(plan("Endpoint=sb://h/", "q")).contains("SharedAccessKeyName"));
        assert!(said(plan(CLOUD, "/")).starts_with("'queue' is empty"));
        let other = format!("{CLOUD};EntityPath=a");
        assert!(said(plan(&other, "b")).contains("for the queue 'a'"));
        let mut both = ServiceBusSettings::new(CLOUD, "q");
        both.namespace = Some("h".into());
        assert!(said(ResolvedSettings::new(&both, None)).starts_with("give either"));
    }

    #[test]
    fn settings_are_read_and_unknown_ones_refused() {
        let read = |text: &str| toml::from_str::<ServiceBusSettings>(text);
        let given = read("namespace = \"h\"\nqueue = \"q\"\ntransport = \"websocket\"").unwrap();
        assert_eq!((given.transport, given.patience_seconds), (ServiceBusTransport::Websocket, 60));
        assert!(read("queue = \"q\"\npatience = 3").unwrap_err().to_string().contains("patience"));
    }

    #[test]
    fn no_secret_is_printed() {
        let settings = ServiceBusSettings::new(CLOUD, "jobs");
        assert!(!format!("{settings:?}").contains("c2VjcmV0"));
        let plan = ResolvedSettings::new(&settings, None).unwrap();
        assert!(!format!("{:?}", plan.credential).contains("c2VjcmV0"));
    }
}
