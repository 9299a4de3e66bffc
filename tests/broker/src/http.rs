//! The HTTP side of the namespace: one connection's requests, who may make them, and where they go.
//!
//! Messages are `rest`'s business, descriptions are `admin`'s; both work on the shelves that AMQP
//! works on. An answer that is to be lost ends the connection.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;

use crate::admin;
use crate::namespace::entity_path;
use crate::rest;
use crate::shared::Shared;

/// No request of the service's own limits is larger.
const LARGEST_REQUEST: usize = 100 << 20;

pub type Answer = Response<Full<Bytes>>;

/// The answer gets lost on its way.
#[derive(Debug, thiserror::Error)]
#[error("this answer is lost on purpose")]
pub struct Lost;

/// A request, read to its end.
pub struct Asked {
    pub head: hyper::http::request::Parts,
    pub body: Bytes,
    /// Decoded, without the outer slashes.
    pub path: String,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    pub fn query(&self, name: &str) -> Option<&str> {
        let pairs = self.head.uri.query()?.split('&');
        pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, v)| v)
    }
}

/// Serves one client until it leaves.
pub async fn serve(stream: TcpStream, shared: Arc<Shared>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Answer, Lost> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, LARGEST_REQUEST).collect().await else {
        return Ok(refusal(StatusCode::PAYLOAD_TOO_LARGE, "The request is too large."));
    };
    let path = percent_decode_str(head.uri.path()).decode_utf8_lossy().trim_matches('/').to_owned();
    let asked = Asked { head, body: body.to_bytes(), path };
    if let Some(status) = shared.faults().refusals.pop_front() {
        return Ok(refusal(status, "The server is busy. Please try again."));
    }
    if let Err(why) = admit(&asked, &shared) {
        return Ok(refusal(StatusCode::UNAUTHORIZED, &why));
    }
    match rest::Order::parse(&asked) {
        Some(order) => rest::answer(order, &asked, &shared).await,
        None => Ok(admin::answer(&asked, &shared)),
    }
}

/// Checks the token, which must be for the resource or for what it is part of.
fn admit(asked: &Asked, shared: &Shared) -> Result<(), String> {
    let token = asked.header(AUTHORIZATION.as_str()).unwrap_or_default();
    let token = token.strip_prefix("Bearer ").unwrap_or(token);
    let now = shared.clock.now();
    let verified = shared.tokens.verify(token, &entity_path(&asked.path), now);
    verified.map(drop).map_err(|error| error.to_string())
}

pub fn plain(status: StatusCode) -> Answer {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

/// An error as the service words them.
pub fn refusal(status: StatusCode, detail: &str) -> Answer {
    let text = format!("<Error><Code>{}</Code><Detail>{detail}</Detail></Error>", status.as_u16());
    with_body(status, "application/xml; charset=utf-8", text.into())
}

pub fn with_body(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind.parse().expect("a header of our own"));
    response
}
