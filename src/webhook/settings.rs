//! The section `[webhook]`.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use url::Url;

use super::sign::{BadSecret, SigningKey};
use domain::secret::hidden_option;

/// Receiver of the notices of batch ends; none without a URL.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookSettings {
    pub url: Option<Url>,
    /// `whsec_` and base64; the receiver has the same.
    #[serde(serialize_with = "hidden_option")]
    pub secret: Option<SecretString>,
}

/// Fault in the section.
#[derive(Debug, thiserror::Error)]
pub enum WebhookSettingsError {
    #[error("webhook.url must begin with https:// (or http://)")]
    Scheme,
    #[error("webhook.url must hold no user or password; the secret signs what is sent")]
    Credentials,
    #[error("webhook.url and webhook.secret go together; set both")]
    Incomplete,
    #[error("webhook.secret: {0}")]
    Secret(#[from] BadSecret),
    #[error("the webhook's HTTP client can't be set up")]
    Client(#[source] reqwest::Error),
}

impl WebhookSettings {
    /// Returns the URL and the key; `None` if there is no receiver.
    ///
    /// # Errors
    /// Names the missing or wrong setting.
    pub fn target(&self) -> Result<Option<(Url, SigningKey)>, WebhookSettingsError> {
        let (url, secret) = match (&self.url, &self.secret) {
            (None, None) => return Ok(None),
            (Some(url), Some(secret)) => (url, secret),
            _ => return Err(WebhookSettingsError::Incomplete),
        };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(WebhookSettingsError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(WebhookSettingsError::Credentials);
        }
        Ok(Some((url.clone(), SigningKey::new(secret)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: Option<&str>, secret: Option<&str>) -> Result<bool, String> {
        let url = url.map(|url| url.parse().unwrap());
        let secret = secret.map(|secret| secret.to_owned().into());
        let target = WebhookSettings { url, secret }.target();
        target.map(|target| target.is_some()).map_err(|error| error.to_string())
    }

    #[test]
    fn url_and_secret_go_together() {
        let secret = Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        assert_eq!(target(None, None), Ok(false));
        assert_eq!(target(Some("https://a/hook"), secret), Ok(true));
        let bad = [
            (Some("https://a"), None, "go together"),
            (None, secret, "go together"),
            (Some("ftp://a"), secret, "https://"),
            (Some("https://u:p@a"), secret, "user or password"),
            (Some("https://a"), Some("secret"), "openssl"),
        ];
        for (url, secret, said) in bad {
            assert!(target(url, secret).unwrap_err().contains(said), "{url:?}");
        }
    }
}
