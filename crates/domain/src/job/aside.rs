//! Bodies that are too large for a queue's message: they lie in the store, the job knows them again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Job, digest};

/// What is known of a body that lies in the store (a claim check).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The [`Job::digest`] of the job with its body.
    #[serde(with = "hex")]
    pub digest: u64,
    /// The body's size.
    pub bytes: u64,
}

impl Job {
    /// Takes the body out, to be stored under [`Job::payload`] before the job is sent.
    pub fn put_aside(&mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        self.aside = Some(Aside { digest: digest(self.api, &body), bytes: body.len() as u64 });
        body
    }

    /// The name in the store of a body that lies aside. It is of the job and the body: storing it
    /// again changes nothing, and another body of the same job gets another name.
    pub fn payload(&self) -> Option<String> {
        self.aside.map(|aside| format!("{}-{:016x}", self.id, aside.digest))
    }

    /// The job with its body at hand; `None` if this is not the body that was put aside.
    pub fn with_body(&self, body: Bytes) -> Option<Self> {
        let whole = Self { body, aside: None, ..self.clone() };
        (whole.digest() == self.digest()).then_some(whole)
    }
}

/// Numbers above 2^53 lose digits in other programs' JSON, so they travel as text.
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
