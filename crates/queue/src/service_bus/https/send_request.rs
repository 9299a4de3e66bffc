//! Jobs as REST requests: most in batches, the large and the scheduled ones by themselves.
//!
//! The crate sends one body a request; with the batch's content type, that body may be a batch. A
//! batch is JSON in which each message is a string, so a job is larger in it than alone. A
//! scheduled time goes in a header only, where its form is documented.

use azure_core::time::OffsetDateTime;
use azure_messaging_servicebus::service_bus::{SendMessageOptions, SettableBrokerProperties};
use jiff::Timestamp;
use serde_json::json;

use crate::DeadLetterReason;
use crate::service_bus::error::BrokerError;
use crate::service_bus::message::{DESCRIPTION, REASON, TRACE, message_id};
use domain::job::Job;

/// Size limit of one message in the Standard tier, less its headers (learn.microsoft.com, "Service
/// Bus quotas": 256 KB).
pub(super) const MESSAGE_LIMIT: usize = 255 * 1024;

/// A batch must fit the limit of one message, with everything around it.
const LARGEST_BATCH: usize = 192 * 1024;

/// Messages in one batch.
const LONGEST_BATCH: usize = 100;

const BATCH: &str = "application/vnd.microsoft.servicebus.json";

/// Jobs of one request.
#[derive(Debug)]
pub(super) struct SendRequest {
    /// Jobs with their positions in the call.
    pub(super) jobs: Vec<(usize, Job)>,
    alone: bool,
}

impl SendRequest {
    /// One job, in a request of its own.
    pub(super) fn alone(job: Job) -> Self {
        Self { jobs: vec![(0, job)], alone: true }
    }

    /// Returns the body and its headers.
    pub(super) fn request(&self) -> Result<(String, SendMessageOptions), BrokerError> {
        if let (true, [(_, job)]) = (self.alone, self.jobs.as_slice()) {
            let properties = SettableBrokerProperties {
                message_id: Some(message_id(job)),
                scheduled_enqueue_time_utc: job.not_before.map(whole_second).transpose()?,
                ..SettableBrokerProperties::default()
            };
            let options = SendMessageOptions {
                content_type: Some("application/json".to_owned()),
                broker_properties: Some(properties),
                custom_properties: None,
            };
            return Ok((text(job)?, options));
        }
        let items: Result<Vec<String>, BrokerError> =
            self.jobs.iter().map(|(_, job)| item(job)).collect();
        Ok((format!("[{}]", items?.join(",")), batch_options()))
    }
}

/// Returns the options that mark a body as a batch.
pub(super) fn batch_options() -> SendMessageOptions {
    SendMessageOptions { content_type: Some(BATCH.to_owned()), ..SendMessageOptions::default() }
}

/// Copies a dead job's message for the `dead_letter_queue`, as a batch of one. The reason is in the
/// batch's JSON, because a header takes ASCII alone.
pub(super) fn dead_letter_copy(
    message_id: &str,
    message: &str,
    reason: &DeadLetterReason,
) -> String {
    let item = json!([{
        "Body": message,
        "BrokerProperties": { "MessageId": message_id },
        "UserProperties": { REASON: reason.reason, DESCRIPTION: reason.description },
    }]);
    item.to_string()
}

/// Packs jobs into as few requests as there can be. The second list has those over
/// [`MESSAGE_LIMIT`], each alone, the largest first: the tier may take them or not.
pub(super) fn pack(jobs: Vec<Job>) -> Result<(Vec<SendRequest>, Vec<SendRequest>), BrokerError> {
    let (mut parcels, mut large) = (Vec::new(), Vec::new());
    let mut batch = Vec::new();
    let mut size = 0;
    for (at, job) in jobs.into_iter().enumerate() {
        let (weight, in_batch) = (text(&job)?.len(), item(&job)?.len());
        if weight > MESSAGE_LIMIT {
            large.push((weight, SendRequest { jobs: vec![(at, job)], alone: true }));
        } else if in_batch > LARGEST_BATCH || job.not_before.is_some() {
            parcels.push(SendRequest { jobs: vec![(at, job)], alone: true });
        } else {
            if size + in_batch > LARGEST_BATCH || batch.len() == LONGEST_BATCH {
                parcels.push(SendRequest { jobs: std::mem::take(&mut batch), alone: false });
                size = 0;
            }
            size += in_batch;
            batch.push((at, job));
        }
    }
    if !batch.is_empty() {
        parcels.push(SendRequest { jobs: batch, alone: false });
    }
    large.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    Ok((parcels, large.into_iter().map(|(_, parcel)| parcel).collect()))
}

fn text(job: &Job) -> Result<String, BrokerError> {
    let message = job.to_message().map_err(BrokerError::permanent)?;
    String::from_utf8(message).map_err(BrokerError::permanent)
}

fn item(job: &Job) -> Result<String, BrokerError> {
    let properties = json!({ "MessageId": message_id(job) });
    let mut item = json!({ "Body": text(job)?, "BrokerProperties": properties });
    if let Some(parent) = job.history.traceparent {
        let parent = parent.to_string();
        let named = TRACE.map(|name| (name.to_owned(), parent.clone().into()));
        item["UserProperties"] = serde_json::Value::Object(named.into_iter().collect());
    }
    Ok(item.to_string())
}

/// Rounds up to a second: the header has no parts of one, and no job may come before its time.
fn whole_second(at: Timestamp) -> Result<OffsetDateTime, BrokerError> {
    let up = i64::from(at.subsec_nanosecond() > 0);
    OffsetDateTime::from_unix_timestamp(at.as_second() + up).map_err(BrokerError::permanent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use domain::job::{Api, BatchId, JobHistory, JobId};

    fn job(n: usize, prompt: usize) -> Job {
        let batch_id: BatchId = "b".parse().unwrap();
        let custom_id = n.to_string();
        Job {
            id: JobId::new(&batch_id, &custom_id),
            batch_id,
            custom_id,
            position: 0,
            api: Api::ChatCompletions,
            model: "m".into(),
            body: Bytes::from(format!(r#"{{"model":"m","messages":"{}"}}"#, "x".repeat(prompt))),
            estimate: None,
            deadline: None,
            not_before: None,
            priority: 0,
            metadata: None,
            may_have_outcome: false,
            claim_check: None,
            history: JobHistory::default(),
        }
    }

    #[test]
    fn jobs_share_requests_as_long_as_they_fit() {
        let mut jobs: Vec<_> = (0..250).map(|n| job(n, 10)).collect();
        jobs.push(job(250, LARGEST_BATCH));
        jobs.extend([job(251, MESSAGE_LIMIT), job(252, MESSAGE_LIMIT * 2)]);
        jobs[7].not_before = Some(Timestamp::UNIX_EPOCH);
        let (parcels, large) = pack(jobs).unwrap();
        let counts: Vec<_> = parcels.iter().map(|parcel| parcel.jobs.len()).collect();
        assert_eq!(counts, [1, 100, 100, 1, 49]);
        assert_eq!(large.iter().map(|parcel| parcel.jobs[0].0).collect::<Vec<_>>(), [252, 251]);
    }

    #[test]
    fn a_set_time_is_never_early() {
        let at: Timestamp = "2030-01-01T00:00:00.2Z".parse().unwrap();
        assert_eq!(whole_second(at).unwrap().unix_timestamp(), at.as_second() + 1);
        let whole: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        assert_eq!(whole_second(whole).unwrap().unix_timestamp(), whole.as_second());
    }
}
