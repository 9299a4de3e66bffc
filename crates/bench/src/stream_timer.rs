//! Timing of a streamed answer's output.

use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use domain::job::Api;

/// Records the times of one call's output.
#[derive(Debug)]
pub(super) struct StreamTimer {
    api: Api,
    /// Incomplete last line.
    line: Vec<u8>,
    /// Arrival of the first and the last event with output.
    pub(super) first: Option<Instant>,
    pub(super) last: Option<Instant>,
}

impl StreamTimer {
    pub(super) fn new(api: Api) -> Self {
        Self { api, line: Vec::new(), first: None, last: None }
    }

    /// Reads the next bytes of the body.
    pub(super) fn read(&mut self, now: Instant, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (head, tail) = rest.split_at(end);
            rest = &tail[1..];
            let words = if self.line.is_empty() {
                has_output(self.api, head)
            } else {
                self.line.extend_from_slice(head);
                let words = has_output(self.api, &self.line);
                self.line.clear();
                words
            };
            if words {
                self.first.get_or_insert(now);
                self.last = Some(now);
            }
        }
        // Of an answer that is no stream, no line is worth keeping.
        if rest.starts_with(b"data:") || rest.len() < 5 || !self.line.is_empty() {
            self.line.extend_from_slice(rest);
        }
    }
}

#[derive(Deserialize)]
struct DeltaChunk {
    #[serde(default)]
    choices: Vec<DeltaChoice>,
    r#type: Option<String>,
    delta: Option<Value>,
}

#[derive(Deserialize)]
struct DeltaChoice {
    delta: Option<Value>,
}

/// Returns whether a line of a stream brings model output, reasoning included.
fn has_output(api: Api, line: &[u8]) -> bool {
    let Some(data) = line.strip_prefix(b"data:") else { return false };
    let Ok(chunk) = serde_json::from_slice::<DeltaChunk>(data) else { return false };
    match api {
        Api::Responses => {
            chunk.r#type.is_some_and(|kind| kind.ends_with(".delta"))
                && chunk.delta.is_some_and(|delta| !is_empty(&delta))
        }
        Api::ChatCompletions | Api::Embeddings => {
            let deltas = chunk.choices.iter().filter_map(|choice| choice.delta.as_ref());
            let fields = deltas.filter_map(Value::as_object).flatten();
            fields.filter(|(name, _)| *name != "role").any(|(_, value)| !is_empty(value))
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const CHAT: [&str; 7] = [
        "data: {\"choices\":[],\"prompt_filter_results\":[]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"refusal\":null}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"吾輩\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":\"は\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3}}\n\n",
        "data: [DONE]\n\n",
    ];

    /// The milliseconds at which the first and last words came, with pieces at 0, 1, 2, … ms.
    fn times<'a>(api: Api, pieces: impl IntoIterator<Item = &'a [u8]>) -> (u128, u128) {
        let start = Instant::now();
        let mut watch = StreamTimer::new(api);
        for (ms, piece) in pieces.into_iter().enumerate() {
            watch.read(start + Duration::from_millis(ms as u64), piece);
        }
        let ms = |at: Option<Instant>| (at.unwrap() - start).as_millis();
        (ms(watch.first), ms(watch.last))
    }

    #[test]
    fn the_first_words_count_not_the_first_bytes() {
        assert_eq!(times(Api::ChatCompletions, CHAT.map(str::as_bytes)), (2, 3));
    }

    #[test]
    fn events_cut_anywhere_are_put_together() {
        let whole = CHAT.concat();
        let bytes = whole.as_bytes().chunks(1);
        let end_of = |piece: &str| whole.find(piece).unwrap() + piece.len();
        let (first, last) = times(Api::ChatCompletions, bytes);
        let line_end = |piece| (end_of(piece) - 2) as u128;
        assert_eq!((first, last), (line_end(CHAT[2]), line_end(CHAT[3])));
    }

    #[test]
    fn responses_events_count_by_their_delta() {
        let pieces = [
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{}}\n\n",
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n",
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"b\"}\n\n",
            "data: {\"type\":\"response.completed\",\"response\":{}}\n\n",
        ];
        assert_eq!(times(Api::Responses, pieces.map(str::as_bytes)), (1, 2));
    }
}
