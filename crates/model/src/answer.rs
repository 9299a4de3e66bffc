//! Answer of a 2xx response: whether it is one, and how it ended.
//!
//! Gateways answer 200 with an error, without any choice, or with `{}` (nodetool#5755, bifrost#5963),
//! and the Responses API with a response that failed or has not begun. None of these is a success.

use serde_json::value::RawValue;

use super::error_body::ErrorBody;
use super::lenient::{list, name, object, raw_fields, text};
use super::usage;
use domain::job::Api;
use domain::outcome::{AnswerFinish, TokenUsage};

raw_fields!(
    /// Fields of an answer of any API.
    AnswerFields { choices, output, data, error, status, incomplete_details, usage, service_tier }
);

raw_fields!(
    /// One choice of a chat completion; `text` is that of a plain completion.
    ChoiceFields { message, text, error, finish_reason }
);

raw_fields!(
    /// The message of a choice.
    MessageFields { refusal }
);

raw_fields!(
    /// One item of a response's output.
    ItemFields { r#type, content }
);

raw_fields!(
    /// One part of an item's content.
    PartFields { r#type }
);

raw_fields!(
    /// Why a response is not whole.
    IncompleteFields { reason }
);

/// Answer as it is read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AnswerReading {
    pub(super) content: AnswerContent,
    pub(super) usage: TokenUsage,
    /// Tier that is billed: a short word, since sums are kept by it.
    pub(super) service_tier: Option<Box<str>>,
}

/// What an answer holds.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum AnswerContent {
    /// An answer, and how it ended if it says so.
    Whole(Option<AnswerFinish>),
    /// An error in the place of an answer.
    Failed(ErrorBody),
    /// The service works on it still and calls that an answer.
    Unfinished(String),
    /// Neither an answer nor an error.
    Hollow(&'static str),
}

/// Reads the text of an answer of this API.
///
/// # Errors
/// If it is not JSON.
pub(super) fn read(api: Api, text: &str) -> Result<AnswerReading, serde_json::Error> {
    let whole: &RawValue = serde_json::from_str(text)?;
    let fields: AnswerFields<'_> = object(Some(whole));
    Ok(AnswerReading {
        usage: usage::read(api, fields.usage),
        service_tier: name(fields.service_tier).filter(|tier| is_word(tier)).map(Into::into),
        content: content(api, &fields),
    })
}

/// Returns whether it is fit to be part of a key: short, of letters, digits, `-`, `_` and `.`.
fn is_word(tier: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    tier.len() <= 32 && tier.chars().all(is_plain)
}

fn content(api: Api, fields: &AnswerFields<'_>) -> AnswerContent {
    let error = fields.error.filter(|error| !matches!(error.get(), "{}" | "\"\"" | "false" | "0"));
    if let Some(error) = error {
        return AnswerContent::Failed(ErrorBody::of_error(error));
    }
    match api {
        Api::Embeddings if list(fields.data).is_empty() => {
            AnswerContent::Hollow("the answer holds no embedding")
        }
        Api::Embeddings => AnswerContent::Whole(None),
        Api::ChatCompletions | Api::Responses => match fields.choices {
            Some(choices) => of_choices(&list(Some(choices))),
            None => of_response(fields),
        },
    }
}

fn of_choices(choices: &[&RawValue]) -> AnswerContent {
    let mut finishes = Vec::with_capacity(choices.len());
    for choice in choices {
        let fields: ChoiceFields<'_> = object(Some(choice));
        if let Some(error) = fields.error {
            return AnswerContent::Failed(ErrorBody::of_error(error));
        }
        if fields.message.is_none() && fields.text.is_none() {
            return AnswerContent::Hollow("a choice of the answer holds no message");
        }
        let said = name(fields.finish_reason);
        if said.as_deref() == Some("error") {
            let message = "the answer ended with an error".to_owned();
            return AnswerContent::Failed(ErrorBody { message, ..ErrorBody::default() });
        }
        let message: MessageFields<'_> = object(fields.message);
        let refused = text(message.refusal).is_some_and(|words| !words.is_empty());
        let finish = said.as_deref().and_then(finish_of);
        finishes.push(match finish {
            None | Some(AnswerFinish::Stop) if refused => Some(AnswerFinish::Refusal),
            finish => finish,
        });
    }
    match finishes.is_empty() {
        true => AnswerContent::Hollow("the answer has no choices"),
        false => AnswerContent::Whole(worst(finishes)),
    }
}

/// Reads a reason to finish, also as other services and gateways say it.
fn finish_of(said: &str) -> Option<AnswerFinish> {
    match said.to_ascii_lowercase().as_str() {
        "stop" | "stop_sequence" | "end_turn" | "eos" | "completed" => Some(AnswerFinish::Stop),
        "length" | "max_tokens" | "max_output_tokens" | "model_length" => {
            Some(AnswerFinish::Length)
        }
        "content_filter" | "safety" | "recitation" => Some(AnswerFinish::ContentFilter),
        "tool_calls" | "function_call" | "tool_use" => Some(AnswerFinish::ToolCalls),
        "refusal" => Some(AnswerFinish::Refusal),
        "incomplete" | "abort" | "cancelled" => Some(AnswerFinish::Incomplete),
        _ => None,
    }
}

/// Of several choices the one that is least whole counts.
fn worst(finishes: Vec<Option<AnswerFinish>>) -> Option<AnswerFinish> {
    let rank = |finish: &AnswerFinish| match finish {
        AnswerFinish::Length => 5,
        AnswerFinish::ContentFilter => 4,
        AnswerFinish::Incomplete => 3,
        AnswerFinish::Refusal => 2,
        AnswerFinish::ToolCalls => 1,
        AnswerFinish::Stop => 0,
    };
    finishes.into_iter().flatten().max_by_key(rank)
}

fn of_response(fields: &AnswerFields<'_>) -> AnswerContent {
    let status = name(fields.status);
    match status.as_deref() {
        Some("failed" | "cancelled" | "canceled" | "expired") => {
            let status = status.unwrap_or_default();
            let message = format!("the response has the status '{status}'");
            return AnswerContent::Failed(ErrorBody {
                code: Some(format!("response_{status}")),
                message,
                ..ErrorBody::default()
            });
        }
        Some("queued" | "in_progress") => {
            return AnswerContent::Unfinished(status.unwrap_or_default());
        }
        _ => {}
    }
    if fields.output.is_none_or(|output| !output.get().starts_with('[')) {
        return AnswerContent::Hollow("the answer holds neither choices nor an output");
    }
    if status.as_deref() == Some("incomplete") {
        let details: IncompleteFields<'_> = object(fields.incomplete_details);
        let reason = name(details.reason).and_then(|reason| finish_of(&reason));
        return AnswerContent::Whole(Some(reason.unwrap_or(AnswerFinish::Incomplete)));
    }
    AnswerContent::Whole(of_output(fields.output).or(status.map(|_| AnswerFinish::Stop)))
}

/// Looks for calls and refusals; most outputs have neither, which is told without reading them.
fn of_output(output: Option<&RawValue>) -> Option<AnswerFinish> {
    let has = |word: &str| {
        output.is_some_and(|output| {
            memchr::memmem::find(output.get().as_bytes(), word.as_bytes()).is_some()
        })
    };
    if !has("_call\"") && !has("\"refusal\"") {
        return None;
    }
    let mut finishes = Vec::new();
    for item in list(output) {
        let item: ItemFields<'_> = object(Some(item));
        // Calls of hosted tools are done by the service; these are for the caller.
        if matches!(name(item.r#type).as_deref(), Some("function_call" | "custom_tool_call")) {
            finishes.push(Some(AnswerFinish::ToolCalls));
        }
        for part in list(item.content) {
            let part: PartFields<'_> = object(Some(part));
            if name(part.r#type).as_deref() == Some("refusal") {
                finishes.push(Some(AnswerFinish::Refusal));
            }
        }
    }
    worst(finishes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content_of(api: Api, json: &str) -> AnswerContent {
        read(api, json).unwrap().content
    }

    fn chat(json: &str) -> AnswerContent {
        content_of(Api::ChatCompletions, json)
    }

    fn whole(finish: AnswerFinish) -> AnswerContent {
        AnswerContent::Whole(Some(finish))
    }

    #[test]
    fn a_chat_answer_tells_how_it_ended() {
        use AnswerFinish::*;
        let choice = |rest: &str| format!(r#"{{"choices":[{{"message":{{}}{rest}}}]}}"#);
        for (said, finish) in [
            ("stop", Stop),
            ("length", Length),
            ("content_filter", ContentFilter),
            ("tool_calls", ToolCalls),
            ("max_tokens", Length),
        ] {
            assert_eq!(chat(&choice(&format!(r#","finish_reason":"{said}""#))), whole(finish));
        }
        assert_eq!(chat(&choice("")), AnswerContent::Whole(None), "it does not say");
        assert_eq!(chat(&choice(r#","finish_reason":"odd""#)), AnswerContent::Whole(None));
        let refused = r#"{"choices":[{"finish_reason":"stop","message":{"refusal":"I can't"}}]}"#;
        assert_eq!(chat(refused), whole(Refusal));
        let two = r#"{"choices":[{"finish_reason":"stop","message":{}},
                                 {"finish_reason":"length","message":{}}]}"#;
        assert_eq!(chat(two), whole(Length), "one of two is cut off");
    }

    #[test]
    fn a_response_tells_how_it_ended() {
        use AnswerFinish::*;
        let response = |rest: &str| content_of(Api::Responses, &format!("{{{rest}}}"));
        let cases = [
            (r#""status":"completed","output":[]"#, Stop),
            (
                r#""status":"incomplete","output":[],"incomplete_details":{"reason":"max_output_tokens"}"#,
                Length,
            ),
            (
                r#""status":"incomplete","output":[],"incomplete_details":{"reason":"content_filter"}"#,
                ContentFilter,
            ),
            (r#""status":"incomplete","output":[],"incomplete_details":[]"#, Incomplete),
            (r#""status":"completed","output":[{"type":"function_call"}]"#, ToolCalls),
            (r#""output":[{"type":"message","content":[{"type":"refusal"}]}]"#, Refusal),
            (r#""status":"completed","output":[{"type":"web_search_call"}]"#, Stop),
        ];
        for (json, finish) in cases {
            assert_eq!(response(json), whole(finish), "{json}");
        }
        assert_eq!(response(r#""output":[]"#), AnswerContent::Whole(None));
    }

    #[test]
    fn what_holds_no_answer_is_none() {
        for hollow in [
            "{}",
            "[]",
            "null",
            "7",
            r#"{"choices":[]}"#,
            r#"{"choices":null}"#,
            r#"{"choices":{}}"#,
            r#"{"choices":[1]}"#,
            r#"{"choices":[{"message":null}]}"#,
            r#"{"output":null,"status":"completed"}"#,
            r#"{"object":"chat.completion"}"#,
        ] {
            assert!(matches!(chat(hollow), AnswerContent::Hollow(_)), "{hollow}");
        }
        for hollow in ["{}", r#"{"data":[]}"#, r#"{"data":7}"#] {
            let read = content_of(Api::Embeddings, hollow);
            assert!(matches!(read, AnswerContent::Hollow(_)), "{hollow}");
        }
        let embedded = content_of(Api::Embeddings, r#"{"data":[{"embedding":[0.1]}]}"#);
        assert_eq!(embedded, AnswerContent::Whole(None));
        assert!(read(Api::ChatCompletions, "<html>").is_err());
    }

    #[test]
    fn an_error_in_the_place_of_an_answer_is_no_answer() {
        for failed in [
            r#"{"error":{"code":502,"message":"m"},"user_id":"u"}"#,
            r#"{"error":"m","choices":[{"message":{}}]}"#,
            r#"{"choices":[{"message":{"content":"so far"},"error":{"message":"m"}}]}"#,
            r#"{"choices":[{"message":{"content":"so far"},"finish_reason":"error"}]}"#,
            r#"{"status":"failed","output":[],"error":{"code":"server_error","message":"m"}}"#,
            r#"{"status":"cancelled","output":[]}"#,
        ] {
            assert!(matches!(chat(failed), AnswerContent::Failed(_)), "{failed}");
        }
        let answered = r#"{"error":{},"choices":[{"message":{},"finish_reason":"stop"}]}"#;
        assert_eq!(chat(answered), whole(AnswerFinish::Stop));
    }

    #[test]
    fn what_has_only_begun_is_no_answer() {
        for status in ["queued", "in_progress"] {
            let json = format!(r#"{{"status":"{status}","output":[],"background":true}}"#);
            assert_eq!(
                content_of(Api::Responses, &json),
                AnswerContent::Unfinished(status.to_owned())
            );
        }
    }

    #[test]
    fn a_service_tier_that_is_no_word_is_left_out() {
        let tier = |json: &str| read(Api::ChatCompletions, json).unwrap().service_tier;
        assert_eq!(tier(r#"{"service_tier":"flex"}"#).as_deref(), Some("flex"));
        for odd in [r#""a/b""#, r#""""#, "null", "[1]", r#"" ""#] {
            assert_eq!(tier(&format!(r#"{{"service_tier":{odd}}}"#)), None, "{odd}");
        }
    }
}
