//! Endpoints: the URL shapes of OpenAI-compatible services, and their API keys.
//!
//! | shape | URL of a chat call | `model` in the body |
//! | --- | --- | --- |
//! | Azure, deployments path | `{host}/openai/deployments/{deployment}/chat/completions?api-version=…` | ignored by the service |
//! | Azure, v1 | `{host}/openai/v1/chat/completions` | the deployment's name |
//! | OpenAI-compatible | `{base}/chat/completions` | the model's name |
//!
//! (Azure docs: "API version lifecycle".) An API Management gateway has one of the first two shapes
//! behind a path of its own and wants its key in `Ocp-Apim-Subscription-Key`. A target URI, as the portal
//! shows it, ends with the path of one API; that is taken off.

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use domain::job::Api;

/// Latest dated API version that is generally available; the v1 shape needs none.
pub const DEFAULT_API_VERSION: &str = "2024-10-21";

/// Scopes of Entra ID's tokens (Azure docs, 2026: the v1 API; before that, every Azure OpenAI
/// resource). Both are still accepted; `token_scope` sets another.
pub const TOKEN_SCOPE_V1: &str = "https://ai.azure.com/.default";
pub const TOKEN_SCOPE_DEPLOYMENTS: &str = "https://cognitiveservices.azure.com/.default";

/// Paths of the APIs, which end a target URI.
const API_PATHS: [&str; 4] = ["/chat/completions", "/responses", "/embeddings", "/completions"];

/// A cloud of Azure, by the end of its hosts.
struct AzureCloud {
    /// Ends of the names of a resource's own hosts.
    hosts: &'static [&'static str],
    /// End of the names of a region's hosts, which many resources share.
    regional: &'static str,
    /// Scope of tokens where it is one for both shapes.
    scope: Option<&'static str>,
}

/// Azure and its sovereign clouds (Azure docs: "Azure Government endpoints", "Azure China endpoints").
const CLOUDS: [AzureCloud; 3] = [
    AzureCloud {
        hosts: &[".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com"],
        regional: ".api.cognitive.microsoft.com",
        scope: None,
    },
    AzureCloud {
        hosts: &[".openai.azure.us", ".services.ai.azure.us", ".cognitiveservices.azure.us"],
        regional: ".api.cognitive.microsoft.us",
        scope: Some("https://cognitiveservices.azure.us/.default"),
    },
    AzureCloud {
        hosts: &[".openai.azure.cn", ".services.ai.azure.cn", ".cognitiveservices.azure.cn"],
        regional: ".api.cognitive.azure.cn",
        scope: Some("https://cognitiveservices.azure.cn/.default"),
    },
];

/// Shape of the service's URLs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlShape {
    /// `{base}/openai/deployments/…?api-version=…`.
    AzureDeployments { api_version: String },
    /// A base that ends in `/openai/v1` or `/v1`, followed by the API's path. Azure takes the version
    /// `preview` beside it, and no dated one.
    V1 { api_version: Option<String> },
}

/// Header that carries the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHeader {
    /// `Authorization: Bearer …`, as OpenAI has it.
    Bearer,
    /// A named header: `api-key` for Azure, `Ocp-Apim-Subscription-Key` for API Management.
    Named(String),
}

/// Error in an endpoint's configuration.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error(
        "'{given}' is not an endpoint: {why}. Write it like https://my-resource.openai.azure.com"
    )]
    Url { given: String, why: String },
    #[error("'{0}' is not a header name; for API Management it is Ocp-Apim-Subscription-Key")]
    HeaderName(String),
    #[error(
        "the API key has characters that no HTTP header may have; was it copied with a line break?"
    )]
    Key,
}

/// Configuration of an endpoint, not yet validated.
#[derive(Debug, Clone, Default)]
pub struct EndpointConfig {
    pub url: String,
    /// API version, which selects Azure's deployments path.
    pub api_version: Option<String>,
    /// The deployment's name where it differs from the jobs' model.
    pub deployment: Option<String>,
    pub key: Option<SecretString>,
    pub key_header: Option<String>,
}

/// Service that is ready to be called.
#[derive(Debug)]
pub struct Endpoint {
    base: Url,
    shape: UrlShape,
    deployment: Option<String>,
    /// The key's header, marked sensitive so that no debug output shows it.
    headers: HeaderMap,
}

impl Endpoint {
    /// Reads the shape off the URL: an Azure host without a path means v1; a path with
    /// `/openai/deployments/NAME`, or an API version without `/v1`, means the deployments path; anything
    /// else is an OpenAI-compatible base. Nothing is guessed: a URL that fits none is refused.
    ///
    /// # Errors
    /// Says what is wrong with the URL, the header name or the key.
    pub fn new(config: EndpointConfig) -> Result<Self, EndpointError> {
        let bad = |why: &str| EndpointError::Url { given: config.url.clone(), why: why.into() };
        let given = config.url.trim();
        let mut base = Url::parse(given).map_err(|e| match e {
            url::ParseError::RelativeUrlWithoutBase if !given.is_empty() => {
                bad(&format!("it lacks its scheme, https://{given}"))
            }
            e => bad(&e.to_string()),
        })?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(bad("it must begin with https:// (or http://) and name a host"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(bad(
                "a key does not belong in the URL; use --api-key-env or --api-key-file",
            ));
        }
        let azure = is_azure(&base);
        let asked_version = query_value(&base, "api-version").or(config.api_version);
        base.set_query(None);
        base.set_fragment(None);

        let path = base.path().trim_end_matches('/');
        let path =
            API_PATHS.iter().find_map(|api| path.strip_suffix(api)).unwrap_or(path).to_owned();
        if azure && path.ends_with("/models") {
            return Err(bad(
                "…/models is the older inference API of Foundry; the same deployments answer at …/openai/v1",
            ));
        }
        let mut deployment = config.deployment;
        let (root, shape) = if let Some((root, named)) = path.split_once("/openai/deployments") {
            let named = named.trim_start_matches('/').split('/').next().unwrap_or_default();
            if !named.is_empty() {
                deployment.get_or_insert_with(|| named.to_owned());
            }
            (root.to_owned(), azure_deployments(asked_version))
        } else if path.ends_with("/v1") {
            if azure && asked_version.as_deref().is_some_and(|version| !is_v1_version(version)) {
                return Err(bad(
                    "…/openai/v1 takes no dated api-version: leave it out, or end the URL with /openai",
                ));
            }
            (path, UrlShape::V1 { api_version: asked_version })
        } else if azure && asked_version.as_deref().is_some_and(is_v1_version) {
            let root = path.trim_end_matches("/openai");
            (format!("{root}/openai/v1"), UrlShape::V1 { api_version: asked_version })
        } else if asked_version.is_some() {
            (path.trim_end_matches("/openai").to_owned(), azure_deployments(asked_version))
        } else if azure {
            let root = path.trim_end_matches("/openai");
            (format!("{root}/openai/v1"), UrlShape::V1 { api_version: None })
        } else {
            (format!("{path}/v1"), UrlShape::V1 { api_version: None })
        };
        base.set_path(&root);

        let key_header = match config.key_header {
            Some(name) => KeyHeader::Named(name),
            None if azure || matches!(shape, UrlShape::AzureDeployments { .. }) => {
                KeyHeader::Named("api-key".into())
            }
            None => KeyHeader::Bearer,
        };
        let headers = key_headers(&key_header, config.key.as_ref())?;
        Ok(Self { base, shape, deployment, headers })
    }

    /// Returns the deployment that answers for a model here.
    pub fn deployment_for<'a>(&'a self, model: &'a str) -> &'a str {
        self.deployment.as_deref().unwrap_or(model)
    }

    /// Returns the key of a shared quota, as far as a caller can know it: resource and deployment,
    /// however the endpoint is spelt. (Azure docs, "Quotas and limits": quota is given to
    /// deployments.)
    pub fn quota_key(&self, model: Option<&str>) -> String {
        let name = self.deployment.as_deref().or(model).unwrap_or("*");
        let host = self.base.host_str().unwrap_or_default();
        if is_resource(&self.base) {
            // One resource answers under several hosts and paths.
            return format!("{}.azure/{name}", host.split('.').next().unwrap_or_default());
        }
        let port = self.base.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = self.base.path().trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(path);
        format!("{host}{port}{}/{name}", path.strip_suffix("/openai").unwrap_or(path))
    }

    /// Returns whether Azure OpenAI is behind it, as far as the URL tells: gateways keep its path.
    pub fn speaks_azure(&self) -> bool {
        is_azure(&self.base)
            || matches!(self.shape, UrlShape::AzureDeployments { .. })
            || self.base.path().contains("/openai")
    }

    /// Returns the URL, which holds no key.
    pub fn base(&self) -> &Url {
        &self.base
    }

    pub fn shape(&self) -> &UrlShape {
        &self.shape
    }

    /// Returns the default scope of Entra ID's tokens.
    pub fn token_scope(&self) -> &'static str {
        if let Some(scope) = cloud_of(&self.base).and_then(|cloud| cloud.scope) {
            return scope;
        }
        match self.shape {
            UrlShape::V1 { .. } => TOKEN_SCOPE_V1,
            UrlShape::AzureDeployments { .. } => TOKEN_SCOPE_DEPLOYMENTS,
        }
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    pub(super) fn url(&self, api: Api, deployment: &str) -> Url {
        let call = api.url().trim_start_matches("/v1/");
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            if let UrlShape::AzureDeployments { .. } = self.shape {
                path.push("openai");
                // The Responses API never had a deployments path: the body names the deployment.
                if api != Api::Responses {
                    path.extend(["deployments", deployment]);
                }
            }
            path.extend(call.split('/'));
        }
        let (UrlShape::AzureDeployments { api_version }
        | UrlShape::V1 { api_version: Some(api_version) }) = &self.shape
        else {
            return url;
        };
        url.query_pairs_mut().append_pair("api-version", api_version);
        url
    }
}

fn azure_deployments(asked: Option<String>) -> UrlShape {
    let api_version = asked.unwrap_or_else(|| DEFAULT_API_VERSION.to_owned());
    UrlShape::AzureDeployments { api_version }
}

fn is_azure(url: &Url) -> bool {
    cloud_of(url).is_some()
}

/// Returns the cloud that a host belongs to.
fn cloud_of(url: &Url) -> Option<&'static AzureCloud> {
    let host = url.host_str()?;
    CLOUDS.iter().find(|cloud| {
        host.ends_with(cloud.regional) || cloud.hosts.iter().any(|end| host.ends_with(end))
    })
}

/// Returns whether the host's first label names one resource.
fn is_resource(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    cloud_of(url).is_some_and(|cloud| !host.ends_with(cloud.regional))
}

/// Returns whether an API version belongs to the v1 shape; all others are dated, such as 2024-10-21.
fn is_v1_version(version: &str) -> bool {
    matches!(version, "preview" | "latest" | "v1")
}

fn query_value(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn key_headers(header: &KeyHeader, key: Option<&SecretString>) -> Result<HeaderMap, EndpointError> {
    let mut headers = HeaderMap::new();
    let Some(key) = key else { return Ok(headers) };
    let (name, value) = match header {
        KeyHeader::Bearer => (AUTHORIZATION, format!("Bearer {}", key.expose_secret())),
        KeyHeader::Named(name) => {
            let parsed: HeaderName =
                name.parse().map_err(|_| EndpointError::HeaderName(name.clone()))?;
            (parsed, key.expose_secret().to_owned())
        }
    };
    let mut value: HeaderValue = value.parse().map_err(|_| EndpointError::Key)?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str, api_version: Option<&str>) -> Endpoint {
        let api_version = api_version.map(Into::into);
        Endpoint::new(EndpointConfig { url: url.into(), api_version, ..EndpointConfig::default() })
            .unwrap()
    }

    fn chat(url: &str, api_version: Option<&str>) -> String {
        let e = endpoint(url, api_version);
        e.url(Api::ChatCompletions, e.deployment_for("gpt 4")).to_string()
    }

    #[test]
    fn each_shape_gets_its_url() {
        let classic = "https://r.openai.azure.com/openai/deployments/gpt%204/chat/completions?api-version=2024-10-21";
        let v1 = "https://r.openai.azure.com/openai/v1/chat/completions";
        let cases = [
            ("https://r.openai.azure.com", None, v1),
            ("https://r.openai.azure.com/", None, v1),
            ("https://r.openai.azure.com/openai/v1/", None, v1),
            ("https://r.openai.azure.com", Some("2024-10-21"), classic),
            ("https://r.openai.azure.com/openai", Some("2024-10-21"), classic),
            ("https://r.openai.azure.com/openai/deployments", None, classic),
            ("http://127.0.0.1:8080", None, "http://127.0.0.1:8080/v1/chat/completions"),
            ("http://127.0.0.1:8080/v1", None, "http://127.0.0.1:8080/v1/chat/completions"),
            ("https://r.openai.azure.com/openai/v1/chat/completions", None, v1),
            ("https://r.openai.azure.com/openai/v1/responses", None, v1),
            ("https://r.openai.azure.com/openai/responses?api-version=2024-10-21", None, classic),
            (
                "https://r.openai.azure.com/openai/v1?api-version=preview",
                None,
                "https://r.openai.azure.com/openai/v1/chat/completions?api-version=preview",
            ),
            (
                "https://r.openai.azure.us",
                None,
                "https://r.openai.azure.us/openai/v1/chat/completions",
            ),
            (
                "https://japaneast.api.cognitive.microsoft.com/",
                None,
                "https://japaneast.api.cognitive.microsoft.com/openai/v1/chat/completions",
            ),
            (
                "https://gw.example.com/ai/openai/v1",
                None,
                "https://gw.example.com/ai/openai/v1/chat/completions",
            ),
            (
                "https://gw.example.com/ai/openai/deployments/d/chat/completions?api-version=x",
                None,
                "https://gw.example.com/ai/openai/deployments/d/chat/completions?api-version=x",
            ),
        ];
        for (given, version, expected) in cases {
            assert_eq!(chat(given, version), expected, "{given} {version:?}");
        }
    }

    #[test]
    fn one_quota_has_one_key_however_its_endpoint_is_spelt() {
        let key = |url: &str, deployment: Option<&str>, model| {
            let deployment = deployment.map(Into::into);
            let given = EndpointConfig { url: url.into(), deployment, ..EndpointConfig::default() };
            Endpoint::new(given).unwrap().quota_key(model)
        };
        for url in [
            "https://R.openai.azure.com",
            "https://r.services.ai.azure.com/openai/v1",
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=x",
        ] {
            assert_eq!(key(url, Some("d"), Some("gpt-4.1")), "r.azure/d");
        }
        assert_eq!(key("https://gw.example.com/ai", None, Some("m")), "gw.example.com/ai/m");
        assert_eq!(key("http://127.0.0.1:8080/v1/", None, None), "127.0.0.1:8080/*");
    }

    #[test]
    fn classic_responses_calls_have_no_deployment_in_the_path() {
        let e = endpoint("https://r.openai.azure.com", Some("v"));
        let url = e.url(Api::Responses, "d");
        assert_eq!(url.as_str(), "https://r.openai.azure.com/openai/responses?api-version=v");
    }

    #[test]
    fn the_key_goes_where_the_service_looks_and_never_into_debug_output() {
        let header = |url: &str, key_header: Option<&str>| {
            let given = EndpointConfig {
                url: url.into(),
                key: Some("s3cret".into()),
                key_header: key_header.map(Into::into),
                ..EndpointConfig::default()
            };
            let e = Endpoint::new(given).unwrap();
            assert!(!format!("{e:?}").contains("s3cret"));
            let (name, value) = e.headers.iter().next().unwrap();
            format!("{name}: {}", value.to_str().unwrap())
        };
        assert_eq!(header("https://r.openai.azure.com", None), "api-key: s3cret");
        assert_eq!(header("http://localhost:1/v1", None), "authorization: Bearer s3cret");
        let apim = header("https://gw.example.com/openai/v1", Some("Ocp-Apim-Subscription-Key"));
        assert_eq!(apim, "ocp-apim-subscription-key: s3cret");
    }

    #[test]
    fn what_is_no_endpoint_is_refused_with_the_mend() {
        for bad in [
            "",
            "r.openai.azure.com",
            "ftp://x/",
            "https://user:pw@x/",
            "https://r.services.ai.azure.com/models/chat/completions?api-version=2024-05-01-preview",
            "https://r.openai.azure.com/openai/v1?api-version=2024-10-21",
        ] {
            let error =
                Endpoint::new(EndpointConfig { url: bad.into(), ..EndpointConfig::default() })
                    .unwrap_err();
            assert!(error.to_string().contains("https://"), "{error}");
        }
    }
}
