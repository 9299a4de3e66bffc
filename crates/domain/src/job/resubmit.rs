//! A dead letter's job becomes one to be worked again. The body stays the user's own, so the job keeps
//! its identity; the amendment is applied to what goes out.

use std::borrow::Cow;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::amendment::Amendment;
use super::json_edits::JsonEdits;
use super::{Api, Job};

#[derive(Deserialize)]
struct OutputLimitFields<'a> {
    #[serde(borrow)]
    max_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow)]
    max_output_tokens: Option<&'a RawValue>,
}

impl Job {
    /// Turns a dead letter's job into one to be worked again, amended. It may have an outcome by
    /// now, so it is to be looked up.
    pub fn resubmit(&mut self, amendment: &Amendment) {
        self.history.resubmit();
        self.not_before = None;
        self.may_have_outcome = true;
        self.history.amendment.merge(amendment);
        if let Some(model) = &amendment.model {
            self.model.clone_from(model);
        }
        match (&mut self.estimate, amendment.max_tokens) {
            // Its body is at hand: the worker counts again.
            (estimate, _) if self.claim_check.is_none() && !amendment.is_empty() => {
                *estimate = None
            }
            (Some(estimate), Some(most)) => estimate.max_output = estimate.max_output.max(most),
            _ => {}
        }
    }

    /// Returns the body with the amended longest answer; the caller puts the model in.
    pub fn amended_body(&self) -> Cow<'_, Bytes> {
        let Some(most) = self.history.amendment.max_tokens.filter(|_| self.api != Api::Embeddings)
        else {
            return Cow::Borrowed(&self.body);
        };
        let Ok(fields) = serde_json::from_slice::<OutputLimitFields<'_>>(&self.body) else {
            return Cow::Borrowed(&self.body);
        };
        let present = [fields.max_tokens, fields.max_completion_tokens, fields.max_output_tokens];
        let mut edits = JsonEdits::default();
        for value in present.into_iter().flatten() {
            edits.replace(&self.body, value, most.to_string());
        }
        if present.iter().all(Option::is_none) {
            let name = match self.api {
                Api::Responses => "max_output_tokens",
                _ => "max_completion_tokens",
            };
            edits.insert(&self.body, &format!(r#""{name}":{most}"#));
        }
        Cow::Owned(edits.apply(&self.body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::TokenEstimate;

    fn job(api: &str, body: &str) -> Job {
        let message = format!(r#"{{"custom_id":"c","batch_id":"b","url":"{api}","body":{body}}}"#);
        Job::from_message(message.as_bytes()).unwrap()
    }

    fn amended(api: &str, body: &str) -> String {
        let mut job = job(api, body);
        job.resubmit(&Amendment { max_tokens: Some(9), ..Amendment::default() });
        String::from_utf8(job.amended_body().to_vec()).unwrap()
    }

    #[test]
    fn the_longest_answer_is_set_under_the_name_that_the_body_uses() {
        let chat = "/v1/chat/completions";
        assert_eq!(
            amended(chat, r#"{"model":"m","max_tokens": 4}"#),
            r#"{"model":"m","max_tokens": 9}"#
        );
        assert_eq!(amended(chat, r#"{"model":"m"}"#), r#"{"max_completion_tokens":9,"model":"m"}"#);
        assert_eq!(
            amended("/v1/responses", r#"{"model":"m"}"#),
            r#"{"max_output_tokens":9,"model":"m"}"#
        );
        assert_eq!(amended("/v1/embeddings", r#"{"model":"m"}"#), r#"{"model":"m"}"#);
    }

    #[test]
    fn an_amended_job_stays_the_same_and_is_counted_again() {
        let mut job = job("/v1/chat/completions", r#"{"model":"m","max_tokens":4}"#);
        job.estimate = Some(TokenEstimate { prompt: 1, max_output: 4 });
        let digest = job.digest();
        job.resubmit(&Amendment { model: Some("large".into()), ..Amendment::default() });
        job.resubmit(&Amendment { max_tokens: Some(9), ..Amendment::default() });
        let message = job.to_message().unwrap();
        let again = Job::from_message(&message).unwrap();
        assert_eq!(again, job);
        assert_eq!((again.model.as_str(), again.digest(), again.estimate), ("large", digest, None));
        assert_eq!(again.history.amendment.max_tokens, Some(9));
    }

    #[test]
    fn a_body_that_lies_aside_is_charged_no_less_than_the_longest_answer() {
        let mut job = job("/v1/chat/completions", r#"{"model":"m","max_tokens":4}"#);
        job.estimate = Some(TokenEstimate { prompt: 1, max_output: 4 });
        job.offload_body();
        job.resubmit(&Amendment { max_tokens: Some(9), ..Amendment::default() });
        assert_eq!(job.estimate, Some(TokenEstimate { prompt: 1, max_output: 9 }));
    }
}
