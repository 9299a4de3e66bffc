//! Bearer tokens of Entra ID: cached, and renewed before they expire.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use jiff::Timestamp;
use reqwest::header::HeaderValue;
use tokio::time::Instant;
use tracing::{debug, warn};

/// Time before its end at which a token is renewed. The credentials of `azure_identity` return the
/// same token until five minutes before its end, so asking them earlier would be in vain.
const RENEW_AHEAD: Duration = Duration::from_secs(240);

/// Delay after a failed renewal, while the old token is still valid.
const RETRY_AFTER: Duration = Duration::from_secs(15);

/// Time limit of one fetch. The SDK retries for minutes by itself; callers get an error sooner.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Cache of one identity's tokens for one service.
pub struct BearerTokenCache {
    credential: Arc<dyn TokenCredential>,
    scope: String,
    current: RwLock<Option<CachedToken>>,
    /// Held by the one call that fetches; the time of the last fetch after a 401.
    fetch_lock: tokio::sync::Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct CachedToken {
    header: HeaderValue,
    renew_at: Instant,
    ends: Instant,
}

impl BearerTokenCache {
    /// Creates an empty cache; `scope` names the service that the tokens are for.
    pub fn new(credential: Arc<dyn TokenCredential>, scope: impl Into<String>) -> Self {
        Self {
            credential,
            scope: scope.into(),
            current: RwLock::default(),
            fetch_lock: tokio::sync::Mutex::default(),
        }
    }

    /// Returns the `Authorization` header of a call that starts now.
    ///
    /// # Errors
    /// If no token is valid and none can be had.
    pub(super) async fn header(&self) -> Result<HeaderValue, String> {
        let valid = match self.current() {
            Some(current) if Instant::now() < current.renew_at => return Ok(current.header),
            current => current.filter(|current| Instant::now() < current.ends),
        };
        let Some(valid) = valid else { return self.fetch_first().await };
        // One call renews; the others go on with the old token.
        let Ok(_fetching) = self.fetch_lock.try_lock() else { return Ok(valid.header) };
        match self.fetch().await {
            Ok(header) => Ok(header),
            Err(error) => {
                warn!(%error, "the token can't be renewed; the old one stays in use");
                self.set(CachedToken { renew_at: Instant::now() + RETRY_AFTER, ..valid.clone() });
                Ok(valid.header)
            }
        }
    }

    /// Returns another token than the one that was refused, if there is one. It is fetched at most
    /// once in [`RETRY_AFTER`], however many calls were refused.
    pub(super) async fn replace(&self, refused: &HeaderValue) -> Option<HeaderValue> {
        let mut fetched_at = self.fetch_lock.lock().await;
        let current = self.current().map(|current| current.header);
        if let Some(current) = current.filter(|current| current != refused) {
            return Some(current);
        }
        if fetched_at.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return None;
        }
        *fetched_at = Some(Instant::now());
        match self.fetch().await {
            Ok(fresh) => Some(fresh).filter(|fresh| fresh != refused),
            Err(error) => {
                warn!(%error, "a token was refused, and no other one can be had");
                None
            }
        }
    }

    async fn fetch_first(&self) -> Result<HeaderValue, String> {
        let _fetching = self.fetch_lock.lock().await;
        match self.current() {
            Some(current) if Instant::now() < current.renew_at => Ok(current.header),
            _ => self.fetch().await,
        }
    }

    async fn fetch(&self) -> Result<HeaderValue, String> {
        let scopes = [self.scope.as_str()];
        let asked = tokio::time::timeout(FETCH_TIMEOUT, self.credential.get_token(&scopes, None));
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
        debug!(seconds = left.as_secs(), scope = self.scope, "got a new token");
        let (now, ahead) = (Instant::now(), RENEW_AHEAD.min(left / 2));
        let current =
            CachedToken { header: header.clone(), renew_at: now + left - ahead, ends: now + left };
        self.set(current);
        Ok(header)
    }

    fn current(&self) -> Option<CachedToken> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, current: CachedToken) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(current);
    }
}

impl fmt::Debug for BearerTokenCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BearerTokenCache").field("scope", &self.scope).finish_non_exhaustive()
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

    fn tokens(lifetimes: &[i64]) -> BearerTokenCache {
        let given = Given(Mutex::new((0, lifetimes.iter().copied().collect())));
        BearerTokenCache::new(Arc::new(given), "https://service/.default")
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
        tokio::time::advance(RETRY_AFTER).await;
        assert_eq!(tokens.header().await.unwrap(), "Bearer t3");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_token_is_replaced_once_for_all_calls() {
        let tokens = tokens(&[3_600, 3_600, 0]);
        let first = tokens.header().await.unwrap();
        assert_eq!(tokens.replace(&first).await.unwrap(), "Bearer t2");
        assert_eq!(tokens.replace(&first).await.unwrap(), "Bearer t2", "it was fetched before");
        let second = tokens.header().await.unwrap();
        assert_eq!(tokens.replace(&second).await, None, "so soon again it would be the same");
        tokio::time::advance(RETRY_AFTER).await;
        assert_eq!(tokens.replace(&second).await, None, "there is none");
        assert_eq!(tokens.header().await.unwrap(), "Bearer t2");
    }

    #[tokio::test(start_paused = true)]
    async fn without_any_token_the_call_is_not_made() {
        let said = tokens(&[0]).header().await.unwrap_err();
        assert!(said.contains("no identity"), "{said}");
    }
}
