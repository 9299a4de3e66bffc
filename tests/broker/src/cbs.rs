//! `$cbs`: the tokens by which a connection may use entities, and their end.
//!
//! A shared-access signature is checked for real: signature, expiry, key name, audience. A JWT can
//! only be looked at, since nobody here holds its issuer's keys: it must have an expiry to come.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use sha2::Sha256;

use crate::entity::Millis;
use crate::namespace::entity_path;

/// Why a token is no good; the text goes to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("The token has an invalid format.")]
    Malformed,
    #[error("The token is expired.")]
    Expired,
    #[error("The token has an invalid signature.")]
    Signature,
    #[error("The token is for another audience.")]
    Audience,
}

/// How tokens are checked.
#[derive(Debug, Clone)]
pub struct TokenRules {
    pub check: bool,
    pub key_name: String,
    pub key: String,
}

impl TokenRules {
    /// When the token ends, if it is good for `audience` now.
    pub fn verify(&self, token: &str, audience: &str, now: Millis) -> Result<Millis, TokenError> {
        if !self.check {
            return Ok(Millis::MAX);
        }
        // The request's type is no help: an SDK calls every token "jwt".
        let ends = match token.strip_prefix("SharedAccessSignature ") {
            Some(fields) => self.verify_signature(fields, audience)?,
            None => jwt_expiry(token)?,
        };
        if ends <= now { Err(TokenError::Expired) } else { Ok(ends) }
    }

    fn verify_signature(&self, fields: &str, audience: &str) -> Result<Millis, TokenError> {
        let fields: HashMap<&str, &str> =
            fields.split('&').filter_map(|field| field.split_once('=')).collect();
        let field = |name| fields.get(name).copied().ok_or(TokenError::Malformed);
        let (resource, expiry) = (field("sr")?, field("se")?);
        if decoded(field("skn")?)? != self.key_name {
            return Err(TokenError::Signature);
        }
        let signature = STANDARD.decode(decoded(field("sig")?)?);
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.as_bytes())
            .expect("HMAC takes keys of any length");
        // Signed is the resource as it is spelt in the token, still percent-encoded.
        mac.update(format!("{resource}\n{expiry}").as_bytes());
        mac.verify_slice(&signature.map_err(|_| TokenError::Malformed)?)
            .map_err(|_| TokenError::Signature)?;
        let resource = decoded(resource)?;
        // Clients of the REST operations sign the whole URL, with what it asks for.
        let resource = resource.split('?').next().unwrap_or_default();
        if !covers(&entity_path(resource), &entity_path(audience)) {
            return Err(TokenError::Audience);
        }
        let seconds: Millis = expiry.parse().map_err(|_| TokenError::Malformed)?;
        Ok(seconds.saturating_mul(1_000))
    }
}

fn decoded(text: &str) -> Result<String, TokenError> {
    Ok(percent_decode_str(text).decode_utf8().map_err(|_| TokenError::Malformed)?.into_owned())
}

fn jwt_expiry(token: &str) -> Result<Millis, TokenError> {
    let claims = token.split('.').nth(1).ok_or(TokenError::Malformed)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?;
    let claims: serde_json::Value =
        serde_json::from_slice(&claims).map_err(|_| TokenError::Malformed)?;
    let seconds = claims["exp"].as_i64().ok_or(TokenError::Malformed)?;
    Ok(seconds.saturating_mul(1_000))
}

/// Whether a right on `outer` is one on `inner`: the whole namespace, the entity, or its parts.
fn covers(outer: &str, inner: &str) -> bool {
    outer.is_empty()
        || inner == outer
        || inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
}

/// The tokens one connection has put.
#[derive(Debug, Default)]
pub struct Tokens {
    ends: HashMap<String, Millis>,
}

impl Tokens {
    pub fn put(&mut self, audience: &str, ends: Millis) {
        self.ends.insert(entity_path(audience), ends);
    }

    pub fn allow(&self, path: &str, now: Millis) -> bool {
        self.ends.iter().any(|(audience, ends)| *ends > now && covers(audience, path))
    }

    /// When the next token ends.
    pub fn next_end(&self) -> Option<Millis> {
        self.ends.values().copied().min().filter(|end| *end < Millis::MAX)
    }

    pub fn forget_ended(&mut self, now: Millis) {
        self.ends.retain(|_, ends| *ends > now);
    }

    pub fn forget_all(&mut self) {
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

    const NOW: Millis = 1_000_000_000_000;

    fn rules() -> TokenRules {
        TokenRules { check: true, key_name: "Root".into(), key: "secret".into() }
    }

    fn signed(uri: &str, expiry: i64, key: &str) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let resource = encode(uri);
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(format!("{resource}\n{expiry}").as_bytes());
        let signature = encode(&STANDARD.encode(mac.finalize().into_bytes()));
        format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}&skn=Root")
    }

    #[test]
    fn signatures_are_checked() {
        let (good, late) = (NOW / 1_000 + 60, NOW / 1_000 - 1);
        let (queue, other) = ("sb://localhost/jobs", "sb://localhost/other");
        let check = |token: &str| rules().verify(token, "amqps://localhost/jobs", NOW);
        assert_eq!(check(&signed(queue, good, "secret")), Ok(good * 1_000));
        assert_eq!(check(&signed("sb://localhost", good, "secret")), Ok(good * 1_000));
        assert_eq!(check(&signed(queue, good, "wrong")), Err(TokenError::Signature));
        assert_eq!(check(&signed(queue, late, "secret")), Err(TokenError::Expired));
        assert_eq!(check(&signed(other, good, "secret")), Err(TokenError::Audience));
        assert_eq!(check("nonsense"), Err(TokenError::Malformed));
    }

    #[test]
    fn a_jwt_needs_an_expiry_to_come() {
        let token = |claims: &str| format!("x.{}.y", URL_SAFE_NO_PAD.encode(claims));
        let check = |token: &str| rules().verify(token, "sb://localhost/jobs", NOW);
        assert_eq!(check(&token(r#"{"exp":1000000001}"#)), Ok(NOW + 1_000));
        assert_eq!(check(&token(r#"{"exp":999999999}"#)), Err(TokenError::Expired));
        assert_eq!(check(&token("{}")), Err(TokenError::Malformed));
        assert_eq!(check(""), Err(TokenError::Malformed));
    }

    #[test]
    fn a_token_covers_the_parts_of_its_entity_until_it_ends() {
        let mut tokens = Tokens::default();
        tokens.put("sb://localhost/jobs", NOW);
        assert!(tokens.allow("jobs/$deadletterqueue", NOW - 1));
        assert!(!tokens.allow("jobs2", NOW - 1));
        assert!(!tokens.allow("jobs", NOW));
    }
}
