//! Claim check: a body too large for a queue message is stored, and the message refers to it.

use serde::{Deserialize, Serialize};

/// Reference to a body in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimCheck {
    /// [`Job::digest`](super::Job::digest) of the job with its body.
    #[serde(with = "hex")]
    pub digest: u64,
    /// Size of the body.
    pub bytes: u64,
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
