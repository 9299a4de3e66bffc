//! Claims: the tokens by which a connection may use the queue, put to the broker's `$cbs` node and
//! renewed ahead of their end.

use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use tracing::{debug, warn};

use super::fault::Fault;
use super::request::{Request, RequestLink};

const SCOPE: &str = "https://servicebus.azure.net/.default";

/// What stays as it is in a signature's fields.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// How long after a failed renewal the next is tried, while the old token still holds.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// How a token is come by.
#[derive(Debug, Clone)]
pub(super) enum Credential {
    Sas { key: SharedKey, lifetime: Duration },
    Entra(Arc<dyn TokenCredential>),
}

/// A shared access policy's name and key.
#[derive(Debug, Clone)]
pub(super) struct SharedKey {
    pub(super) name: String,
    pub(super) key: SecretString,
}

/// One token, and when it ends.
pub(super) struct Token {
    kind: &'static str,
    pub(super) text: SecretString,
    pub(super) ends: Timestamp,
}

impl Credential {
    pub(super) async fn token(&self, audience: &str) -> Result<Token, Fault> {
        match self {
            Self::Sas { key, lifetime } => {
                // A signature ends with a whole second.
                let ends = (Timestamp::now() + *lifetime).as_second();
                let text = key.sign(audience, ends);
                let ends = Timestamp::from_second(ends).map_err(Fault::passing)?;
                Ok(Token { kind: "servicebus.windows.net:sastoken", text, ends })
            }
            Self::Entra(credential) => {
                let token = credential.get_token(&[SCOPE], None).await.map_err(Fault::passing)?;
                let ends = Timestamp::from_second(token.expires_on.unix_timestamp());
                let ends = ends.map_err(Fault::passing)?;
                Ok(Token { kind: "jwt", text: token.token.secret().to_owned().into(), ends })
            }
        }
    }
}

impl SharedKey {
    fn sign(&self, audience: &str, ends: i64) -> SecretString {
        let resource = utf8_percent_encode(audience, ESCAPED).to_string();
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose_secret().as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(format!("{resource}\n{ends}").as_bytes());
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let signature = utf8_percent_encode(&signature, ESCAPED);
        let name = utf8_percent_encode(&self.name, ESCAPED);
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={ends}&skn={name}").into()
    }
}

/// The claims of one connection.
pub(super) struct Claims {
    pub(super) credential: Credential,
    /// The entities that tokens are for, as `sb://host/entity`.
    pub(super) audiences: Vec<String>,
}

impl Claims {
    /// Puts a token for every audience; tells when the first of them ends.
    pub(super) async fn put(&self, node: &RequestLink) -> Result<Timestamp, Fault> {
        let mut first_end = Timestamp::MAX;
        for audience in &self.audiences {
            let token = self.credential.token(audience).await?;
            first_end = first_end.min(token.ends);
            let request = Request {
                operation: "put-token",
                properties: vec![
                    ("type", SimpleValue::String(token.kind.to_owned())),
                    ("name", SimpleValue::String(audience.clone())),
                    ("expiration", SimpleValue::Timestamp(token.ends.as_millisecond().into())),
                ],
                body: Value::String(token.text.expose_secret().to_owned()),
            };
            node.ask(request).await?.into_body()?;
        }
        Ok(first_end)
    }

    /// Renews the tokens when four fifths of their time are over, until one can't be renewed.
    pub(super) async fn keep(&self, node: RequestLink, mut ends: Timestamp) -> Fault {
        loop {
            let left = left_until(ends);
            tokio::time::sleep(left * 4 / 5).await;
            ends = loop {
                match self.put(&node).await {
                    Ok(ends) => break ends,
                    Err(fault) if fault.is_passing() && left_until(ends) > TRY_AGAIN => {
                        warn!(error = %fault, "could not renew the queue's token; trying again");
                        tokio::time::sleep(TRY_AGAIN).await;
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
