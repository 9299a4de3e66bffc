//! Classification of a refusal: by its status, and where that leaves it open by its words.
//!
//! Pure, and the one table of what services refuse with; `verdict` makes a verdict of it. Sources:
//! Azure's and OpenAI's references, and what users reported (docs/replies.md names them).

use std::time::Duration;

use super::error_body::ErrorBody;
use domain::suspect::Suspect;

/// Kind of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalKind {
    /// No deployment will ever take the job.
    Job,
    /// This deployment will never take the job; another one may.
    JobHere,
    /// The job's or the deployment's fault; the advice is for the second case.
    Open(Suspect, &'static str),
    /// For want of quota or room.
    Full,
    /// Passes by itself.
    Passing,
    /// The deployment will not answer before somebody acts on this advice.
    Closed(&'static str),
}

const NOT_PAID: [&str; 5] = [
    "insufficient_quota",
    "billing_not_active",
    "billing_hard_limit_reached",
    "insufficient_balance",
    "insufficient_credits",
];

const KEY: &str = "Check the API key and that it belongs to this endpoint.";
const ROLE: &str = "Give the identity the role 'Cognitive Services OpenAI User' on this resource; a \
                    new assignment takes some minutes.";
const NETWORK: &str = "Check the network rules and the role 'Cognitive Services OpenAI User'.";
const NAME: &str = "Check the endpoint's path and the deployment's name; a deployment that was just \
                    created takes some minutes.";
const GONE: &str = "The model behind it is retired: deploy another one and name it in \
                    'deployment' or --deployment.";
const PATH: &str = "Is it an OpenAI-compatible API? Check the endpoint's path.";
const PROXY: &str = "A proxy on the way wants its own credentials: set them in HTTPS_PROXY.";
const VERSION: &str = "Set another 'api_version', or none for the v1 API.";
const MODEL: &str = "Check the model's name in the input, or name the deployment.";
const PARAMETER: &str = "Change the parameter in the input; reasoning models want \
                         max_completion_tokens.";

/// Classifies a refusal by status, error and the wait that it asks for.
pub(super) fn classify(status: u16, said: &ErrorBody, asked: Option<Duration>) -> RefusalKind {
    use RefusalKind::{Closed, Full, Job, JobHere, Open, Passing};
    match status {
        400 => classify_bad_request(said),
        401 if said.is(&["PermissionDenied"]) => Open(Suspect::Identity, ROLE),
        401 => Open(Suspect::Identity, KEY),
        402 => Closed("Add credit or quota."),
        // API Management: "Out of call volume quota. Quota will be replenished in 00:21:00."
        403 if asked.is_some() => Full,
        403 if said.is(&["content_filter", "content_policy_violation", "moderation_blocked"])
            || said.mentions(&["flagged", "moderation"]) =>
        {
            Job
        }
        403 | 404 | 410 if is_about_request(said) => JobHere,
        403 | 404 if is_about_model(said) => Open(Suspect::Job, MODEL),
        403 => Open(Suspect::Deployment, NETWORK),
        404 => Open(Suspect::Deployment, NAME),
        405 => Open(Suspect::Deployment, PATH),
        407 => Open(Suspect::Deployment, PROXY),
        410 => Open(Suspect::Deployment, GONE),
        408 | 409 | 424 | 425 | 499 | 500..=599 => Passing,
        413 | 422 | 431 => Job,
        429 if said.is(&NOT_PAID) || said.mentions(&["account is not active"]) => {
            Closed("Add credit or quota.")
        }
        429 if is_too_large(said) => JobHere,
        429 => Full,
        // Any other 4xx concerns the request itself, unless every job gets it.
        406 | 411..=498 => Open(Suspect::Job, PARAMETER),
        _ => Open(Suspect::Deployment, PATH),
    }
}

fn classify_bad_request(said: &ErrorBody) -> RefusalKind {
    use RefusalKind::{Job, Open, Passing};
    // OpenAI says so of whole requests at times, and takes them when they come again (eva#1011).
    if said.mentions(&["could not parse the json body"]) {
        return Passing;
    }
    if said.mentions(&["api version not supported", "unsupported api version"]) {
        return Open(Suspect::Deployment, VERSION);
    }
    if is_about_model(said) || said.is(&["OperationNotSupported", "DeploymentNotFound"]) {
        return Open(Suspect::Job, MODEL);
    }
    // After an upgrade of the model every job gets it (sample-app-aoai-chatGPT#1514).
    if said.is(&["unsupported_parameter", "unsupported_value", "unknown_parameter"])
        || said.mentions(&["unsupported parameter", "unsupported value", "max_completion_tokens"])
    {
        return Open(Suspect::Job, PARAMETER);
    }
    Job
}

/// Returns whether something that the request refers to is missing: a prompt, a file, a response.
fn is_about_request(said: &ErrorBody) -> bool {
    const CODES: [&str; 5] = [
        "previous_response_not_found",
        "prompt_not_found",
        "file_not_found",
        "vector_store_not_found",
        "conversation_not_found",
    ];
    let is_parameter = said.param.as_deref().is_some_and(|param| param != "model");
    let is_missing = said.mentions(&["not found", "no such", "does not exist"]);
    let names = ["with id ", "no such file", "no such prompt", "previous response"];
    is_parameter || said.is(&CODES) || is_missing && said.mentions(&names)
}

fn is_about_model(said: &ErrorBody) -> bool {
    const CODES: [&str; 4] =
        ["model_not_found", "invalid_model", "model_not_available", "unknown_model"];
    const WORDS: [&str; 5] = [
        "does not exist",
        "not found",
        "do not have access to it",
        "not have access to model",
        "not a valid model",
    ];
    let is_parameter = said.param.as_deref() == Some("model");
    is_parameter || said.is(&CODES) || said.mentions(&["model"]) && said.mentions(&WORDS)
}

/// Returns whether a refusal says that the request alone exceeds the limit: no wait helps it.
fn is_too_large(said: &ErrorBody) -> bool {
    let message = said.message.to_lowercase();
    let number_at = |at: usize| {
        let digits = message[at..].trim_start_matches([':', ' ']);
        let end = digits.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(digits.len());
        digits[..end].replace(',', "").parse::<u64>().ok()
    };
    let after =
        |word: &str| message.match_indices(word).find_map(|(at, _)| number_at(at + word.len()));
    let exceeds = after("limit").zip(after("requested")).is_some_and(|(most, it)| it > most);
    exceeds || message.contains("request too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: Option<&str>, param: Option<&str>, message: &str) -> ErrorBody {
        ErrorBody {
            code: code.map(Into::into),
            param: param.map(Into::into),
            message: message.into(),
            ..ErrorBody::default()
        }
    }

    #[test]
    fn a_missing_thing_that_the_request_names_is_the_jobs_matter() {
        for (param, message) in [
            (Some("prompt.id"), "Prompt with id 'pmpt_gone' not found."),
            (None, "File with id 'file-gone' not found."),
            (None, "No such File object: file-x"),
            (None, "Previous response with id 'resp_1' not found."),
        ] {
            let kind = classify(404, &said(None, param, message), None);
            assert_eq!(kind, RefusalKind::JobHere, "{message}");
        }
        let coded = said(Some("previous_response_not_found"), None, "");
        assert_eq!(classify(404, &coded, None), RefusalKind::JobHere);
    }

    #[test]
    fn a_missing_model_may_be_either_partys_fault_and_a_missing_deployment_its_own() {
        let suspect = |status, said: &ErrorBody| match classify(status, said, None) {
            RefusalKind::Open(suspect, _) => Some(suspect),
            _ => None,
        };
        let model =
            said(None, None, "The model `gpt-9` does not exist or you do not have access to it.");
        assert_eq!(suspect(404, &model), Some(Suspect::Job));
        assert_eq!(suspect(400, &said(Some("model_not_found"), None, "")), Some(Suspect::Job));
        let project = said(None, None, "Project `p` does not have access to model `gpt-9`");
        assert_eq!(suspect(403, &project), Some(Suspect::Job));
        let azure = "The API deployment for this resource does not exist. If you created the \
                     deployment within the last 5 minutes, please wait a moment and try again.";
        let azure = said(Some("DeploymentNotFound"), None, azure);
        assert_eq!(suspect(404, &azure), Some(Suspect::Deployment));
        for status in [404, 403, 410, 405, 407, 302] {
            let plain = said(None, None, "<html>");
            assert_eq!(suspect(status, &plain), Some(Suspect::Deployment), "{status}");
        }
    }

    #[test]
    fn a_request_above_the_limit_is_told_from_one_that_came_too_early() {
        let openai = "Request too large for gpt-4o in organization org-x on tokens per min (TPM): \
                      Limit 30000, Requested 34239.";
        assert!(is_too_large(&said(None, None, openai)));
        let early = "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30,000, \
                     Used 29,000, Requested 1,200. Please try again in 400ms.";
        assert!(!is_too_large(&said(None, None, early)));
        let alone = "on tokens per min: Limit: 30,000, Requested: 34,239.";
        assert!(is_too_large(&said(None, None, alone)));
        assert!(!is_too_large(&said(None, None, "limit, requested")));
    }
}
