//! Prompts and answers in the conventions' form, if their export is enabled.
//!
//! `gen_ai.input.messages` and `gen_ai.output.messages` are JSON: a list of roles, each with its
//! parts. Parts that are no text (pictures, tool calls) are named by their kind and not copied.

use serde_json::{Map, Value, json};

use domain::job::Api;

/// Longest exported content: no receiver takes an attribute of megabytes.
const MAX_CONTENT_BYTES: usize = 64 * 1024;

/// Returns the prompt of a request.
pub(super) fn input(api: Api, body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    limited(match api {
        Api::ChatCompletions => messages(body.get("messages")?.as_array()?),
        Api::Responses => match body.get("input")? {
            Value::String(text) => json!([message("user", vec![text_part(text)])]),
            input => messages(input.as_array()?),
        },
        Api::Embeddings => {
            let parts = match body.get("input")? {
                Value::Array(texts) => {
                    texts.iter().filter_map(Value::as_str).map(text_part).collect()
                }
                input => vec![text_part(input.as_str()?)],
            };
            json!([message("user", parts)])
        }
    })
}

/// Returns the answer; `None` for a vector.
pub(super) fn output(api: Api, body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    limited(match api {
        Api::ChatCompletions => {
            let choices = body.get("choices")?.as_array()?.iter();
            choices.filter_map(choice_message).collect()
        }
        Api::Responses => {
            let output = body.get("output")?.as_array()?.iter();
            let said = output.filter(|item| item["type"] == "message").filter_map(role_message);
            said.collect()
        }
        Api::Embeddings => return None,
    })
}

fn choice_message(choice: &Value) -> Option<Value> {
    let mut message = role_message(choice.get("message")?)?;
    message["finish_reason"] = choice.get("finish_reason")?.clone();
    Some(message)
}

fn messages(messages: &[Value]) -> Value {
    messages.iter().filter_map(role_message).collect()
}

fn role_message(from: &Value) -> Option<Value> {
    let role = from.get("role")?.as_str()?;
    let parts = match from.get("content") {
        Some(Value::String(text)) => vec![text_part(text)],
        Some(Value::Array(parts)) => parts.iter().map(part).collect(),
        _ => Vec::new(),
    };
    Some(message(role, parts))
}

fn message(role: &str, parts: Vec<Value>) -> Value {
    json!({ "role": role, "parts": parts })
}

fn part(part: &Value) -> Value {
    match part.get("text").and_then(Value::as_str) {
        Some(text) => text_part(text),
        None => Value::Object(Map::from_iter([("type".to_owned(), part["type"].clone())])),
    }
}

fn text_part(text: &str) -> Value {
    json!({ "type": "text", "content": text })
}

fn limited(messages: Value) -> Option<String> {
    let text = messages.to_string();
    (text.len() <= MAX_CONTENT_BYTES).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: Option<String>) -> Value {
        serde_json::from_str(&text.unwrap()).unwrap()
    }

    #[test]
    fn a_chat_has_roles_and_parts_and_no_pictures() {
        let body = br#"{"messages":[{"role":"system","content":"be brief"},{"role":"user","content":[
            {"type":"text","text":"what is it?"},{"type":"image_url","image_url":{"url":"data:"}}]}]}"#;
        let expected = json!([
            {"role": "system", "parts": [{"type": "text", "content": "be brief"}]},
            {"role": "user", "parts": [{"type": "text", "content": "what is it?"}, {"type": "image_url"}]},
        ]);
        assert_eq!(read(input(Api::ChatCompletions, body)), expected);
        let body = br#"{"choices":[{"finish_reason":"stop","message":{"role":"assistant","content":"a cat"}}]}"#;
        let parts = json!([{"type": "text", "content": "a cat"}]);
        let expected = json!([{"role": "assistant", "parts": parts, "finish_reason": "stop"}]);
        assert_eq!(read(output(Api::ChatCompletions, body)), expected);
    }

    #[test]
    fn responses_and_embeddings_are_told_by_what_they_take() {
        let one = json!([{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]);
        assert_eq!(read(input(Api::Responses, br#"{"input":"hi"}"#)), one);
        assert_eq!(read(input(Api::Embeddings, br#"{"input":["hi"]}"#)), one);
        let body = br#"{"output":[{"type":"reasoning"},{"type":"message","role":"assistant",
            "content":[{"type":"output_text","text":"yes"}]}]}"#;
        let said = json!([{"role": "assistant", "parts": [{"type": "text", "content": "yes"}]}]);
        assert_eq!(read(output(Api::Responses, body)), said);
        assert_eq!(output(Api::Embeddings, b"{}"), None);
    }

    #[test]
    fn what_is_too_long_or_no_request_is_left_out() {
        let long = json!({ "input": "x".repeat(MAX_CONTENT_BYTES) }).to_string();
        assert_eq!(input(Api::Responses, long.as_bytes()), None);
        assert_eq!(input(Api::ChatCompletions, b"{}"), None);
    }
}
