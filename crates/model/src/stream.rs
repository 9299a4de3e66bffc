//! Assembly of a server-sent event stream to what the call without `stream` returns.
//!
//! Chat chunks carry pieces (Azure docs: "streaming"): the first may hold no choice at all, a choice
//! may lack its `delta`, the last one holds the usage. The Responses API ends with an event that
//! holds the whole response.

use serde_json::{Map, Value, json};

use domain::job::Api;

/// Reason why a stream makes no complete answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum StreamError {
    #[error("the stream ended before it was complete")]
    Truncated,
    #[error("an event of the stream is not JSON")]
    NotJson,
    /// Error event, in the service's own words.
    #[error("{0}")]
    Failed(String),
}

/// Assembles the events of a stream.
pub(super) fn assemble(api: Api, text: &str) -> Result<Value, StreamError> {
    let events = events(text).map(|data| {
        serde_json::from_str::<Value>(data).map_err(|_| StreamError::NotJson).and_then(|event| {
            match event.get("error").filter(|error| !error.is_null()) {
                Some(error) => Err(StreamError::Failed(error.to_string())),
                None => Ok(event),
            }
        })
    });
    match api {
        Api::Responses => last_response(events),
        Api::ChatCompletions | Api::Embeddings => {
            if !ends_with_done(text) {
                return Err(StreamError::Truncated);
            }
            merge_chunks(events)
        }
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
            return Ok(event["response"].take());
        }
    }
    Err(StreamError::Truncated)
}

fn merge_chunks(
    events: impl Iterator<Item = Result<Value, StreamError>>,
) -> Result<Value, StreamError> {
    let mut whole = Map::new();
    let mut choices: Vec<Value> = Vec::new();
    for event in events {
        let Value::Object(chunk) = event? else { return Err(StreamError::NotJson) };
        for (key, value) in chunk {
            match (key.as_str(), value) {
                ("choices", Value::Array(pieces)) => {
                    pieces.into_iter().for_each(|piece| add_choice(&mut choices, piece));
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
    choices.sort_by_key(|choice| choice["index"].as_u64());
    whole.insert("object".into(), "chat.completion".into());
    whole.insert("choices".into(), choices.into());
    Ok(Value::Object(whole))
}

fn add_choice(choices: &mut Vec<Value>, mut piece: Value) {
    let index = piece["index"].as_u64().unwrap_or(0);
    let at = choices.iter().position(|choice| choice["index"] == index).unwrap_or_else(|| {
        choices.push(json!({"index": index, "message": {"role": "assistant", "content": null}}));
        choices.len() - 1
    });
    let choice = &mut choices[at];
    append(&mut choice["message"], piece["delta"].take());
    if let Value::Object(rest) = piece {
        let known = rest.into_iter().filter(|(k, v)| k != "delta" && k != "index" && !v.is_null());
        for (key, value) in known {
            choice[key] = value;
        }
    }
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
                let index = value.get("index").cloned();
                let same =
                    list.iter_mut().find(|v| index.is_some() && v.get("index") == index.as_ref());
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
    fn the_last_responses_event_is_the_response() {
        let text = concat!(
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"x\"}\n\n",
            "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"r\",\"error\":null}}\n\n",
        );
        assert_eq!(assemble(Api::Responses, text).unwrap()["id"], "r");
    }
}
