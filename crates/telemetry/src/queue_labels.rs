//! Names of queues in telemetry.

/// Names of a queue in telemetry.
#[derive(Debug, Clone)]
pub struct QueueLabels {
    /// A value of `messaging.system`.
    pub system: &'static str,
    pub destination: String,
}

impl QueueLabels {
    /// Returns the labels of the embedded queue, for which the conventions have no name.
    pub fn local() -> Self {
        Self { system: "promptmill", destination: "local".into() }
    }

    pub fn service_bus(queue: &str) -> Self {
        Self { system: "servicebus", destination: queue.to_owned() }
    }
}
