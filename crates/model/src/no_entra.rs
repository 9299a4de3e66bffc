//! Stands for `entra` in a build without that feature: there are no tokens, so no value of this type.

use reqwest::header::HeaderValue;

/// Cache that no build without the feature `entra` can have.
pub enum BearerTokenCache {}

impl BearerTokenCache {
    pub(super) async fn header(&self) -> Result<HeaderValue, String> {
        match *self {}
    }

    pub(super) async fn replace(&self, _: &HeaderValue) -> Option<HeaderValue> {
        match *self {}
    }
}
