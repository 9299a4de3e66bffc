//! Claim check: a body too large for a queue message is stored, and the message refers to it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Job, digest};

/// Reference to a body in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimCheck {
    /// [`Job::digest`] of the job with its body.
    #[serde(with = "hex")]
    pub digest: u64,
    /// Size of the body.
    pub bytes: u64,
}

impl Job {
    /// Takes the body out, to be stored under [`Job::payload_name`] before the job is sent.
    pub fn offload_body(&mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        self.claim_check =
            Some(ClaimCheck { digest: digest(self.api, &body), bytes: body.len() as u64 });
        body
    }

    /// Returns the name of a stored body. It is made of the job and the body: storing it again
    /// changes nothing, and another body of the same job gets another name.
    pub fn payload_name(&self) -> Option<String> {
        self.claim_check.map(|aside| format!("{}-{:016x}", self.id, aside.digest))
    }

    /// Returns the job with its body at hand; `None` if this is not the body that was stored.
    pub fn with_body(&self, body: Bytes) -> Option<Self> {
        let whole = Self { body, claim_check: None, ..self.clone() };
        (whole.digest() == self.digest()).then_some(whole)
    }
}

/// Hexadecimal form: numbers above 2^53 lose digits in other programs' JSON.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}
