//! The descriptions of entities, as Atom entries: read, and written to create a queue.

use std::time::Duration;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use roxmltree::Document;

use crate::entity::{Counts, QueueSettings, Side};
use crate::http::{Answer, Asked, refusal, with_body};
use crate::namespace::Address;
use crate::shared::Shared;

const SERVICE_BUS: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";
const COUNTS: &str = "http://schemas.microsoft.com/netservices/2011/06/servicebus";
const KIND: &str = "application/atom+xml;type=entry;charset=utf-8";

/// What the service answers where there is no such entity.
const NOTHING: &str = "<feed xmlns=\"http://www.w3.org/2005/Atom\">\
                       <title type=\"text\">Publicly Listed Services</title></feed>";

pub fn answer(asked: &Asked, shared: &Shared) -> Answer {
    if !shared.manage {
        let detail = "Manage,EntityRead claims required for this operation.";
        return refusal(StatusCode::UNAUTHORIZED, detail);
    }
    let Address::Entity { path, side: Side::Main } = Address::parse(&asked.path) else {
        return refusal(StatusCode::BAD_REQUEST, "This is no entity with a description.");
    };
    match asked.head.method {
        Method::GET => read(&asked.path, &path, shared),
        Method::PUT => create(asked, &path, shared),
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "Entities are read and created here."),
    }
}

fn read(name: &str, path: &str, shared: &Shared) -> Answer {
    let now = shared.clock.now();
    let mut namespace = shared.namespace();
    let described = if let Some(queue) = namespace.queue(path) {
        let counts = queue.counts(now);
        let kind = if path.contains("/subscriptions/") { "Subscription" } else { "Queue" };
        Some(entry(name, kind, &queue_description(queue.settings(), counts)))
    } else if namespace.accepts_sends(path) {
        let own = "<RequiresDuplicateDetection>false</RequiresDuplicateDetection>";
        Some(entry(name, "Topic", own))
    } else {
        None
    };
    match described {
        Some(text) => with_body(StatusCode::OK, KIND, text.into()),
        None => with_body(StatusCode::OK, KIND, Bytes::from_static(NOTHING.as_bytes())),
    }
}

fn create(asked: &Asked, path: &str, shared: &Shared) -> Answer {
    let settings = match description(&asked.path, &asked.body) {
        Ok(settings) => settings,
        Err(what) => return refusal(StatusCode::BAD_REQUEST, &what),
    };
    let mut namespace = shared.namespace();
    if namespace.accepts_sends(path) {
        return refusal(StatusCode::CONFLICT, "The entity exists already.");
    }
    let text = entry(&asked.path, "Queue", &queue_description(&settings, Counts::default()));
    namespace.add(path, settings);
    with_body(StatusCode::CREATED, KIND, text.into())
}

/// Reads a queue's description; what is not said is as the service has it by default.
fn description(name: &str, body: &[u8]) -> Result<QueueSettings, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let document = Document::parse(text).map_err(|error| error.to_string())?;
    let root = document
        .descendants()
        .find(|node| node.has_tag_name((SERVICE_BUS, "QueueDescription")))
        .ok_or("There is no QueueDescription.")?;
    // The service reads its fields in their order and takes one that is out of it for none.
    let mut last = 0;
    for field in root.children().filter(roxmltree::Node::is_element) {
        let name = field.tag_name().name();
        let at = ORDER.iter().position(|known| *known == name).ok_or(format!("'{name}'?"))?;
        if at < last {
            return Err(format!("'{name}' is out of its order."));
        }
        last = at;
    }
    let field = |name: &str| {
        let node = root.children().find(|node| node.has_tag_name((SERVICE_BUS, name)));
        node.and_then(|node| node.text())
    };
    let time = |name: &str| field(name).map(|text| seconds(text).ok_or(format!("'{name}'?")));
    let is_true = |name: &str| field(name) == Some("true");
    let lock = time("LockDuration").transpose()?.unwrap_or(Duration::from_secs(60));
    if lock > Duration::from_secs(300) {
        return Err("The LockDuration is longer than five minutes.".to_owned());
    }
    let window = time("DuplicateDetectionHistoryTimeWindow").transpose()?;
    let window = window.unwrap_or(Duration::from_secs(600));
    let count = field("MaxDeliveryCount").map_or(Ok(10), str::parse);
    Ok(QueueSettings {
        lock,
        max_delivery_count: count.map_err(|_| "'MaxDeliveryCount'?")?,
        duplicate_window: is_true("RequiresDuplicateDetection").then_some(window),
        dead_letter_expired: is_true("DeadLetteringOnMessageExpiration"),
        ..QueueSettings::new(name)
    })
}

const ORDER: [&str; 12] = [
    "LockDuration",
    "MaxSizeInMegabytes",
    "RequiresDuplicateDetection",
    "RequiresSession",
    "DefaultMessageTimeToLive",
    "DeadLetteringOnMessageExpiration",
    "DuplicateDetectionHistoryTimeWindow",
    "MaxDeliveryCount",
    "EnableBatchedOperations",
    "Status",
    "AutoDeleteOnIdle",
    "EnablePartitioning",
];

/// An ISO 8601 duration of hours, minutes and seconds.
fn seconds(text: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut number = String::new();
    for c in text.strip_prefix("PT")?.chars() {
        let unit = match c {
            'H' => 3_600.0,
            'M' => 60.0,
            'S' => 1.0,
            digit => {
                number.push(digit);
                continue;
            }
        };
        total += number.parse::<f64>().ok()? * unit;
        number.clear();
    }
    number.is_empty().then(|| Duration::try_from_secs_f64(total).ok())?
}

fn queue_description(settings: &QueueSettings, counts: Counts) -> String {
    let window = settings.duplicate_window.unwrap_or(Duration::from_secs(600));
    format!(
        "<LockDuration>PT{}S</LockDuration>\
         <MaxSizeInMegabytes>1024</MaxSizeInMegabytes>\
         <RequiresDuplicateDetection>{}</RequiresDuplicateDetection>\
         <RequiresSession>false</RequiresSession>\
         <DefaultMessageTimeToLive>P10675199DT2H48M5.4775807S</DefaultMessageTimeToLive>\
         <DeadLetteringOnMessageExpiration>{}</DeadLetteringOnMessageExpiration>\
         <DuplicateDetectionHistoryTimeWindow>PT{}S</DuplicateDetectionHistoryTimeWindow>\
         <MaxDeliveryCount>{}</MaxDeliveryCount>\
         <EnableBatchedOperations>true</EnableBatchedOperations>\
         <MessageCount>{}</MessageCount>\
         <Status>Active</Status>\
         <CountDetails xmlns:d2p1=\"{COUNTS}\">\
         <d2p1:ActiveMessageCount>{}</d2p1:ActiveMessageCount>\
         <d2p1:DeadLetterMessageCount>{}</d2p1:DeadLetterMessageCount>\
         <d2p1:ScheduledMessageCount>{}</d2p1:ScheduledMessageCount>\
         <d2p1:TransferMessageCount>0</d2p1:TransferMessageCount>\
         <d2p1:TransferDeadLetterMessageCount>0</d2p1:TransferDeadLetterMessageCount>\
         </CountDetails>",
        settings.lock.as_secs_f64(),
        settings.duplicate_window.is_some(),
        settings.dead_letter_expired,
        window.as_secs_f64(),
        settings.max_delivery_count,
        counts.active + counts.locked + counts.scheduled + counts.dead_letter,
        counts.active + counts.locked,
        counts.dead_letter,
        counts.scheduled,
    )
}

fn entry(name: &str, kind: &str, description: &str) -> String {
    format!(
        "<entry xmlns=\"http://www.w3.org/2005/Atom\"><id>urn:{name}</id>\
         <title type=\"text\">{name}</title><content type=\"application/xml\">\
         <{kind}Description xmlns=\"{SERVICE_BUS}\" \
         xmlns:i=\"http://www.w3.org/2001/XMLSchema-instance\">{description}</{kind}Description>\
         </content></entry>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(fields: &str) -> Result<QueueSettings, String> {
        description("jobs", entry("jobs", "Queue", fields).as_bytes())
    }

    #[test]
    fn a_description_is_read_in_its_order() {
        let read = described(
            "<LockDuration>PT2M30S</LockDuration>\
             <RequiresDuplicateDetection>true</RequiresDuplicateDetection>\
             <MaxDeliveryCount>7</MaxDeliveryCount>",
        )
        .unwrap();
        assert_eq!((read.lock, read.max_delivery_count), (Duration::from_secs(150), 7));
        assert_eq!(read.duplicate_window, Some(Duration::from_secs(600)));
        let turned =
            described("<MaxDeliveryCount>7</MaxDeliveryCount><LockDuration>PT1M</LockDuration>");
        assert!(turned.unwrap_err().contains("order"));
        assert!(described("<LockDuration>PT6M</LockDuration>").is_err());
    }
}
