//! Which URL asks for what: the classic Azure paths, Azure's v1, plain OpenAI, and the simulator's
//! own, which are the ledger and the deployments.
//!
//! Neighbour: `service` does what the route says.

use hyper::{Method, Uri};

use super::request::Api;

#[derive(Debug, PartialEq, Eq)]
pub enum Route<'a> {
    Call(Call<'a>),
    Models,
    Ledger,
    /// One line for each distinct prompt.
    LedgerPrompts,
    LedgerReset,
    Deployments,
    /// Changes the deployment of this name, or all.
    Change(Option<&'a str>),
    Nowhere,
}

/// A call of one of the three APIs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    pub api: Api,
    /// Named by the path; otherwise the body's `model` names it.
    pub deployment: Option<&'a str>,
    /// Whether the answer has what only Azure sends.
    pub azure: bool,
}

impl<'a> Route<'a> {
    pub fn of(method: &Method, uri: &'a Uri) -> Self {
        let path = uri.path();
        match (method, path) {
            (&Method::POST, "/ledger/reset") | (&Method::DELETE, "/ledger") => Self::LedgerReset,
            (&Method::GET, "/deployments") => Self::Deployments,
            (&Method::POST, "/deployments") => Self::Change(None),
            (&Method::POST, path) if path.starts_with("/deployments/") => {
                Self::Change(path.strip_prefix("/deployments/"))
            }
            (&Method::POST, _) => call(uri).map_or(Self::Nowhere, Self::Call),
            (&Method::GET, "/ledger") if query(uri, "prompts") == Some("true") => {
                Self::LedgerPrompts
            }
            (&Method::GET, "/ledger") => Self::Ledger,
            (&Method::GET, "/v1/models" | "/openai/v1/models") => Self::Models,
            _ => Self::Nowhere,
        }
    }
}

fn call(uri: &Uri) -> Option<Call<'_>> {
    let path = uri.path();
    if let Some(api) = path.strip_prefix("/v1/").and_then(api) {
        return Some(Call { api, deployment: None, azure: false });
    }
    let path = path.strip_prefix("/openai/")?;
    if let Some(api) = path.strip_prefix("v1/").and_then(api) {
        return Some(Call { api, deployment: None, azure: true });
    }
    // The classic paths do not exist without a version.
    query(uri, "api-version").filter(|version| !version.is_empty())?;
    if path == "responses" {
        return Some(Call { api: Api::Responses, deployment: None, azure: true });
    }
    let (deployment, rest) = path.strip_prefix("deployments/")?.split_once('/')?;
    let api = api(rest).filter(|api| *api != Api::Responses)?;
    Some(Call { api, deployment: Some(deployment), azure: true })
}

fn api(path: &str) -> Option<Api> {
    match path {
        "chat/completions" => Some(Api::Chat),
        "responses" => Some(Api::Responses),
        "embeddings" => Some(Api::Embeddings),
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
        let classic = Call { api: Api::Chat, deployment: Some("d"), azure: true };
        let embed = Call { api: Api::Embeddings, ..classic };
        let responses = Call { api: Api::Responses, deployment: None, azure: true };
        let v1 = Call { deployment: None, ..classic };
        let plain = Call { azure: false, ..v1 };
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
            let route = call.map_or(Route::Nowhere, Route::Call);
            assert_eq!(Route::of(&Method::POST, &uri), route, "{path}");
        }
    }

    #[test]
    fn deployments_are_listed_and_changed() {
        let (all, one) = ("/deployments".parse().unwrap(), "/deployments/east".parse().unwrap());
        assert_eq!(Route::of(&Method::GET, &all), Route::Deployments);
        assert_eq!(Route::of(&Method::POST, &all), Route::Change(None));
        assert_eq!(Route::of(&Method::POST, &one), Route::Change(Some("east")));
    }
}
