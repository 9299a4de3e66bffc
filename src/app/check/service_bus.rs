//! Check of the Service Bus queue: its settings, and access where its counts can't be read.

use std::time::Duration;

use super::finding::{CheckFinding, finding};
use crate::backends;
use crate::config::Config;
use queue::QueueError;
use queue::service_bus::admin::{QueueInspection, QueueProperties, ServiceBusAdmin};
use queue::service_bus::{ServiceBusSettings, ServiceBusTransport};

/// Shortest lock that outlives an outage of some seconds; the service's default.
const MIN_LOCK_DURATION: Duration = Duration::from_secs(60);

/// Adds the queue's settings to what was found by reading its depth.
pub(super) async fn inspect(
    config: &Config,
    settings: &ServiceBusSettings,
    mut tried: Result<(), QueueError>,
) -> CheckFinding {
    let (mut notes, mut warnings) = (Vec::new(), Vec::new());
    if let Ok(Some(admin)) = backends::open_admin(config) {
        match admin.inspect().await {
            QueueInspection::Known(properties) => {
                notes.push(describe_queue(&properties));
                warnings = queue_warnings(&properties, config.worker.max_deliveries);
            }
            QueueInspection::Missing(name) => warnings.push(format!(
                "there is no queue '{name}': create it with 'promptmill init', or in the portal"
            )),
            QueueInspection::Hidden(why) => {
                notes.push(format!("its settings can't be read from here: {why}"));
                if settings.transport == ServiceBusTransport::Https {
                    tried = reach_without_counts(&admin, tried, &mut warnings).await;
                }
            }
        }
    }
    let finding = finding("queue", tried.map_err(|error| error.to_string()));
    CheckFinding { notes, warnings, ..finding }
}

/// Checks the queue without its counts: over HTTPS these need a right that work does not.
async fn reach_without_counts(
    admin: &ServiceBusAdmin,
    tried: Result<(), QueueError>,
    warnings: &mut Vec<String>,
) -> Result<(), QueueError> {
    let Err(error) = tried else { return Ok(()) };
    match admin.check_access().await {
        Ok(()) => {
            warnings.push(format!("'status' will not work: {error}"));
            Ok(())
        }
        Err(_) => Err(error),
    }
}

fn describe_queue(properties: &QueueProperties) -> String {
    let QueueProperties { lock, max_deliveries, drops_duplicates, depth } = properties;
    let duplicates = match drops_duplicates {
        Some(true) => "duplicate detection on",
        Some(false) => "duplicate detection off",
        None => "duplicate detection unknown",
    };
    format!(
        "locks last {} s, {max_deliveries} deliveries, {duplicates}; {} active, {} scheduled, {} \
         dead letters",
        lock.as_secs(),
        depth.active,
        depth.scheduled,
        depth.dead_letters
    )
}

/// Warns of settings that work but do not fit our work.
fn queue_warnings(properties: &QueueProperties, max_deliveries: u32) -> Vec<String> {
    let mut unfit = Vec::new();
    if properties.drops_duplicates == Some(false) {
        unfit.push(
            "duplicate detection is off: jobs that are sent twice wait twice; each is called for \
             once, which takes requests to the store (docs/service-bus.md). It can be set only \
             when a queue is created"
                .to_owned(),
        );
    }
    if properties.max_deliveries < max_deliveries {
        unfit.push(format!(
            "the queue dead-letters a job after {} deliveries, before a worker ends it after \
             {max_deliveries} (worker.max_deliveries): such a job has no outcome; raise the \
             queue's max delivery count",
            properties.max_deliveries
        ));
    }
    if properties.lock < MIN_LOCK_DURATION {
        unfit.push(format!(
            "locks last {} s, so a short outage costs them and may cost calls; set the lock \
             duration to 5 minutes",
            properties.lock.as_secs()
        ));
    }
    unfit
}

#[cfg(test)]
mod tests {
    use super::*;
    use queue::QueueDepth;

    #[test]
    fn a_queue_that_does_not_fit_is_warned_of() {
        let fit = QueueProperties {
            lock: Duration::from_secs(300),
            max_deliveries: 10,
            drops_duplicates: Some(true),
            depth: QueueDepth::default(),
        };
        assert!(queue_warnings(&fit, 10).is_empty());
        let lock = Duration::from_secs(30);
        let bad = QueueProperties { lock, max_deliveries: 5, drops_duplicates: Some(false), ..fit };
        let warnings = queue_warnings(&bad, 10);
        assert_eq!(warnings.len(), 3);
        assert!(warnings[1].contains("after 5 deliveries"), "{warnings:?}");
    }
}
