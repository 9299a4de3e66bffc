//! Messages over HTTP: send, peek-lock, complete, unlock, renew, and receive-and-delete.
//!
//! The requests are those of the service's REST reference; a locked message's place is in the
//! `Location` of the answer that hands it out.

use std::time::Duration;

use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION};
use hyper::{Method, StatusCode};
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::entity::{Settlement, Side};
use crate::faults::Loss;
use crate::http::{Answer, Asked, Lost, plain, refusal, with_body};
use crate::namespace::Address;
use crate::rest_message::{self as message, Handed};
use crate::shared::Shared;
use crate::shelf::Delivery;

const BATCH: &str = "application/vnd.microsoft.servicebus.json";
const LONGEST_POLL: u64 = 60;

/// What is asked of which entity.
pub enum Order {
    Send { entity: String },
    Receive { entity: String, delete: bool },
    Settle { entity: String, token: String, how: How },
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    Complete,
    Unlock,
    Renew,
}

impl Order {
    /// `None` where the path is none of messages.
    pub fn parse(asked: &Asked) -> Option<Self> {
        let parts: Vec<&str> = asked.path.split('/').collect();
        let at = parts.iter().rposition(|part| part.eq_ignore_ascii_case("messages"))?;
        let entity = parts[..at].join("/");
        let method = &asked.head.method;
        match (&parts[at + 1..], method) {
            ([], &Method::POST) => Some(Self::Send { entity }),
            (["head"], &Method::POST) => Some(Self::Receive { entity, delete: false }),
            (["head"], &Method::DELETE) => Some(Self::Receive { entity, delete: true }),
            ([_, token], method) => {
                let how = match *method {
                    Method::DELETE => How::Complete,
                    Method::PUT => How::Unlock,
                    Method::POST => How::Renew,
                    _ => return None,
                };
                Some(Self::Settle { entity, token: (*token).to_owned(), how })
            }
            _ => None,
        }
    }
}

pub async fn answer(order: Order, asked: &Asked, shared: &Shared) -> Result<Answer, Lost> {
    match order {
        Order::Send { entity } => send(&entity, asked, shared),
        Order::Receive { entity, delete } => Ok(receive(&entity, delete, asked, shared).await),
        Order::Settle { entity, token, how } => settle(&entity, &token, how, shared).await,
    }
}

/// The entity's path and side, if there is one.
fn place(entity: &str, shared: &Shared) -> Option<(String, Side)> {
    let place = match Address::parse(entity) {
        Address::Entity { path, side } => Some((path, side)),
        _ => None,
    };
    let known = |(path, _): &(String, Side)| shared.namespace().accepts_sends(path);
    place.filter(known)
}

fn missing(entity: &str) -> Answer {
    let detail = format!("The messaging entity '{entity}' could not be found.");
    refusal(StatusCode::NOT_FOUND, &detail)
}

fn send(entity: &str, asked: &Asked, shared: &Shared) -> Result<Answer, Lost> {
    let path = match place(entity, shared) {
        Some((path, Side::Main)) => path,
        Some(_) => return Ok(refusal(StatusCode::BAD_REQUEST, "Nothing is sent to dead letters.")),
        None => return Ok(missing(entity)),
    };
    if asked.body.len() as u64 > shared.max_message_size {
        return Ok(refusal(StatusCode::FORBIDDEN, "The message is too large."));
    }
    let is_batch = asked.header(CONTENT_TYPE.as_str()) == Some(BATCH);
    let read = if is_batch { message::batch(&asked.body) } else { message::single(asked) };
    let messages = match read {
        Ok(messages) => messages,
        Err(malformed) => return Ok(refusal(StatusCode::BAD_REQUEST, &malformed.to_string())),
    };
    let loss = shared.faults().sends.next();
    if loss == Some(Loss::Order) {
        return Err(Lost);
    }
    let now = shared.clock.now();
    for message in messages {
        shared.namespace().send(&path, message, now);
    }
    shared.wake_all();
    if loss.is_none() { Ok(plain(StatusCode::CREATED)) } else { Err(Lost) }
}

async fn receive(entity: &str, delete: bool, asked: &Asked, shared: &Shared) -> Answer {
    let Some((path, side)) = place(entity, shared) else { return missing(entity) };
    let seconds = asked.query("timeout").and_then(|text| text.parse().ok()).unwrap_or(LONGEST_POLL);
    let end = Instant::now() + Duration::from_secs(seconds.min(LONGEST_POLL));
    let mut changes = shared.changes.subscribe();
    loop {
        let now = shared.clock.now();
        let (next, event) = {
            let mut namespace = shared.namespace();
            let Some(queue) = namespace.queue(&path) else {
                return refusal(StatusCode::BAD_REQUEST, "Nothing is received from a topic.");
            };
            let next =
                if delete { queue.receive_and_delete(side, now) } else { queue.receive(side, now) };
            (next, queue.next_event())
        };
        if let Some(delivery) = next {
            shared.wake_all();
            return handed_out(entity, delete, &delivery, asked);
        }
        let wake = event.map_or(end, |at| shared.clock.instant(at).min(end));
        if Instant::now() >= end {
            return plain(StatusCode::NO_CONTENT);
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = sleep_until(wake) => {}
        }
    }
}

fn handed_out(entity: &str, delete: bool, delivery: &Delivery, asked: &Asked) -> Answer {
    let status = if delete { StatusCode::OK } else { StatusCode::CREATED };
    let Ok(handed) = Handed::read(delivery) else {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, "The message can't be read.");
    };
    let kind = "application/octet-stream";
    let mut answer = with_body(status, kind, Bytes::copy_from_slice(&handed.body));
    let headers = answer.headers_mut();
    if let Some(kind) = handed.content_type.as_deref().and_then(value) {
        headers.insert(CONTENT_TYPE, kind);
    }
    for (name, text) in &handed.properties {
        if let (Ok(name), Some(text)) = (HeaderName::try_from(name), value(text)) {
            headers.insert(name, text);
        }
    }
    let properties = handed.broker_properties(delivery.token, delete);
    headers.insert("BrokerProperties", value(&properties).expect("JSON without line breaks"));
    if !delete {
        let host = asked.header(HOST.as_str()).unwrap_or_default();
        let place =
            format!("https://{host}/{entity}/messages/{}/{}", delivery.sequence, delivery.token);
        headers.insert(LOCATION, value(&place).expect("an entity's name is plain"));
    }
    answer
}

/// In ASCII, as HTTP wants it.
fn value(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

async fn settle(entity: &str, token: &str, how: How, shared: &Shared) -> Result<Answer, Lost> {
    let Some((path, side)) = place(entity, shared) else { return Ok(missing(entity)) };
    let loss = if how == How::Renew { None } else { shared.faults().settlements.next() };
    if loss == Some(Loss::Order) {
        return Err(Lost);
    }
    let token = Uuid::parse_str(token).unwrap_or_default();
    let now = shared.clock.now();
    let done = shared.namespace().queue(&path).map(|queue| match how {
        How::Complete => queue.settle(side, token, Settlement::Complete, now),
        How::Unlock => queue.settle(side, token, Settlement::Abandon(Vec::new()), now),
        How::Renew => queue.renew(side, token, now).map(drop),
    });
    shared.wake_all();
    let delay = shared.faults().settlement_delay;
    sleep(delay).await;
    if loss.is_some() {
        return Err(Lost);
    }
    Ok(match done {
        Some(Ok(())) => plain(StatusCode::OK),
        Some(Err(lost)) => refusal(StatusCode::NOT_FOUND, &lost.to_string()),
        None => refusal(StatusCode::BAD_REQUEST, "A topic locks nothing."),
    })
}
