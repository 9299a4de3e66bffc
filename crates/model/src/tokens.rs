//! Entra ID's bearer token on every call: kept at hand, renewed ahead of its end.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use jiff::Timestamp;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tracing::{debug, warn};

/// How long before its end a token is renewed. The credentials of `azure_identity` hand out the same
/// token until five minutes before its end, so asking them earlier would be in vain.
const AHEAD: Duration = Duration::from_secs(240);

/// How long after a failed renewal the next is tried, while the old token still holds.
const TRY_AGAIN: Duration = Duration::from_secs(15);

/// How long one fetch may take. The SDK tries for minutes by itself; who waits is told before.
const PATIENCE: Duration = Duration::from_secs(10);

/// The tokens of one identity for one service.
pub struct Tokens {
    credential: Arc<dyn TokenCredential>,
    scope: String,
    current: RwLock<Option<Current>>,
    /// Held by the one call that fetches.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Current {
    header: HeaderValue,
    renew_at: Instant,
    ends: Instant,
}

impl Tokens {
    /// `scope` names the service that the tokens are for.
    pub fn new(credential: Arc<dyn TokenCredential>, scope: impl Into<String>) -> Self {
        Self {
            credential,
            scope: scope.into(),
            current: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
        }
    }

    /// The `Authorization` header of a call that starts now.
    ///
    /// # Errors
    /// If no token is valid and none can be had.
    pub(super) async fn header(&self) -> Result<HeaderValue, String> {
        let valid = match self.current() {
            Some(current) if Instant::now() < current.renew_at => return Ok(current.header),
            current => current.filter(|current| Instant::now() < current.ends),
        };
        let Some(valid) = valid else { return self.fetch_first().await };
        // One call renews; the others need not wait for it.
        let Ok(_fetching) = self.fetching.try_lock() else { return Ok(valid.header) };
        match self.fetch().await {
            Ok(header) => Ok(header),
            Err(error) => {
                warn!(%error, "the token can't be renewed; the old one is used on");
                self.set(Current { renew_at: Instant::now() + TRY_AGAIN, ..valid.clone() });
                Ok(valid.header)
            }
        }
    }

    async fn fetch_first(&self) -> Result<HeaderValue, String> {
        let _fetching = self.fetching.lock().await;
        match self.current() {
            Some(current) if Instant::now() < current.renew_at => Ok(current.header),
            _ => self.fetch().await,
        }
    }

    async fn fetch(&self) -> Result<HeaderValue, String> {
        let scopes = [self.scope.as_str()];
        let asked = tokio::time::timeout(PATIENCE, self.credential.get_token(&scopes, None));
        let token = match asked.await {
            Ok(token) => token.map_err(|error| format!("Entra ID gives no token: {error}"))?,
            Err(_) => return Err("Entra ID gives no token: its endpoint does not answer".into()),
        };
        let mut header: HeaderValue = format!("Bearer {}", token.token.secret())
            .parse()
            .map_err(|_| "Entra ID's token has characters that no header may have".to_owned())?;
        header.set_sensitive(true);
        let ends = Timestamp::from_second(token.expires_on.unix_timestamp()).unwrap_or_default();
        let left = Duration::try_from(ends.duration_since(Timestamp::now())).unwrap_or_default();
        debug!(seconds = left.as_secs(), scope = self.scope, "has a new token");
        let (now, ahead) = (Instant::now(), AHEAD.min(left / 2));
        let current =
            Current { header: header.clone(), renew_at: now + left - ahead, ends: now + left };
        self.set(current);
        Ok(header)
    }

    fn current(&self) -> Option<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, current: Current) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(current);
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("scope", &self.scope).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use azure_core::credentials::{AccessToken, Secret, TokenRequestOptions};
    use azure_core::error::ErrorKind;
    use azure_core::time::OffsetDateTime;

    use super::*;

    /// Gives tokens of these lifetimes in turn; 0 is a failure.
    #[derive(Debug)]
    struct Given(Mutex<(usize, VecDeque<i64>)>);

    #[async_trait::async_trait]
    impl TokenCredential for Given {
        async fn get_token(
            &self,
            _scopes: &[&str],
            _options: Option<TokenRequestOptions<'_>>,
        ) -> azure_core::Result<AccessToken> {
            let mut state = self.0.lock().unwrap();
            state.0 += 1;
            let fails = || azure_core::Error::with_message(ErrorKind::Credential, "no identity");
            let lifetime = state.1.pop_front().filter(|seconds| *seconds > 0).ok_or_else(fails)?;
            let ends = OffsetDateTime::from_unix_timestamp(Timestamp::now().as_second() + lifetime);
            Ok(AccessToken::new(Secret::new(format!("t{}", state.0)), ends.unwrap()))
        }
    }

    fn tokens(lifetimes: &[i64]) -> Tokens {
        let given = Given(Mutex::new((0, lifetimes.iter().copied().collect())));
        Tokens::new(Arc::new(given), "https://service/.default")
    }

    #[tokio::test(start_paused = true)]
    async fn one_token_serves_until_shortly_before_its_end() {
        let tokens = tokens(&[3_600, 3_600]);
        assert_eq!(tokens.header().await.unwrap(), "Bearer t1");
        tokio::time::advance(Duration::from_secs(3_300)).await;
        assert_eq!(tokens.header().await.unwrap(), "Bearer t1");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(tokens.header().await.unwrap(), "Bearer t2");
        assert!(!format!("{tokens:?}").contains("t2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_renewal_leaves_the_old_token_in_use_until_its_end() {
        let tokens = tokens(&[3_600, 0, 3_600]);
        assert_eq!(tokens.header().await.unwrap(), "Bearer t1");
        tokio::time::advance(Duration::from_secs(3_400)).await;
        assert_eq!(tokens.header().await.unwrap(), "Bearer t1", "the renewal failed");
        assert_eq!(tokens.header().await.unwrap(), "Bearer t1", "and waits a moment");
        tokio::time::advance(TRY_AGAIN).await;
        assert_eq!(tokens.header().await.unwrap(), "Bearer t3");
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_token_the_call_is_not_made() {
        let said = tokens(&[0]).header().await.unwrap_err();
        assert!(said.contains("no identity"), "{said}");
    }
}
