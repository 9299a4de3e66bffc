//! Request body as it is sent: the user's own bytes, changed only where they must be.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::response::ServiceTier;
use domain::job::json_edits::{self, JsonEdits};
use domain::job::{Api, Job};

const FLEX: &str = r#""flex""#;

#[derive(Deserialize)]
struct RequestBodyFields<'a> {
    #[serde(default, borrow, deserialize_with = "json_edits::written")]
    model: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "json_edits::written")]
    stream: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "json_edits::written")]
    stream_options: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "json_edits::written")]
    service_tier: Option<&'a RawValue>,
}

/// Puts the deployment's name into `model`, asks for the service tier, and asks a chat stream for
/// its usage, without which its cost is unknown.
pub(super) fn prepare(job: &Job, deployment: &str, tier: ServiceTier) -> Bytes {
    let body = job.amended_body();
    let same_model = job.model == deployment && job.history.amendment.model.is_none();
    let flex = tier == ServiceTier::Flex && job.api != Api::Embeddings;
    if same_model && !flex && !contains(&body, b"\"stream\"") {
        return body.into_owned();
    }
    let Ok(fields) = serde_json::from_slice::<RequestBodyFields<'_>>(&body) else {
        return body.into_owned();
    };
    let mut edits = JsonEdits::default();
    if !same_model && let Some(model) = fields.model {
        let name = serde_json::to_string(deployment).unwrap_or_default();
        edits.replace(&body, model, name);
    }
    let streams = fields.stream.is_some_and(|value| value.get() == "true");
    if streams && job.api == Api::ChatCompletions {
        const WITH_USAGE: &str = r#"{"include_usage":true}"#;
        match (fields.stream_options, fields.stream) {
            (Some(options), _) => edits.replace(&body, options, WITH_USAGE.into()),
            (None, Some(stream)) => {
                edits.replace(&body, stream, format!(r#"true,"stream_options":{WITH_USAGE}"#));
            }
            (None, None) => {}
        }
    }
    match (fields.service_tier, fields.model) {
        (Some(asked), _) if flex => edits.replace(&body, asked, FLEX.into()),
        // The model's pair follows, so the comma is in place.
        (None, Some(_)) if flex => edits.insert(&body, &format!(r#""service_tier":{FLEX}"#)),
        _ => {}
    }
    edits.apply(&body)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    memchr::memmem::find(haystack, needle).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::job::{BatchId, JobId};

    fn job(api: Api, model: &str, body: &str) -> Job {
        let batch_id: BatchId = "b".parse().unwrap();
        Job {
            id: JobId::new(&batch_id, "c"),
            batch_id,
            custom_id: "c".into(),
            position: 0,
            api,
            model: model.into(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            estimate: None,
            deadline: None,
            not_before: None,
            priority: 0,
            metadata: None,
            may_have_outcome: false,
            claim_check: None,
            history: Default::default(),
        }
    }

    #[test]
    fn a_body_that_needs_no_change_is_sent_byte_for_byte() {
        let job = job(Api::ChatCompletions, "m", r#"{ "model" : "m", "messages":[ ] }"#);
        assert_eq!(prepare(&job, "m", ServiceTier::AsAsked), job.body);
    }

    #[test]
    fn the_deployments_name_replaces_the_models() {
        let job = job(Api::Responses, "m", r#"{"input":"the \"model\"","model":"m","x":1}"#);
        assert_eq!(
            prepare(&job, "d", ServiceTier::AsAsked),
            r#"{"input":"the \"model\"","model":"d","x":1}"#
        );
    }

    #[test]
    fn a_chat_stream_is_asked_for_its_usage() {
        let plain = job(Api::ChatCompletions, "m", r#"{"stream": true,"model":"m"}"#);
        assert_eq!(
            prepare(&plain, "m", ServiceTier::AsAsked),
            r#"{"stream": true,"stream_options":{"include_usage":true},"model":"m"}"#
        );
        let body = r#"{"model":"m","stream_options":{"include_usage":false},"stream":true}"#;
        assert_eq!(
            prepare(&job(Api::ChatCompletions, "m", body), "m", ServiceTier::AsAsked),
            r#"{"model":"m","stream_options":{"include_usage":true},"stream":true}"#
        );
        let body = r#"{"model":"m","stream_options":null,"stream":true}"#;
        assert_eq!(
            prepare(&job(Api::ChatCompletions, "m", body), "m", ServiceTier::AsAsked),
            r#"{"model":"m","stream_options":{"include_usage":true},"stream":true}"#
        );
        let off = job(Api::ChatCompletions, "m", r#"{"model":"m","stream":false}"#);
        assert_eq!(prepare(&off, "m", ServiceTier::AsAsked), off.body);
    }

    #[test]
    fn a_flex_lane_asks_for_its_tier_whatever_the_job_said() {
        let plain = job(Api::ChatCompletions, "m", r#"{ "model":"m","messages":[]}"#);
        assert_eq!(
            prepare(&plain, "d", ServiceTier::Flex),
            r#"{"service_tier":"flex", "model":"d","messages":[]}"#
        );
        let asked = job(Api::Responses, "m", r#"{"model":"m","service_tier":"auto"}"#);
        assert_eq!(
            prepare(&asked, "m", ServiceTier::Flex),
            r#"{"model":"m","service_tier":"flex"}"#
        );
        assert_eq!(prepare(&asked, "m", ServiceTier::AsAsked), asked.body);
        let null = job(Api::Responses, "m", r#"{"model":"m","service_tier":null}"#);
        assert_eq!(
            prepare(&null, "m", ServiceTier::Flex),
            r#"{"model":"m","service_tier":"flex"}"#
        );
    }
}
