//! Answers as server-sent events: chat chunks and Responses events.
//!
//! All events of an answer are written at once into one buffer; `body` paces them. Neighbour:
//! `reply` has the content of an answer.

use std::io::Write;

use super::reply::{ApiAnswer, FILTERS, PROMPT_FILTERS, put};
use super::request::SimulatedApi;

/// Words in one event. The service sends about one token an event; a few at once save both sides
/// parsing and change nothing that a caller must handle.
const WORDS_PER_EVENT: u64 = 4;

/// Server-sent events of one answer.
#[derive(Debug, Default)]
pub struct SseEvents {
    pub bytes: Vec<u8>,
    /// End offset of each event in `bytes`.
    pub ends: Vec<usize>,
}

impl SseEvents {
    pub fn of(answer: &ApiAnswer<'_>, include_usage: bool) -> Self {
        let mut events = Self::default();
        match answer.api {
            SimulatedApi::Chat => events.chat(answer, include_usage),
            SimulatedApi::Responses => events.response(answer),
            SimulatedApi::Embeddings => unreachable!("embeddings have no stream parameter"),
        }
        events
    }

    fn chat(&mut self, answer: &ApiAnswer<'_>, include_usage: bool) {
        if answer.filters {
            self.event(|out| {
                put!(out, r#"{{"choices":[],"created":0,"id":"","model":"","object":"","#);
                put!(out, r#""prompt_filter_results":{PROMPT_FILTERS}}}"#);
            });
        }
        let usage = if include_usage { r#","usage":null"# } else { "" };
        for index in 0..answer.choices {
            self.chunk(answer, usage, |out| {
                put!(out, r#"{{"index":{index},"finish_reason":null,"logprobs":null,"#);
                put!(out, r#""delta":{{"role":"assistant","content":"","refusal":null}}}}"#);
            });
            for from in answer.words.chunk_starts(WORDS_PER_EVENT) {
                self.chunk(answer, usage, |out| {
                    put!(out, r#"{{"index":{index},"finish_reason":null,"logprobs":null,"#);
                    if answer.filters {
                        put!(out, r#""content_filter_results":{FILTERS},"#);
                    }
                    put!(out, r#""delta":{{"content":""#);
                    answer.words.write(from, from + WORDS_PER_EVENT, out);
                    put!(out, r#""}}}}"#);
                });
            }
            self.chunk(answer, usage, |out| {
                let reason = answer.finish_reason();
                put!(out, r#"{{"index":{index},"finish_reason":"{reason}","logprobs":null,"#);
                put!(out, r#""delta":{{}}}}"#);
            });
        }
        if include_usage {
            self.event(|out| {
                write_chunk_head(answer, out);
                put!(out, r#""choices":[],"usage":"#);
                answer.write_chat_usage(out);
                out.push(b'}');
            });
        }
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
        self.ends.push(self.bytes.len());
    }

    fn chunk(&mut self, answer: &ApiAnswer<'_>, usage: &str, choice: impl FnOnce(&mut Vec<u8>)) {
        self.event(|out| {
            write_chunk_head(answer, out);
            put!(out, r#""choices":["#);
            choice(out);
            put!(out, "]{usage}}}");
        });
    }

    fn event(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.extend_from_slice(b"data: ");
        write(&mut self.bytes);
        self.bytes.extend_from_slice(b"\n\n");
        self.ends.push(self.bytes.len());
    }

    fn response(&mut self, answer: &ApiAnswer<'_>) {
        let item =
            format!(r#""output_index":0,"item_id":"msg_{:016x}","content_index":0"#, answer.id);
        for kind in ["response.created", "response.in_progress"] {
            self.named_event(kind, |out| {
                put!(out, r#""response":"#);
                answer.write_response(out, false);
            });
        }
        self.named_event("response.output_item.added", |out| {
            put!(out, r#""output_index":0,"item":"#);
            answer.write_item(out, false);
        });
        self.named_event("response.content_part.added", |out| {
            put!(out, r#"{item},"part":"#);
            answer.write_part(out, false);
        });
        for from in answer.words.chunk_starts(WORDS_PER_EVENT) {
            self.named_event("response.output_text.delta", |out| {
                put!(out, r#"{item},"logprobs":[],"delta":""#);
                answer.words.write(from, from + WORDS_PER_EVENT, out);
                out.push(b'"');
            });
        }
        self.named_event("response.output_text.done", |out| {
            put!(out, r#"{item},"logprobs":[],"text":""#);
            answer.write_text(out);
            out.push(b'"');
        });
        self.named_event("response.content_part.done", |out| {
            put!(out, r#"{item},"part":"#);
            answer.write_part(out, true);
        });
        self.named_event("response.output_item.done", |out| {
            put!(out, r#""output_index":0,"item":"#);
            answer.write_item(out, true);
        });
        let last = if answer.cut_short { "response.incomplete" } else { "response.completed" };
        self.named_event(last, |out| {
            put!(out, r#""response":"#);
            answer.write_response(out, true);
        });
    }

    fn named_event(&mut self, kind: &str, write: impl FnOnce(&mut Vec<u8>)) {
        let number = self.ends.len();
        let out = &mut self.bytes;
        put!(out, "event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{number},");
        write(out);
        put!(out, "}}\n\n");
        self.ends.push(self.bytes.len());
    }
}

fn write_chunk_head(answer: &ApiAnswer<'_>, out: &mut Vec<u8>) {
    let ApiAnswer { id, created, model, service_tier, .. } = answer;
    put!(out, r#"{{"id":"chatcmpl-{id:016x}","object":"chat.completion.chunk","#);
    put!(out, r#""created":{created},"model":"{model}","#);
    put!(out, r#""service_tier":{service_tier},"system_fingerprint":"fp_simulator","#);
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::reply::tests::answer;
    use super::*;

    fn data(events: &SseEvents) -> Vec<Value> {
        let text = std::str::from_utf8(&events.bytes).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        lines.filter(|data| *data != "[DONE]").map(|d| serde_json::from_str(d).unwrap()).collect()
    }

    #[test]
    fn chat_chunks_hold_the_same_text_as_the_whole_answer() {
        let answer = answer(SimulatedApi::Chat);
        let events = SseEvents::of(&answer, true);
        let chunks = data(&events);
        let text: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
            .collect();
        let mut whole = Vec::new();
        answer.write_text(&mut whole);
        assert_eq!(text.as_bytes(), whole);
        assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], 34);
        assert!(events.bytes.ends_with(b"data: [DONE]\n\n"));
        assert_eq!(events.ends.last(), Some(&events.bytes.len()));
    }

    #[test]
    fn usage_comes_only_when_asked_for() {
        let events = SseEvents::of(&answer(SimulatedApi::Chat), false);
        assert!(data(&events).iter().all(|chunk| chunk.get("usage").is_none()));
    }

    #[test]
    fn responses_events_end_with_the_whole_response() {
        let answer = answer(SimulatedApi::Responses);
        let events = data(&SseEvents::of(&answer, false));
        let last = events.last().unwrap();
        assert_eq!(last["type"], "response.completed");
        let whole: Value = serde_json::from_slice(&answer.to_json()).unwrap();
        assert_eq!(last["response"], whole);
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
    }
}
