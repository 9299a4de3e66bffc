//! Claims-based security: tokens that let a connection use the queue, put to the broker's `$cbs`
//! node and renewed before they expire.

use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use tracing::{debug, warn};

use super::error::BrokerError;
use super::request::{NodeRequest, RequestLink};

const SCOPE: &str = "https://servicebus.azure.net/.default";

/// Characters that are escaped in a signature's fields.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Pause after a failed renewal, while the old token is still valid.
const RENEW_RETRY_DELAY: Duration = Duration::from_secs(5);

/// Source of tokens.
#[derive(Debug, Clone)]
pub(super) enum BrokerCredential {
    Sas { key: SharedKey, lifetime: Duration },
    Entra(Arc<dyn TokenCredential>),
}

/// A shared access policy's name and key.
#[derive(Debug, Clone)]
pub(super) struct SharedKey {
    pub(super) name: String,
    pub(super) key: SecretString,
}

/// A token and its expiry.
pub(super) struct BrokerToken {
    kind: &'static str,
    pub(super) text: SecretString,
    pub(super) expires_at: Timestamp,
}

impl BrokerCredential {
    pub(super) async fn token(&self, audience: &str) -> Result<BrokerToken, BrokerError> {
        match self {
            Self::Sas { key, lifetime } => {
                // A signature expires on a whole second.
                let ends = (Timestamp::now() + *lifetime).as_second();
                let text = key.sign(audience, ends);
                let ends = Timestamp::from_second(ends).map_err(BrokerError::transient)?;
                Ok(BrokerToken { kind: "servicebus.windows.net:sastoken", text, expires_at: ends })
            }
            Self::Entra(credential) => {
                let token =
                    credential.get_token(&[SCOPE], None).await.map_err(BrokerError::transient)?;
                let ends = Timestamp::from_second(token.expires_on.unix_timestamp());
                let ends = ends.map_err(BrokerError::transient)?;
                Ok(BrokerToken {
                    kind: "jwt",
                    text: token.token.secret().to_owned().into(),
                    expires_at: ends,
                })
            }
        }
    }
}

impl SharedKey {
    fn sign(&self, audience: &str, ends: i64) -> SecretString {
        let resource = utf8_percent_encode(audience, ESCAPED).to_string();
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.key.expose_secret().as_bytes());
        let signature = STANDARD.encode(hmac::sign(&key, format!("{resource}\n{ends}").as_bytes()));
        let signature = utf8_percent_encode(&signature, ESCAPED);
        let name = utf8_percent_encode(&self.name, ESCAPED);
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={ends}&skn={name}").into()
    }
}

/// Tokens of one connection.
pub(super) struct CbsClaims {
    pub(super) credential: BrokerCredential,
    /// Entities that tokens are for, as `sb://host/entity`.
    pub(super) audiences: Vec<String>,
}

impl CbsClaims {
    /// Puts a token for every audience; returns the first expiry.
    pub(super) async fn put(&self, node: &RequestLink) -> Result<Timestamp, BrokerError> {
        let mut first_end = Timestamp::MAX;
        for audience in &self.audiences {
            let token = self.credential.token(audience).await?;
            first_end = first_end.min(token.expires_at);
            let request = NodeRequest {
                operation: "put-token",
                properties: vec![
                    ("type", SimpleValue::String(token.kind.to_owned())),
                    ("name", SimpleValue::String(audience.clone())),
                    (
                        "expiration",
                        SimpleValue::Timestamp(token.expires_at.as_millisecond().into()),
                    ),
                ],
                body: Value::String(token.text.expose_secret().to_owned()),
            };
            node.request(request).await?.into_body()?;
        }
        Ok(first_end)
    }

    /// Renews the tokens when four fifths of their lifetime are over, until one can't be renewed.
    pub(super) async fn keep_renewed(&self, node: RequestLink, mut ends: Timestamp) -> BrokerError {
        loop {
            let left = left_until(ends);
            tokio::time::sleep(left * 4 / 5).await;
            ends = loop {
                match self.put(&node).await {
                    Ok(ends) => break ends,
                    Err(fault) if fault.is_transient() && left_until(ends) > RENEW_RETRY_DELAY => {
                        warn!(error = %fault, "could not renew the queue's token; retrying");
                        tokio::time::sleep(RENEW_RETRY_DELAY).await;
                    }
                    Err(fault) => return fault,
                }
            };
            debug!(until = %ends, "renewed the queue's token");
        }
    }
}

fn left_until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_one_the_service_computes() {
        let key = SharedKey { name: "Root".into(), key: "c2VjcmV0".to_owned().into() };
        let token = key.sign("sb://h/jobs", 1_700_000_000);
        // Computed apart, with Python's hmac over "sb%3A%2F%2Fh%2Fjobs\n1700000000".
        assert_eq!(
            token.expose_secret(),
            "SharedAccessSignature sr=sb%3A%2F%2Fh%2Fjobs&sig=NBbaA54UViQrbEBGCu1X9Cy1UYLVYtbz1o2ZOhWYR6I%3D&se=1700000000&skn=Root"
        );
    }
}
