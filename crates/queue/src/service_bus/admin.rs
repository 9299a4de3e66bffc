//! Settings and counts of an entity: its description, over HTTPS beside the messages.
//!
//! Reading it takes a key with the right Manage, or the role Data Owner for an Entra ID identity,
//! and access to port 443. Without these work goes on: only the counts of the `https` transport
//! depend on it.

use std::sync::Arc;
use std::time::Duration;

use azure_core::credentials::TokenCredential;
use bytes::Bytes;
use jiff::SignedDuration;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use roxmltree::{Document, Node};
use uuid::Uuid;

use super::error::{BrokerError, TransportError};
use super::http::{HttpCall, NamespaceClient};
use super::settings::{ResolvedSettings, ServiceBusSettings, ServiceBusSettingsError};
use crate::QueueDepth;

/// The version that has all of a queue's fields and no more than we know
/// (learn.microsoft.com, "Service Bus management REST").
const VERSION: &str = "api-version=2017-04";

const XML_NAMESPACE: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";

/// The longest that the service allows.
pub const LONGEST_LOCK: Duration = Duration::from_secs(300);

/// Settings and counts of a queue, as far as our work depends on them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueProperties {
    pub lock: Duration,
    /// Failed deliveries after which the queue dead-letters a message.
    pub max_deliveries: u32,
    /// `None` where the description does not say, like that of a subscription.
    pub drops_duplicates: Option<bool>,
    pub depth: QueueDepth,
}

/// Result of an inspection.
#[derive(Debug)]
pub enum QueueInspection {
    Known(QueueProperties),
    /// There is none of this name.
    Missing(String),
    /// It can't be read, for this reason.
    Hidden(String),
}

/// Result of providing one queue that is needed.
#[derive(Debug, PartialEq, Eq)]
pub enum ProvisionResult {
    Found(String),
    Created(String),
    /// Someone with more rights has to create it, for this reason.
    ToCreate {
        name: String,
        why: String,
    },
}

/// Client for the descriptions of entities.
pub struct ServiceBusAdmin {
    http: Arc<NamespaceClient>,
    source: String,
    target: String,
    dead_letter_queue: Option<String>,
}

impl ServiceBusAdmin {
    /// `credential` is used where the settings name a namespace and no key.
    ///
    /// # Errors
    /// Says which setting is wrong.
    pub fn new(
        settings: &ServiceBusSettings,
        credential: Option<Arc<dyn TokenCredential>>,
    ) -> Result<Self, ServiceBusSettingsError> {
        let plan = ResolvedSettings::new(settings, credential)?;
        let http = Arc::new(NamespaceClient::new(&plan)?);
        Ok(Self::from_resolved(&plan, http))
    }

    pub(super) fn from_resolved(plan: &ResolvedSettings, http: Arc<NamespaceClient>) -> Self {
        Self {
            http,
            source: plan.source.clone(),
            target: plan.target.clone(),
            dead_letter_queue: plan.dead_letter_queue.clone(),
        }
    }

    /// Reads settings and counts in one attempt; for a subscription, duplicate detection of the
    /// topic.
    pub async fn inspect(&self) -> QueueInspection {
        let hidden = |fault: BrokerError| QueueInspection::Hidden(fault.to_string());
        let mut properties = match self.properties(&self.source).await {
            Ok(Some(properties)) => properties,
            Ok(None) => return QueueInspection::Missing(self.source.clone()),
            Err(fault) => return hidden(fault),
        };
        if self.target != self.source {
            match self.description(&self.target).await {
                Ok(Some(topic)) => properties.drops_duplicates = drops_duplicates(&topic),
                Ok(None) => return QueueInspection::Missing(self.target.clone()),
                Err(fault) => return hidden(fault),
            }
        }
        match &self.dead_letter_queue {
            Some(name) => match self.description(name).await {
                Ok(None) => QueueInspection::Missing(name.clone()),
                _ => QueueInspection::Known(properties),
            },
            None => QueueInspection::Known(properties),
        }
    }

    /// Checks that the messages' endpoint answers and takes our token, for identities that may see
    /// no more: unlocks a message that nobody has locked.
    ///
    /// # Errors
    /// Says why not.
    pub async fn check_access(&self) -> Result<(), String> {
        let path = format!("/{}/messages/0/{}", self.source, Uuid::nil());
        match self.call(Method::PUT, path, None).await {
            Err(fault) if !fault.is_missing() => Err(fault.to_string()),
            _ => Ok(()),
        }
    }

    /// Creates the queue, and the one for dead letters if configured, where they are missing and we
    /// may. Topics and subscriptions are left to others.
    pub async fn provision(&self, max_deliveries: u32) -> Vec<ProvisionResult> {
        let mut all = vec![self.provision_one(&self.source, max_deliveries).await];
        if let Some(name) = &self.dead_letter_queue {
            all.push(self.provision_one(name, max_deliveries).await);
        }
        all
    }

    async fn provision_one(&self, name: &str, max_deliveries: u32) -> ProvisionResult {
        let to_create = |why| ProvisionResult::ToCreate { name: name.to_owned(), why };
        match self.description(name).await {
            Ok(Some(_)) => ProvisionResult::Found(name.to_owned()),
            Ok(None) if name.to_ascii_lowercase().contains("/subscriptions/") => {
                to_create("topics and their subscriptions are not created here".to_owned())
            }
            Ok(None) => match self.create(name, max_deliveries).await {
                Ok(()) => ProvisionResult::Created(name.to_owned()),
                // Somebody else was faster.
                Err(fault) if fault.is_conflict() => ProvisionResult::Found(name.to_owned()),
                Err(fault) => to_create(fault.to_string()),
            },
            Err(fault) => to_create(fault.to_string()),
        }
    }

    /// Returns the queue's counts; copies in the queue for dead jobs count as dead letters.
    pub(super) async fn depth(&self) -> Result<QueueDepth, BrokerError> {
        let Some(QueueProperties { mut depth, .. }) = self.properties(&self.source).await? else {
            return Err(BrokerError::permanent(TransportError::NoQueue(self.source.clone())));
        };
        if let Some(name) = &self.dead_letter_queue {
            let aside = self.properties(name).await?;
            depth.dead_letters += aside.map_or(0, |aside| aside.depth.pending());
        }
        Ok(depth)
    }

    async fn properties(&self, name: &str) -> Result<Option<QueueProperties>, BrokerError> {
        let Some(text) = self.description(name).await? else { return Ok(None) };
        let unreadable =
            || BrokerError::from(TransportError::Unreadable("the queue's description"));
        Ok(Some(parse_properties(&text).ok_or_else(unreadable)?))
    }

    /// Returns the Atom entry; a missing entity is answered with an empty feed, or an error.
    async fn description(&self, name: &str) -> Result<Option<String>, BrokerError> {
        match self.call(Method::GET, format!("/{name}"), None).await {
            Ok(body) => {
                let text = String::from_utf8_lossy(&body).into_owned();
                Ok(text.contains("Description").then_some(text))
            }
            Err(fault) if fault.is_missing() => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    async fn create(&self, name: &str, max_deliveries: u32) -> Result<(), BrokerError> {
        let body = queue_description(max_deliveries);
        self.call(Method::PUT, format!("/{name}"), Some(body)).await.map(drop)
    }

    async fn call(
        &self,
        method: Method,
        path: String,
        body: Option<String>,
    ) -> Result<Bytes, BrokerError> {
        let mut headers = HeaderMap::new();
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/atom+xml"));
        }
        let query = Some(VERSION.to_owned());
        let body = Bytes::from(body.unwrap_or_default());
        Ok(self.http.call(HttpCall { method, path, query, headers, body }).await?.body)
    }
}

/// Describes a queue as our work needs it. The fields' order is the service's.
fn queue_description(max_deliveries: u32) -> String {
    format!(
        "<entry xmlns=\"http://www.w3.org/2005/Atom\"><content type=\"application/xml\">\
         <QueueDescription xmlns=\"{XML_NAMESPACE}\">\
         <LockDuration>PT{}M</LockDuration>\
         <RequiresDuplicateDetection>true</RequiresDuplicateDetection>\
         <DeadLetteringOnMessageExpiration>true</DeadLetteringOnMessageExpiration>\
         <MaxDeliveryCount>{max_deliveries}</MaxDeliveryCount>\
         </QueueDescription></content></entry>",
        LONGEST_LOCK.as_secs() / 60
    )
}

fn parse_properties(text: &str) -> Option<QueueProperties> {
    let document = Document::parse(text).ok()?;
    let field = |name: &str| field(&document, name);
    let count = |name: &str| field(name).and_then(|text| text.parse().ok()).unwrap_or(0);
    let lock: SignedDuration = field("LockDuration")?.parse().ok()?;
    Some(QueueProperties {
        lock: Duration::try_from(lock).ok()?,
        max_deliveries: field("MaxDeliveryCount")?.parse().ok()?,
        drops_duplicates: field("RequiresDuplicateDetection").map(|text| text == "true"),
        depth: QueueDepth {
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
        let depth = QueueDepth { active: 5, locked: 0, scheduled: 1, dead_letters: 2 };
        let lock = Duration::from_secs(90);
        let expected =
            QueueProperties { lock, max_deliveries: 7, drops_duplicates: Some(true), depth };
        assert_eq!(parse_properties(text), Some(expected));
        assert_eq!(parse_properties("<feed/>"), None);
    }

    #[test]
    fn what_is_wanted_is_well_formed() {
        let read = parse_properties(&queue_description(12)).unwrap();
        assert_eq!((read.lock, read.max_deliveries), (LONGEST_LOCK, 12));
        assert_eq!(read.drops_duplicates, Some(true));
    }
}
