//! A Service Bus broker in this process, and queues on it.

use std::net::SocketAddr;
use std::time::Duration;

use promptmill::queue::service_bus::https::HttpsQueue;
use promptmill::queue::service_bus::{ServiceBusQueue, ServiceBusSettings, ServiceBusTransport};
use service_bus_broker::Broker;
pub use service_bus_broker::QueueSettings;

/// The queue's name at the broker.
pub const JOBS: &str = "jobs";

/// A queue with duplicate detection, as ours are set up.
pub fn jobs() -> QueueSettings {
    QueueSettings { duplicate_window: Some(Duration::from_secs(600)), ..QueueSettings::new(JOBS) }
}

pub async fn start(queue: QueueSettings) -> Broker {
    crate::secrets::watch();
    let settings = service_bus_broker::Settings {
        queues: vec![queue],
        ..service_bus_broker::Settings::default()
    };
    service_bus_broker::start("127.0.0.1:0", settings).await.unwrap()
}

pub fn settings(broker: &Broker) -> ServiceBusSettings {
    ServiceBusSettings::new(broker.connection_string(), JOBS)
}

pub fn queue(broker: &Broker) -> ServiceBusQueue {
    ServiceBusQueue::new(&settings(broker), None).unwrap()
}

/// Where dead jobs are copied to over HTTPS.
pub const DEAD: &str = "jobs-dead";

/// A broker with the queue and the one for its dead jobs.
pub async fn start_for_https(queue: QueueSettings) -> Broker {
    let settings = service_bus_broker::Settings {
        queues: vec![queue, QueueSettings::new(DEAD)],
        ..service_bus_broker::Settings::default()
    };
    service_bus_broker::start("127.0.0.1:0", settings).await.unwrap()
}

pub fn https_settings(broker: &Broker) -> ServiceBusSettings {
    ServiceBusSettings {
        transport: ServiceBusTransport::Https,
        dead_letter_queue: Some(DEAD.to_owned()),
        ..settings(broker)
    }
}

pub fn https_queue(broker: &Broker) -> HttpsQueue {
    HttpsQueue::new(&https_settings(broker), None).unwrap()
}

/// The settings of a queue behind a relay.
pub fn settings_through(broker: &Broker, addr: SocketAddr) -> ServiceBusSettings {
    let string = broker.connection_string().replace(&broker.addr().to_string(), &addr.to_string());
    ServiceBusSettings::new(string, JOBS)
}
