//! What an entity is set to and how much it holds: its description, over HTTPS beside the messages.
//!
//! Reading it takes a key with the right Manage, or the role Data Owner for an Entra ID identity,
//! and an open way to port 443. Without these everything goes on: nobody's work hangs on it but the
//! counts of the `https` transport.

use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use bytes::Bytes;
use jiff::SignedDuration;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use roxmltree::{Document, Node};
use uuid::Uuid;

use super::fault::{Fault, Trouble};
use super::http::{Call, Http};
use super::settings::{Plan, Settings, SettingsError};
use crate::Depth;

/// The version that has all of a queue's fields and no more than we know
/// (learn.microsoft.com, "Service Bus management REST").
const VERSION: &str = "api-version=2017-04";

const SERVICE_BUS: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";

/// The longest that the service allows.
pub const LONGEST_LOCK: Duration = Duration::from_secs(300);

/// How a queue is set, as far as our work depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub lock: Duration,
    /// Failed deliveries after which the queue sets a message aside.
    pub max_deliveries: u32,
    /// Absent where the description does not say, as a subscription's.
    pub drops_duplicates: Option<bool>,
    pub depth: Depth,
}

/// What is known of a queue.
#[derive(Debug)]
pub enum Inspection {
    Known(Properties),
    /// There is none of this name.
    Missing(String),
    /// It can't be seen, and why.
    Hidden(String),
}

/// What became of one queue that is needed.
#[derive(Debug, PartialEq, Eq)]
pub enum Prepared {
    Found(String),
    Created(String),
    /// Somebody with more rights has to, for this reason.
    ToCreate {
        name: String,
        why: String,
    },
}

/// Asks for descriptions.
pub struct Admin {
    http: Arc<Http>,
    source: String,
    target: String,
    dead_letter_queue: Option<String>,
}

impl Admin {
    /// `credential` is used where the settings name a namespace and no key.
    ///
    /// # Errors
    /// Says which setting is wrong.
    pub fn new(
        settings: &Settings,
        credential: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, SettingsError> {
        let plan = Plan::new(settings, credential)?;
        let http = Arc::new(Http::new(&plan)?);
        Ok(Self::of(&plan, http))
    }

    pub(super) fn of(plan: &Plan, http: Arc<Http>) -> Self {
        Self {
            http,
            source: plan.source.clone(),
            target: plan.target.clone(),
            dead_letter_queue: plan.dead_letter_queue.clone(),
        }
    }

    /// The queue's settings and counts, in one try. A subscription's duplicates are its topic's.
    pub async fn inspect(&self) -> Inspection {
        let hidden = |fault: Fault| Inspection::Hidden(fault.to_string());
        let mut properties = match self.properties(&self.source).await {
            Ok(Some(properties)) => properties,
            Ok(None) => return Inspection::Missing(self.source.clone()),
            Err(fault) => return hidden(fault),
        };
        if self.target != self.source {
            match self.description(&self.target).await {
                Ok(Some(topic)) => properties.drops_duplicates = drops_duplicates(&topic),
                Ok(None) => return Inspection::Missing(self.target.clone()),
                Err(fault) => return hidden(fault),
            }
        }
        match &self.dead_letter_queue {
            Some(name) => match self.description(name).await {
                Ok(None) => Inspection::Missing(name.clone()),
                _ => Inspection::Known(properties),
            },
            None => Inspection::Known(properties),
        }
    }

    /// Whether the messages' side answers and takes our token, for those who may see no more: a
    /// lock that nobody holds is given back.
    ///
    /// # Errors
    /// Says why not.
    pub async fn reach(&self) -> Result<(), String> {
        let path = format!("/{}/messages/0/{}", self.source, Uuid::nil());
        match self.call(Method::PUT, path, None).await {
            Err(fault) if !fault.is_missing() => Err(fault.to_string()),
            _ => Ok(()),
        }
    }

    /// Creates the queue, and the one for dead letters if there is to be one, where they are
    /// missing and we may. Topics and subscriptions are left to others.
    pub async fn prepare(&self, max_deliveries: u32) -> Vec<Prepared> {
        let mut all = vec![self.prepare_one(&self.source, max_deliveries).await];
        if let Some(name) = &self.dead_letter_queue {
            all.push(self.prepare_one(name, max_deliveries).await);
        }
        all
    }

    async fn prepare_one(&self, name: &str, max_deliveries: u32) -> Prepared {
        let to_create = |why| Prepared::ToCreate { name: name.to_owned(), why };
        match self.description(name).await {
            Ok(Some(_)) => Prepared::Found(name.to_owned()),
            Ok(None) if name.to_ascii_lowercase().contains("/subscriptions/") => {
                to_create("topics and their subscriptions are not created here".to_owned())
            }
            Ok(None) => match self.create(name, max_deliveries).await {
                Ok(()) => Prepared::Created(name.to_owned()),
                // Somebody else was faster.
                Err(fault) if fault.is_conflict() => Prepared::Found(name.to_owned()),
                Err(fault) => to_create(fault.to_string()),
            },
            Err(fault) => to_create(fault.to_string()),
        }
    }

    /// How much the queue holds; what was copied to the queue for dead jobs is dead letters too.
    pub(super) async fn depth(&self) -> Result<Depth, Fault> {
        let Some(Properties { mut depth, .. }) = self.properties(&self.source).await? else {
            return Err(Fault::last(Trouble::NoQueue(self.source.clone())));
        };
        if let Some(name) = &self.dead_letter_queue {
            let aside = self.properties(name).await?;
            depth.dead_letters += aside.map_or(0, |aside| aside.depth.pending());
        }
        Ok(depth)
    }

    async fn properties(&self, name: &str) -> Result<Option<Properties>, Fault> {
        let Some(text) = self.description(name).await? else { return Ok(None) };
        let unreadable = || Fault::from(Trouble::Unreadable("the queue's description"));
        Ok(Some(read(&text).ok_or_else(unreadable)?))
    }

    /// The Atom entry; an entity that is missing is answered with an empty feed, or not at all.
    async fn description(&self, name: &str) -> Result<Option<String>, Fault> {
        match self.call(Method::GET, format!("/{name}"), None).await {
            Ok(body) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                Ok(text.contains("Description").then_some(text))
            }
            Err(fault) if fault.is_missing() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn create(&self, name: &str, max_deliveries: u32) -> Result<(), Fault> {
        let body = wanted(max_deliveries);
        self.call(Method::PUT, format!("/{name}"), Some(body)).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: String,
        body: Option<String>,
    ) -> Result<Bytes, Fault> {
        let mut headers = HeaderMap::new();
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/atom+xml"));
        }
        let query = Some(VERSION.to_owned());
        let body = Bytes::from(body.unwrap_or_default());
        Ok(self.http.call(Call { method, path, query, headers, body }).await?.body)
    }
}

/// A queue as our work wants it. The fields' order is the service's.
fn wanted(max_deliveries: u32) -> String {
    format!(
        "<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\">\
         <QueueDescription xmlns=\"{SERVICE_BUS}\">\
         <LockDuration>PT{}M</LockDuration>\
         <RequiresDuplicateDetection>true</RequiresDuplicateDetection>\
         <DeadLetteringOnMessageExpiration>true</DeadLetteringOnMessageExpiration>\
         <MaxDeliveryCount>{max_deliveries}</MaxDeliveryCount>\
         </QueueDescription></content></entry>",
        LONGEST_LOCK.as_secs() / 60
    )
}

fn read(text: &str) -> Option<Properties> {
    let document = Document::parse(text).ok()?;
    let field = |name: &str| field(&document, name);
    let count = |name: &str| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let lock: SignedDuration = field("LockDuration")?.parse().ok()?;
    Some(Properties {
        lock: Duration::try_from(lock).ok()?,
        max_deliveries: field("MaxDeliveryCount")?.parse().ok()?,
        drops_duplicates: field("RequiresDuplicateDetection").map(|text| text == "true"),
        depth: Depth {
            // Locked ones are among them.
            active: count("ActiveMessageCount"),
            locked: 0,
            scheduled: count("ScheduledMessageCount"),
            dead_letters: count("DeadLetterMessageCount"),
        },
    })
}

fn drops_duplicates(text: &str) -> Option<bool> {
    let document = Document::parse(text).ok()?;
    field(&document, "RequiresDuplicateDetection").map(|text| text == "true")
}

fn field<'d>(document: &'d Document<'_>, name: &str) -> Option<&'d str> {
    let is_it = |node: &Node<'_, '_>| node.is_element() && node.tag_name().name() == name;
    document.descendants().find(is_it)?.text().map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_read_whatever_its_prefixes() {
        let text = r#"<entry xmlns="http://www.w3.org/2005/Atom"><content type="application/xml">
            <QueueDescription xmlns="http://schemas.microsoft.com/netservices/2010/10/servicebus/connect">
            <LockDuration>PT1M30S</LockDuration>
            <RequiresDuplicateDetection>true</RequiresDuplicateDetection>
            <MaxDeliveryCount>7</MaxDeliveryCount>
            <CountDetails xmlns:d2p1="http://schemas.microsoft.com/netservices/2011/06/servicebus">
            <d2p1:ActiveMessageCount>5</d2p1:ActiveMessageCount>
            <d2p1:DeadLetterMessageCount>2</d2p1:DeadLetterMessageCount>
            <d2p1:ScheduledMessageCount>1</d2p1:ScheduledMessageCount>
            </CountDetails></QueueDescription></content></entry>"#;
        let depth = Depth { active: 5, locked: 0, scheduled: 1, dead_letters: 2 };
        let lock = Duration::from_secs(90);
        let expected = Properties { lock, max_deliveries: 7, drops_duplicates: Some(true), depth };
        assert_eq!(read(text), Some(expected));
        assert_eq!(read("<feed/>"), None);
    }

    #[test]
    fn what_is_wanted_is_well_formed() {
        let read = read(&wanted(12)).unwrap();
        assert_eq!((read.lock, read.max_deliveries), (LONGEST_LOCK, 12));
        assert_eq!(read.drops_duplicates, Some(true));
    }
}
