//! `$management`: what a client asks of an entity by request and reply.
//!
//! Each operation is one function from the request's map to the reply's map. How the reply finds
//! its way is the connection's business.

use bytes::Bytes;
use serde_amqp::Value;
use uuid::Uuid;

use crate::entity::{Millis, Queue, Settlement, Side, dead_letter_properties};
use crate::message::Message;
use crate::namespace::Namespace;
use crate::request::{Reply, Request};
use crate::shelf::LockLost;
use crate::wire::{self, Map, as_integer, as_items, as_text, as_uuid, entry};

pub const LOCK_LOST: &str = "com.microsoft:message-lock-lost";
pub const NOT_FOUND: &str = "amqp:not-found";
const MESSAGE_NOT_FOUND: &str = "com.microsoft:message-not-found";
const BAD_REQUEST: &str = "com.microsoft:argument-error";
const UPDATE_DISPOSITION: &str = "com.microsoft:update-disposition";

/// The entity a request is about, and the moment.
pub struct Context<'n> {
    pub namespace: &'n mut Namespace,
    pub path: &'n str,
    pub side: Side,
    pub now: Millis,
    /// Replies with messages stop growing here.
    pub max_message_size: u64,
}

/// Whether the request settles messages, which the settlement faults apply to.
pub fn settles(request: &Request) -> bool {
    request.operation() == UPDATE_DISPOSITION
}

pub fn answer(request: &Request, context: &mut Context<'_>) -> Reply {
    let result = match request.operation() {
        "com.microsoft:renew-lock" => renew(request, context),
        "com.microsoft:peek-message" => peek(request, context),
        "com.microsoft:schedule-message" => schedule(request, context),
        "com.microsoft:cancel-scheduled-message" => cancel(request, context),
        "com.microsoft:receive-by-sequence-number" => receive_deferred(request, context),
        UPDATE_DISPOSITION => update_disposition(request, context),
        other => Err(Reply::failure(
            501,
            "amqp:not-implemented",
            format!("The operation '{other}' is not one of this entity."),
        )),
    };
    result.unwrap_or_else(|failure| failure)
}

type Answer = Result<Reply, Reply>;

fn queue<'c>(context: &'c mut Context<'_>) -> Result<&'c mut Queue, Reply> {
    let path = context.path;
    context.namespace.queue(path).ok_or_else(|| not_found(path))
}

fn not_found(path: &str) -> Reply {
    Reply::failure(404, NOT_FOUND, format!("The messaging entity '{path}' could not be found."))
}

fn bad_request(what: &str) -> Reply {
    Reply::failure(400, BAD_REQUEST, format!("The request's '{what}' is missing or malformed."))
}

fn lock_lost(lost: LockLost) -> Reply {
    Reply::failure(410, LOCK_LOST, lost.to_string())
}

fn tokens(request: &Request) -> Result<Vec<Uuid>, Reply> {
    let tokens = request.argument("lock-tokens").ok_or_else(|| bad_request("lock-tokens"))?;
    as_items(tokens)
        .iter()
        .map(|token| as_uuid(token).ok_or_else(|| bad_request("lock-tokens")))
        .collect()
}

fn sequence_numbers(request: &Request) -> Result<Vec<i64>, Reply> {
    let name = "sequence-numbers";
    let numbers = request.argument(name).ok_or_else(|| bad_request(name))?;
    as_items(numbers)
        .iter()
        .map(|number| as_integer(number).ok_or_else(|| bad_request(name)))
        .collect()
}

fn one(name: &str, value: Value) -> Reply {
    Reply::ok([(wire::string(name), value)].into_iter().collect())
}

fn renew(request: &Request, context: &mut Context<'_>) -> Answer {
    let (side, now) = (context.side, context.now);
    let queue = queue(context)?;
    let expirations = tokens(request)?
        .into_iter()
        .map(|token| queue.renew(side, token, now).map(wire::timestamp))
        .collect::<Result<Vec<_>, _>>()
        .map_err(lock_lost)?;
    Ok(one("expirations", Value::Array(expirations.into())))
}

fn peek(request: &Request, context: &mut Context<'_>) -> Answer {
    let number = |name| request.argument(name).and_then(as_integer);
    let from = number("from-sequence-number").ok_or_else(|| bad_request("from-sequence-number"))?;
    let count = number("message-count").and_then(|count| usize::try_from(count).ok()).unwrap_or(1);
    let (side, now, limit) = (context.side, context.now, context.max_message_size);
    let messages = queue(context)?.peek(side, from, count, now);
    let mut room = limit;
    let fitting: Vec<Value> = messages
        .into_iter()
        .take_while(|bytes| {
            // The first always goes, or a large message could never be seen.
            let fits = room == limit || bytes.len() as u64 <= room;
            room = room.saturating_sub(bytes.len() as u64);
            fits
        })
        .map(|bytes| message_entry(None, &bytes))
        .collect();
    if fitting.is_empty() {
        let none = "No more messages.".to_owned();
        return Ok(Reply { status: 204, description: none, ..Reply::ok(Map::new()) });
    }
    Ok(one("messages", Value::List(fitting)))
}

fn message_entry(token: Option<Uuid>, encoded: &Bytes) -> Value {
    let mut map = Map::new();
    if let Some(token) = token {
        map.insert(wire::string("lock-token"), wire::uuid(token));
    }
    map.insert(wire::string("message"), Value::Binary(encoded.to_vec().into()));
    Value::Map(map)
}

fn schedule(request: &Request, context: &mut Context<'_>) -> Answer {
    let messages = request.argument("messages").map(as_items).unwrap_or_default();
    let parsed = messages
        .iter()
        .map(|item| {
            let Value::Map(item) = item else {
                return Err(bad_request("messages"));
            };
            let Some(Value::Binary(bytes)) = entry(item, "message") else {
                return Err(bad_request("messages"));
            };
            let bytes = Bytes::copy_from_slice(bytes);
            Message::parse(&bytes).map_err(|_| bad_request("messages"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut numbers = Vec::with_capacity(parsed.len());
    for message in parsed {
        let sequence = context.namespace.send(context.path, message, context.now);
        numbers.push(sequence.ok_or_else(|| not_found(context.path))?);
    }
    Ok(one("sequence-numbers", wire::longs(numbers)))
}

fn cancel(request: &Request, context: &mut Context<'_>) -> Answer {
    for sequence in sequence_numbers(request)? {
        if !context.namespace.cancel_scheduled(context.path, sequence, context.now) {
            return Err(message_not_found(sequence));
        }
    }
    Ok(Reply::ok(Map::new()))
}

fn message_not_found(sequence: i64) -> Reply {
    let description =
        format!("Failed to lock or find one or more specified messages: sequence {sequence}.");
    Reply::failure(404, MESSAGE_NOT_FOUND, description)
}

fn receive_deferred(request: &Request, context: &mut Context<'_>) -> Answer {
    // The mode is the wire's receiver-settle-mode: 0 deletes, 1 locks.
    let delete = request.argument("receiver-settle-mode").and_then(as_integer) == Some(0);
    let (side, now) = (context.side, context.now);
    let queue = queue(context)?;
    let entries = sequence_numbers(request)?
        .into_iter()
        .map(|sequence| {
            queue
                .receive_deferred(side, sequence, delete, now)
                .map(|delivery| message_entry(Some(delivery.token), &delivery.encoded))
                .ok_or_else(|| message_not_found(sequence))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(one("messages", Value::List(entries)))
}

fn update_disposition(request: &Request, context: &mut Context<'_>) -> Answer {
    let status = request.argument("disposition-status").and_then(as_text).unwrap_or_default();
    let changes = match request.argument("properties-to-modify") {
        Some(Value::Map(map)) => changed_properties(map),
        _ => Vec::new(),
    };
    let text = |name| request.argument(name).and_then(as_text);
    let settlement = match status {
        "completed" => Settlement::Complete,
        "abandoned" => Settlement::Abandon(changes),
        // The wire's own spelling; the other is taken as well.
        "defered" | "deferred" => Settlement::Defer(changes),
        "suspended" => {
            let (reason, description) = (text("deadletter-reason"), text("deadletter-description"));
            let why = dead_letter_properties(reason, description);
            Settlement::DeadLetter(changes.into_iter().chain(why).collect())
        }
        _ => return Err(bad_request("disposition-status")),
    };
    let (side, now) = (context.side, context.now);
    let queue = queue(context)?;
    for token in tokens(request)? {
        queue.settle(side, token, settlement.clone(), now).map_err(lock_lost)?;
    }
    Ok(Reply::ok(Map::new()))
}

/// The entries of a map as application properties, keys that are no names left out.
pub fn changed_properties(map: &Map) -> Vec<(String, Value)> {
    map.iter()
        .filter_map(|(name, value)| Some((as_text(name)?.to_owned(), value.clone())))
        .collect()
}
