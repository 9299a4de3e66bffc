//! Assembly of a server-sent event stream to what the call without `stream` returns.
//!
//! Chat chunks carry pieces (Azure docs: "streaming"): the first may hold no choice at all, a choice
//! may lack its `delta`, the last one holds the usage. The Responses API ends with an event that
//! holds the whole response. Some servers leave the closing `[DONE]` out (openai-node#2725): a stream
//! whose every choice has ended is whole without it.

use serde_json::{Map, Value, json};

use super::reply_text::mend_json;
use domain::job::Api;

/// Most choices of one answer.
const MOST_CHOICES: usize = 1_024;

/// Reason why a stream makes no complete answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum StreamError {
    #[error("the stream ended before it was complete")]
    Truncated,
    #[error("an event of the stream is not JSON")]
    NotJson,
    #[error("the stream has more than {MOST_CHOICES} choices")]
    Choices,
    #[error("the stream ended with an error")]
    Failed(Value),
}

/// Assembles the events of a stream. An error event is the answer, as it would be without `stream`.
pub(super) fn assemble(api: Api, text: &str) -> Result<Value, StreamError> {
    let events = events(text).map(read_event);
    let whole = match api {
        Api::Responses => last_response(events),
        Api::ChatCompletions | Api::Embeddings => merge_chunks(events, ends_with_done(text)),
    };
    match whole {
        Err(StreamError::Failed(error)) => Ok(json!({ "error": error })),
        whole => whole,
    }
}

fn read_event(data: &str) -> Result<Value, StreamError> {
    let event = serde_json::from_str::<Value>(data);
    let event = event.or_else(|_| serde_json::from_str(&mend_json(data)));
    let mut event = event.map_err(|_| StreamError::NotJson)?;
    if event.get("type").and_then(Value::as_str) == Some("error") {
        return Err(StreamError::Failed(event));
    }
    match event.get_mut("error").filter(|error| !error.is_null()) {
        Some(error) => Err(StreamError::Failed(error.take())),
        None => Ok(event),
    }
}

/// Returns the data of all events except the closing `[DONE]`.
fn events(text: &str) -> impl Iterator<Item = &str> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data:"));
    data.map(str::trim).filter(|data| *data != "[DONE]" && !data.is_empty())
}

fn ends_with_done(text: &str) -> bool {
    text.trim_end().ends_with("[DONE]")
}

fn last_response(
    events: impl Iterator<Item = Result<Value, StreamError>>,
) -> Result<Value, StreamError> {
    for event in events {
        let mut event = event?;
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default();
        if matches!(kind, "response.completed" | "response.incomplete" | "response.failed") {
            return Ok(event.get_mut("response").map(Value::take).unwrap_or_default());
        }
    }
    Err(StreamError::Truncated)
}

fn merge_chunks(
    events: impl Iterator<Item = Result<Value, StreamError>>,
    is_done: bool,
) -> Result<Value, StreamError> {
    let mut whole = Map::new();
    let mut choices: Vec<Value> = Vec::new();
    for event in events {
        let Value::Object(chunk) = event? else { return Err(StreamError::NotJson) };
        for (key, value) in chunk {
            match (key.as_str(), value) {
                ("choices", Value::Array(pieces)) => {
                    for piece in pieces {
                        let Value::Object(piece) = piece else { return Err(StreamError::NotJson) };
                        add_choice(&mut choices, piece)?;
                    }
                }
                // Empty ids and nulls come in annotation chunks; they must not overwrite known
                // values.
                (_, Value::Null) => {}
                (_, Value::String(text)) if text.is_empty() => {}
                (_, value) => {
                    whole.insert(key, value);
                }
            }
        }
    }
    let has_ended = |choice: &Value| !choice["finish_reason"].is_null();
    let is_whole = is_done || !choices.is_empty() && choices.iter().all(has_ended);
    if !is_whole {
        return Err(StreamError::Truncated);
    }
    choices.sort_by_key(|choice| choice["index"].as_u64());
    whole.insert("object".into(), "chat.completion".into());
    whole.insert("choices".into(), choices.into());
    Ok(Value::Object(whole))
}

fn add_choice(choices: &mut Vec<Value>, piece: Map<String, Value>) -> Result<(), StreamError> {
    let index = piece.get("index").and_then(Value::as_u64).unwrap_or(0);
    let at = match choices.iter().position(|choice| choice["index"] == index) {
        Some(at) => at,
        None if choices.len() == MOST_CHOICES => return Err(StreamError::Choices),
        None => {
            let message = json!({"role": "assistant", "content": null});
            choices.push(json!({"index": index, "message": message}));
            choices.len() - 1
        }
    };
    let choice = &mut choices[at];
    for (key, value) in piece {
        match key.as_str() {
            "delta" => append(&mut choice["message"], value),
            "index" => {}
            // Annotation chunks hold nulls; they must not overwrite known values.
            _ if value.is_null() => {}
            _ => choice[key] = value,
        }
    }
    Ok(())
}

/// Appends a piece to a value: texts run on, lists grow by their `index`, objects by their keys.
fn append(whole: &mut Value, piece: Value) {
    match (whole, piece) {
        (_, Value::Null) => {}
        (Value::String(text), Value::String(more)) => text.push_str(&more),
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                // These are complete in every piece; appending would double them.
                let slot = object.entry(key.as_str()).or_insert(Value::Null);
                if matches!(key.as_str(), "id" | "type" | "role" | "index") {
                    *slot = value;
                } else {
                    append(slot, value);
                }
            }
        }
        (Value::Array(list), Value::Array(more)) => {
            for value in more {
                let index = value.get("index").filter(|index| index.is_u64()).cloned();
                let same = index.as_ref().and_then(|index| {
                    list.iter_mut().rev().find(|slot| slot.get("index") == Some(index))
                });
                match same {
                    Some(slot) => append(slot, value),
                    None => list.push(value),
                }
            }
        }
        (slot, value) => *slot = value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chat_chunks_make_the_answer_with_its_usage() {
        let text = concat!(
            "data: {\"id\":\"\",\"choices\":[],\"prompt_filter_results\":[{\"prompt_index\":0}]}\n\n",
            "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n",
            "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"吾輩\"},\"finish_reason\":null}]}\n\n",
            "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"は猫\"}}]}\n\n",
            "data: {\"id\":\"\",\"choices\":[{\"index\":0,\"content_filter_offsets\":{\"start_offset\":1}}]}\n\n",
            "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"id\":\"c1\",\"choices\":[],\"usage\":{\"prompt_tokens\":3}}\n\n",
            "data: [DONE]\n\n",
        );
        let whole = assemble(Api::ChatCompletions, text).unwrap();
        assert_eq!(whole["id"], "c1");
        assert_eq!(whole["object"], "chat.completion");
        let message = &whole["choices"][0]["message"];
        assert_eq!(*message, json!({"role": "assistant", "content": "吾輩は猫"}));
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        assert_eq!(whole["usage"]["prompt_tokens"], 3);
    }

    #[test]
    fn tool_calls_are_joined_by_index() {
        let text = concat!(
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"a\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"\"}}]}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{\\\"x\\\"\"}}]}}]}\n\n",
            "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\":1}\"}}]}}]}\n\n",
            "data: [DONE]\n\n",
        );
        let whole = assemble(Api::ChatCompletions, text).unwrap();
        let call = &whole["choices"][0]["message"]["tool_calls"][0];
        assert_eq!(call["function"], json!({"name": "f", "arguments": "{\"x\":1}"}));
        assert_eq!(call["id"], "a");
    }

    #[test]
    fn a_stream_cut_short_is_no_answer() {
        let chat = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
        assert_eq!(assemble(Api::ChatCompletions, chat), Err(StreamError::Truncated));
        let responses = "event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
        assert_eq!(assemble(Api::Responses, responses), Err(StreamError::Truncated));
    }

    #[test]
    fn a_stream_without_its_last_line_is_whole_once_every_choice_has_ended() {
        let begun = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
        let ended = "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\n";
        let whole = assemble(Api::ChatCompletions, &format!("{begun}{ended}")).unwrap();
        assert_eq!(whole["choices"][0]["message"]["content"], "x");
    }

    #[test]
    fn an_error_within_a_stream_is_the_answer() {
        let begun = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n";
        let failed = "data: {\"error\":{\"code\":502,\"message\":\"m\"}}\n\n";
        let whole = assemble(Api::ChatCompletions, &format!("{begun}{failed}")).unwrap();
        assert_eq!(whole, json!({"error": {"code": 502, "message": "m"}}));
        let event = "event: error\ndata: {\"type\":\"error\",\"code\":\"c\",\"message\":\"m\"}\n\n";
        assert_eq!(assemble(Api::Responses, event).unwrap()["error"]["code"], "c");
    }

    #[test]
    fn events_of_any_other_shape_are_no_answer_and_no_panic() {
        for data in ["[]", "7", "{\"choices\":[1]}", "{\"choices\":[[]]}", "nothing"] {
            let text = format!("data: {data}\n\ndata: [DONE]\n\n");
            let chat = assemble(Api::ChatCompletions, &text);
            assert_eq!(chat, Err(StreamError::NotJson), "{data}");
            assert!(assemble(Api::Responses, &text).is_err(), "{data}");
        }
        let empty = "data: {\"type\":\"response.completed\"}\n\n";
        assert_eq!(assemble(Api::Responses, empty), Ok(Value::Null));
    }

    #[test]
    fn the_last_responses_event_is_the_response() {
        let text = concat!(
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n",
            "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"error\":null}}\n\n",
        );
        assert_eq!(assemble(Api::Responses, text).unwrap()["id"], "r");
    }
}
