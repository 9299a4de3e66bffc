//! The signature: HMAC-SHA256 over id, time and body, by the Standard Webhooks specification.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use secrecy::{ExposeSecret, SecretSlice, SecretString};

/// Prefix of a secret as people see it.
const PREFIX: &str = "whsec_";

/// Length recommended by the specification: 192 to 512 bits.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The key that sender and receiver share.
#[derive(Debug)]
pub struct SigningKey(SecretSlice<u8>);

/// Malformed secret.
#[derive(Debug, thiserror::Error)]
#[error(
    "the secret must be 'whsec_' and 24 to 64 bytes in base64; \
     `echo whsec_$(openssl rand -base64 32)` makes one"
)]
pub struct BadSecret;

impl SigningKey {
    /// # Errors
    /// If it is not the base64 of 24 to 64 bytes after its prefix.
    pub fn new(secret: &SecretString) -> Result<Self, BadSecret> {
        let encoded = secret.expose_secret().trim().strip_prefix(PREFIX).ok_or(BadSecret)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| BadSecret)?;
        KEY_BYTES.contains(&bytes.len()).then(|| Self(bytes.into())).ok_or(BadSecret)
    }

    /// Returns the header `webhook-signature`; `seconds` is the Unix time of this attempt.
    pub fn sign(&self, id: &str, seconds: i64, body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.0.expose_secret());
        let signature = hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
        format!("v1,{}", STANDARD.encode(signature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &str) -> Result<SigningKey, BadSecret> {
        SigningKey::new(&secret.to_owned().into())
    }

    #[test]
    fn the_specifications_example_is_signed_as_it_says() {
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature =
            key.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        for secret in ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_c2hvcnQ=", "whsec_!!"] {
            assert!(key(secret).is_err(), "{secret}");
        }
        let key = key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert!(format!("{key:?}").contains("REDACTED"), "{key:?}");
    }
}
