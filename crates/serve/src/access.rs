//! Access control: tokens, roles, forged requests, request rates.
//!
//! With tokens, every request (except `/livez`, `/readyz` and the dashboard's page and assets,
//! which reveal nothing) must send one as `Authorization: Bearer …`, and its role must suffice. A
//! browser never sends such a header by itself, so a page of another site can't act in the user's
//! name.
//!
//! Without tokens the server listens on a loopback address only, and every local user may do
//! everything. Two attacks by a page of another site through the owner's browser are blocked: a
//! foreign name that resolves to this address (DNS rebinding) by its `Host`, and a cross-site
//! request that would change something (CSRF) by `Sec-Fetch-Site` and `Origin`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use ring::digest::{Digest, SHA256, digest};
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::settings::{Role, ServeConfig, ServeSettingsError};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Access settings with which the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Config(#[from] ServeSettingsError),
    #[error(
        "serve.listen is {0}, which others can reach: set at least one token in [[serve.tokens]], \
         or listen on 127.0.0.1"
    )]
    NoToken(SocketAddr),
}

/// Tokens, roles and rate limits of the callers.
pub struct AccessControl {
    callers: Vec<ApiCaller>,
    /// Rate limit of all requests without a valid token.
    anonymous_rate: DefaultDirectRateLimiter,
}

struct ApiCaller {
    role: Role,
    token: Digest,
    rate: DefaultDirectRateLimiter,
}

impl AccessControl {
    /// # Errors
    /// If a token can't be read, or none is set although the address is not loopback.
    pub fn new(settings: &ServeConfig) -> Result<Self, AccessError> {
        if settings.tokens.is_empty() && !settings.listen.ip().is_loopback() {
            return Err(AccessError::NoToken(settings.listen));
        }
        let per_second = settings.limits.requests_per_second;
        let rate = || {
            let per_second = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_second(per_second))
        };
        let caller = |token: &crate::settings::ServeToken| {
            let secret = token.secret()?;
            let token_digest = digest(&SHA256, secret.expose_secret().as_bytes());
            Ok(ApiCaller { role: token.role, token: token_digest, rate: rate() })
        };
        let callers =
            settings.tokens.iter().map(caller).collect::<Result<_, ServeSettingsError>>()?;
        Ok(Self { callers, anonymous_rate: rate() })
    }

    /// Returns the role of the request's caller.
    fn authorize(&self, request: &RequestHead<'_>) -> Result<Role, ApiError> {
        if self.callers.is_empty() {
            check_rate(&self.anonymous_rate)?;
            check_host(request)?;
            check_origin(request)?;
            return Ok(Role::Operate);
        }
        let Some(caller) = bearer(request.headers).and_then(|token| self.find_caller(token)) else {
            check_rate(&self.anonymous_rate)?;
            let message = "a valid token is needed: send it as 'Authorization: Bearer TOKEN'";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        };
        check_rate(&caller.rate)?;
        Ok(caller.role)
    }

    /// Finds the caller of a token. Compares with every token in full, so the time reveals nothing.
    fn find_caller(&self, token: &str) -> Option<&ApiCaller> {
        let given = digest(&SHA256, token.as_bytes());
        let is_same = |caller: &&ApiCaller| caller.token.as_ref().ct_eq(given.as_ref()).into();
        self.callers.iter().filter(is_same).last()
    }
}

/// Restricts the router's routes to callers whose role suffices.
pub fn require_role<S>(router: Router<S>, access: &Arc<AccessControl>, role: Role) -> Router<S>
where
    S: Clone + Send + Sync + 'static,
{
    router.route_layer(middleware::from_fn_with_state((access.clone(), role), authorize_request))
}

async fn authorize_request(
    State((access, needed)): State<(Arc<AccessControl>, Role)>,
    mut request: Request,
    next: Next,
) -> Response {
    let asked =
        RequestHead { method: request.method(), uri: request.uri(), headers: request.headers() };
    let role = match access.authorize(&asked) {
        Ok(role) => role,
        Err(error) => return error.into_response(),
    };
    if role < needed {
        let message = format!("this needs a token with the role '{}'", name(needed));
        return ApiError::new(StatusCode::FORBIDDEN, "insufficient_role", message).into_response();
    }
    request.extensions_mut().insert(role);
    next.run(request).await
}

/// Parts of a request that decide on its access.
struct RequestHead<'a> {
    method: &'a Method,
    uri: &'a Uri,
    headers: &'a HeaderMap,
}

impl RequestHead<'_> {
    fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap_or("(not text)"))
    }

    /// Returns the authority that the caller addressed.
    fn host(&self) -> Option<&str> {
        let of_uri = self.uri.authority().map(|authority| authority.as_str());
        of_uri.or_else(|| self.header(header::HOST))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn check_rate(rate: &DefaultDirectRateLimiter) -> Result<(), ApiError> {
    rate.check().map_err(|_| {
        let message = "too many requests; wait a second";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        ApiError { retry_after: Some(1), ..error }
    })
}

fn check_host(request: &RequestHead<'_>) -> Result<(), ApiError> {
    if request.host().is_some_and(is_loopback_name) {
        return Ok(());
    }
    let message = "without tokens the server answers to the names of this machine only \
                   (localhost, 127.0.0.1, [::1])";
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden_host", message))
}

fn is_loopback_name(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Refuses cross-site requests that change something. Reading is harmless: a browser keeps the
/// answer from a page of another site.
fn check_origin(request: &RequestHead<'_>) -> Result<(), ApiError> {
    if matches!(*request.method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let is_ours = match request.header(SEC_FETCH_SITE) {
        Some(site) => matches!(site, "same-origin" | "none"),
        None => match request.header(header::ORIGIN) {
            Some(origin) => {
                let host = origin.strip_prefix("http://");
                host.is_some()
                    && host.map(str::to_ascii_lowercase)
                        == request.host().map(str::to_ascii_lowercase)
            }
            // No browser: browsers send one of the two with every request that changes something.
            None => true,
        },
    };
    if is_ours {
        return Ok(());
    }
    let message = "a page of another site can't change anything here";
    Err(ApiError::new(StatusCode::FORBIDDEN, "cross_site", message))
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Read => "read",
        Role::Submit => "submit",
        Role::Operate => "operate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::ServeToken;

    fn open() -> AccessControl {
        AccessControl::new(&ServeConfig::default()).unwrap()
    }

    fn with_token(role: Role) -> ServeConfig {
        let token = Some("0123456789abcdef".into());
        let token = ServeToken { name: "ci".into(), role, token, ..ServeToken::default() };
        ServeConfig { tokens: vec![token], ..ServeConfig::default() }
    }

    fn admit(
        access: &AccessControl,
        method: &Method,
        headers: &[(&str, &str)],
    ) -> Result<Role, u16> {
        let uri = Uri::from_static("/v1/files");
        let named = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), value.parse().unwrap())
        };
        let headers = headers.iter().map(named).collect();
        let asked = RequestHead { method, uri: &uri, headers: &headers };
        access.authorize(&asked).map_err(|error| error.status.as_u16())
    }

    #[test]
    fn only_loopback_is_open_without_a_token() {
        let everywhere =
            ServeConfig { listen: "0.0.0.0:0".parse().unwrap(), ..ServeConfig::default() };
        assert!(matches!(AccessControl::new(&everywhere), Err(AccessError::NoToken(_))));
        let tokens = with_token(Role::Read).tokens;
        assert!(AccessControl::new(&ServeConfig { tokens, ..everywhere }).is_ok());
    }

    #[test]
    fn a_short_token_is_refused_and_never_shown() {
        let mut settings = with_token(Role::Read);
        settings.tokens[0].token = Some("s3cret".into());
        let said = AccessControl::new(&settings).err().unwrap().to_string();
        assert!(said.contains("'ci': it is shorter than 16") && !said.contains("s3cret"), "{said}");
    }

    #[test]
    fn names_of_this_machine_are_known() {
        for name in ["localhost", "LocalHost:8780", "127.0.0.1:1", "127.9.9.9", "[::1]:80", "[::1]"]
        {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in ["evil.example", "localhost.evil.example:80", "10.0.0.1", "[::2]:1", "", ":80"]
        {
            assert!(!is_loopback_name(name), "{name}");
        }
    }

    #[test]
    fn without_tokens_forged_requests_are_refused() {
        let (own, evil) = (("host", "localhost:1"), ("host", "evil.example"));
        let post = Method::POST;
        type Case<'a> = (&'a Method, &'a [(&'a str, &'a str)], Result<Role, u16>);
        let cases: [Case<'_>; 9] = [
            (&Method::GET, &[own], Ok(Role::Operate)),
            (&post, &[own], Ok(Role::Operate)),
            (&Method::GET, &[evil], Err(403)),
            (&Method::GET, &[], Err(403)),
            (&post, &[own, ("origin", "http://localhost:1")], Ok(Role::Operate)),
            (&post, &[own, ("origin", "http://localhost:2")], Err(403)),
            (&post, &[own, ("origin", "null")], Err(403)),
            (&post, &[own, ("sec-fetch-site", "same-site")], Err(403)),
            (&Method::GET, &[own, ("sec-fetch-site", "cross-site")], Ok(Role::Operate)),
        ];
        for (method, headers, answer) in cases {
            assert_eq!(admit(&open(), method, headers), answer, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_token_opens_what_its_role_may() {
        let access = AccessControl::new(&with_token(Role::Submit)).unwrap();
        let bearer = |value| admit(&access, &Method::POST, &[("authorization", value)]);
        assert_eq!(bearer("Bearer 0123456789abcdef"), Ok(Role::Submit));
        assert_eq!(bearer("bearer  0123456789abcdef"), Ok(Role::Submit));
        for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Basic 0123456789abcdef", "Bearer"] {
            assert_eq!(bearer(wrong), Err(401), "{wrong}");
        }
        assert_eq!(admit(&access, &Method::GET, &[("host", "localhost")]), Err(401));
    }

    #[test]
    fn a_caller_has_a_rate() {
        let mut settings = with_token(Role::Read);
        settings.limits.requests_per_second = 1;
        let access = AccessControl::new(&settings).unwrap();
        let get = || admit(&access, &Method::GET, &[("authorization", "Bearer 0123456789abcdef")]);
        assert_eq!((get(), get()), (Ok(Role::Read), Err(429)));
    }
}
