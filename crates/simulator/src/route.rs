//! URL routing: the classic Azure paths, Azure's v1, plain OpenAI, and the simulator's own paths
//! for the ledger and the deployments.
//!
//! Neighbour: `service` executes the route.

use hyper::{Method, Uri};

use super::request::SimulatedApi;

#[derive(Debug, PartialEq, Eq)]
pub enum RequestRoute<'a> {
    Call(ApiCall<'a>),
    Models,
    Ledger,
    /// One line for each distinct prompt.
    LedgerPrompts,
    LedgerReset,
    Deployments,
    /// Changes the named deployment, or all of them.
    Change(Option<&'a str>),
    NotFound,
}

/// Call of one of the three APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiCall<'a> {
    pub api: SimulatedApi,
    /// Deployment named by the path; otherwise the body's `model` names it.
    pub deployment: Option<&'a str>,
    /// The answer includes the Azure-only fields.
    pub is_azure: bool,
}

impl<'a> RequestRoute<'a> {
    pub fn of(method: &Method, uri: &'a Uri) -> Self {
        let path = uri.path();
        match (method, path) {
            (&Method::POST, "/ledger/reset") | (&Method::DELETE, "/ledger") => Self::LedgerReset,
            (&Method::GET, "/deployments") => Self::Deployments,
            (&Method::POST, "/deployments") => Self::Change(None),
            (&Method::POST, path) if path.starts_with("/deployments/") => {
                Self::Change(path.strip_prefix("/deployments/"))
            }
            (&Method::POST, _) => call(uri).map_or(Self::NotFound, Self::Call),
            (&Method::GET, "/ledger") if query(uri, "prompts") == Some("true") => {
                Self::LedgerPrompts
            }
            (&Method::GET, "/ledger") => Self::Ledger,
            (&Method::GET, "/v1/models" | "/openai/v1/models") => Self::Models,
            _ => Self::NotFound,
        }
    }
}

fn call(uri: &Uri) -> Option<ApiCall<'_>> {
    let path = uri.path();
    if let Some(api) = path.strip_prefix("/v1/").and_then(api) {
        return Some(ApiCall { api, deployment: None, is_azure: false });
    }
    let path = path.strip_prefix("/openai/")?;
    if let Some(api) = path.strip_prefix("v1/").and_then(api) {
        return Some(ApiCall { api, deployment: None, is_azure: true });
    }
    // The classic paths do not exist without a version.
    query(uri, "api-version").filter(|version| !version.is_empty())?;
    if path == "responses" {
        return Some(ApiCall { api: SimulatedApi::Responses, deployment: None, is_azure: true });
    }
    let (deployment, rest) = path.strip_prefix("deployments/")?.split_once('/')?;
    let api = api(rest).filter(|api| *api != SimulatedApi::Responses)?;
    Some(ApiCall { api, deployment: Some(deployment), is_azure: true })
}

fn api(path: &str) -> Option<SimulatedApi> {
    match path {
        "chat/completions" => Some(SimulatedApi::Chat),
        "responses" => Some(SimulatedApi::Responses),
        "embeddings" => Some(SimulatedApi::Embeddings),
        _ => None,
    }
}

fn query<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find_map(|(key, value)| (key == name).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_url_shape_leads_to_its_api() {
        let classic = ApiCall { api: SimulatedApi::Chat, deployment: Some("d"), is_azure: true };
        let embed = ApiCall { api: SimulatedApi::Embeddings, ..classic };
        let responses = ApiCall { api: SimulatedApi::Responses, deployment: None, is_azure: true };
        let v1 = ApiCall { deployment: None, ..classic };
        let plain = ApiCall { is_azure: false, ..v1 };
        for (path, call) in [
            ("/openai/deployments/d/chat/completions?api-version=2024-10-21", Some(classic)),
            ("/openai/deployments/d/embeddings?x=1&api-version=2024-10-21", Some(embed)),
            ("/openai/responses?api-version=2025-04-01-preview", Some(responses)),
            ("/openai/v1/responses", Some(responses)),
            ("/openai/v1/chat/completions", Some(v1)),
            ("/v1/chat/completions", Some(plain)),
            ("/openai/deployments/d/chat/completions", None),
            ("/openai/deployments/d/responses?api-version=1", None),
            ("/openai/responses", None),
            ("/v1/completions", None),
        ] {
            let uri = path.parse().unwrap();
            let route = call.map_or(RequestRoute::NotFound, RequestRoute::Call);
            assert_eq!(RequestRoute::of(&Method::POST, &uri), route, "{path}");
        }
    }

    #[test]
    fn deployments_are_listed_and_changed() {
        let (all, one) = ("/deployments".parse().unwrap(), "/deployments/east".parse().unwrap());
        assert_eq!(RequestRoute::of(&Method::GET, &all), RequestRoute::Deployments);
        assert_eq!(RequestRoute::of(&Method::POST, &all), RequestRoute::Change(None));
        assert_eq!(RequestRoute::of(&Method::POST, &one), RequestRoute::Change(Some("east")));
    }
}
