//! The entities of the namespace and the addresses they answer to.

use std::collections::HashMap;

use crate::entity::{Millis, Queue, QueueSettings, Side};
use crate::message::Message;

/// A topic and the subscriptions that each get a copy of what is sent to it.
#[derive(Debug, Clone)]
pub struct TopicSettings {
    pub name: String,
    pub subscriptions: Vec<QueueSettings>,
}

/// What an address stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// The node that takes tokens.
    Cbs,
    Entity {
        path: String,
        side: Side,
    },
    Management {
        path: String,
        side: Side,
    },
}

impl Address {
    /// Reads an address as clients spell them: with or without scheme and host, in any case.
    pub fn parse(text: &str) -> Self {
        let path = entity_path(text);
        if path == "$cbs" {
            return Self::Cbs;
        }
        let (path, management) = match path.strip_suffix("/$management") {
            Some(path) => (path, true),
            None => (path.as_str(), false),
        };
        let (path, side) = match path.strip_suffix("/$deadletterqueue") {
            Some(path) => (path.to_owned(), Side::DeadLetter),
            None => (path.to_owned(), Side::Main),
        };
        if management { Self::Management { path, side } } else { Self::Entity { path, side } }
    }

    /// The entity's path; `$cbs` belongs to none.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Cbs => None,
            Self::Entity { path, .. } | Self::Management { path, .. } => Some(path),
        }
    }

    /// The resource a token must be for: the address in full, since tokens are put for parts of an
    /// entity too.
    pub fn resource(&self) -> Option<String> {
        let (path, side, node) = match self {
            Self::Cbs => return None,
            Self::Entity { path, side } => (path, side, ""),
            Self::Management { path, side } => (path, side, "/$management"),
        };
        let shelf = if *side == Side::DeadLetter { "/$deadletterqueue" } else { "" };
        Some(format!("{path}{shelf}{node}"))
    }
}

/// The path of a resource without scheme, host and outer slashes, in lower case.
pub fn entity_path(text: &str) -> String {
    let path = match text.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => text,
    };
    path.trim_matches('/').to_lowercase()
}

#[derive(Debug, Default)]
pub struct Namespace {
    queues: HashMap<String, Queue>,
    topics: HashMap<String, Vec<String>>,
}

impl Namespace {
    pub fn new(queues: &[QueueSettings], topics: &[TopicSettings]) -> Self {
        let mut namespace = Self::default();
        for queue in queues {
            namespace.add(&queue.name, queue.clone());
        }
        for topic in topics {
            let paths = topic
                .subscriptions
                .iter()
                .map(|subscription| {
                    let path = format!("{}/Subscriptions/{}", topic.name, subscription.name);
                    namespace
                        .add(&path, QueueSettings { name: path.clone(), ..subscription.clone() })
                })
                .collect();
            namespace.topics.insert(topic.name.to_lowercase(), paths);
        }
        namespace
    }

    /// Adds a queue; one of this path is not there yet.
    pub fn add(&mut self, path: &str, settings: QueueSettings) -> String {
        let key = path.to_lowercase();
        self.queues.insert(key.clone(), Queue::new(settings));
        key
    }

    pub fn queue(&mut self, path: &str) -> Option<&mut Queue> {
        self.queues.get_mut(path)
    }

    pub fn accepts_sends(&self, path: &str) -> bool {
        self.queues.contains_key(path) || self.topics.contains_key(path)
    }

    /// Sends to a queue, or to every subscription of a topic; tells the sequence number.
    pub fn send(&mut self, path: &str, message: Message, now: Millis) -> Option<i64> {
        if let Some(queue) = self.queues.get_mut(path) {
            return Some(queue.send(message, now));
        }
        let mut sequence = 0;
        for subscription in self.topics.get(path)? {
            let queue = self.queues.get_mut(subscription).expect("a topic names its own queues");
            sequence = queue.send(message.clone(), now);
        }
        Some(sequence)
    }

    /// Takes a scheduled message back from a queue or from all of a topic's subscriptions.
    pub fn cancel_scheduled(&mut self, path: &str, sequence: i64, now: Millis) -> bool {
        if let Some(queue) = self.queues.get_mut(path) {
            return queue.cancel_scheduled(sequence, now);
        }
        let Some(subscriptions) = self.topics.get(path) else {
            return false;
        };
        subscriptions.iter().fold(false, |cancelled, subscription| {
            let queue = self.queues.get_mut(subscription).expect("a topic names its own queues");
            queue.cancel_scheduled(sequence, now) || cancelled
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_clients_spell_them() {
        let entity = |path: &str, side| Address::Entity { path: path.to_owned(), side };
        for (text, expected) in [
            ("$cbs", Address::Cbs),
            ("Jobs", entity("jobs", Side::Main)),
            ("amqps://localhost:5672/jobs", entity("jobs", Side::Main)),
            ("jobs/$DeadLetterQueue", entity("jobs", Side::DeadLetter)),
            ("t/Subscriptions/S", entity("t/subscriptions/s", Side::Main)),
            (
                "jobs/$deadletterqueue/$management",
                Address::Management { path: "jobs".to_owned(), side: Side::DeadLetter },
            ),
        ] {
            assert_eq!(Address::parse(text), expected, "{text}");
        }
    }
}
