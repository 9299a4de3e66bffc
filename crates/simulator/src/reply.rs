//! Complete answer bodies, formatted by hand because they are most of what is sent.
//!
//! Nothing here needs escaping: names are checked when they are deployed, and the answers are made
//! of plain words of one token each, so that an answer has the length in its usage without being
//! counted. Neighbours: `stream` splits the same answers into events; `judge` decides the usage.

use std::io::Write;

use super::embedding::EmbeddingParams;
use super::ledger_snapshot::AnswerUsage;
use super::request::SimulatedApi;
use super::structured_output::StructuredOutput;

/// Words that, with the leading space, are one token each in both tokenizers.
const WORDS: [&str; 32] = [
    " the", " water", " table", " under", " light", " house", " green", " river", " small",
    " stone", " white", " paper", " world", " night", " about", " music", " story", " early",
    " value", " point", " right", " place", " sound", " great", " round", " human", " local",
    " power", " heart", " field", " north", " plant",
];

/// Content filter results of an answer.
pub const FILTERS: &str = r#"{"hate":{"filtered":false,"severity":"safe"},"protected_material_text":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}"#;

/// Content filter results of a prompt.
pub const PROMPT_FILTERS: &str = r#"[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"},"jailbreak":{"filtered":false,"detected":false},"self_harm":{"filtered":false,"severity":"safe"},"sexual":{"filtered":false,"severity":"safe"},"violence":{"filtered":false,"severity":"safe"}}}]"#;

/// Content of one answer.
#[derive(Debug)]
pub struct ApiAnswer<'a> {
    pub api: SimulatedApi,
    pub id: u64,
    /// Seconds since 1970.
    pub created: u64,
    pub model: &'a str,
    /// Includes Azure's content filter results; plain OpenAI servers have none.
    pub filters: bool,
    pub usage: AnswerUsage,
    pub choices: u32,
    /// Billed tier, in JSON: reported only if the request asked for a tier.
    pub service_tier: &'static str,
    /// The answer was truncated to the length that the request allowed.
    pub cut_short: bool,
    pub words: AnswerWords<'a>,
    pub embedding: Option<&'a EmbeddingParams>,
}

/// Text of an answer.
#[derive(Debug, Clone, Copy)]
pub struct AnswerWords<'a> {
    /// Index into the word list at which the answer begins.
    pub start: u64,
    pub count: u64,
    /// JSON around the words, and true if it is closed at the end.
    pub structured_output: Option<(&'a StructuredOutput, bool)>,
}

impl AnswerWords<'_> {
    /// Returns the start of each chunk of `words` words; an answer of JSON alone has one chunk.
    pub fn chunk_starts(self, words: u64) -> impl Iterator<Item = u64> {
        let least = u64::from(self.structured_output.is_some());
        (0..self.count.max(least)).step_by(words as usize)
    }

    /// Appends the words `from..to`.
    pub fn write(self, from: u64, to: u64, out: &mut Vec<u8>) {
        if let Some((form, _)) = self.structured_output.filter(|_| from == 0) {
            out.extend_from_slice(form.before.as_bytes());
        }
        for i in from..to.min(self.count) {
            let word = WORDS[((self.start + i) % WORDS.len() as u64) as usize];
            let word = if i == 0 { word.trim_start() } else { word };
            out.extend_from_slice(word.as_bytes());
        }
        if let Some((form, true)) = self.structured_output.filter(|_| to >= self.count) {
            out.extend_from_slice(form.after.as_bytes());
        }
    }
}

/// Formats into a `Vec`, which can't fail.
macro_rules! put {
    ($out:expr, $($text:tt)*) => { write!($out, $($text)*).expect("memory takes every byte") };
}
pub(super) use put;

impl ApiAnswer<'_> {
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2_048 + 6 * self.words.count as usize);
        match self.api {
            SimulatedApi::Chat => self.write_chat(&mut out),
            SimulatedApi::Responses => self.write_response(&mut out, true),
            SimulatedApi::Embeddings => self.write_embeddings(&mut out),
        }
        out
    }

    pub fn finish_reason(&self) -> &'static str {
        if self.cut_short { "length" } else { "stop" }
    }

    pub fn write_text(&self, out: &mut Vec<u8>) {
        self.words.write(0, self.words.count, out);
    }

    fn write_chat(&self, out: &mut Vec<u8>) {
        let Self { id, created, model, service_tier, .. } = self;
        put!(out, r#"{{"id":"chatcmpl-{id:016x}","object":"chat.completion","created":{created},"#);
        put!(
            out,
            r#""model":"{model}","service_tier":{service_tier},"system_fingerprint":"fp_simulator","#
        );
        put!(out, r#""choices":["#);
        for index in 0..self.choices {
            if index > 0 {
                out.push(b',');
            }
            let reason = self.finish_reason();
            put!(out, r#"{{"index":{index},"finish_reason":"{reason}","logprobs":null,"#);
            put!(out, r#""message":{{"role":"assistant","content":""#);
            self.write_text(out);
            put!(out, r#"","refusal":null}}"#);
            if self.filters {
                put!(out, r#","content_filter_results":{FILTERS}"#);
            }
            out.push(b'}');
        }
        put!(out, r#"],"usage":"#);
        self.write_chat_usage(out);
        if self.filters {
            put!(out, r#","prompt_filter_results":{PROMPT_FILTERS}"#);
        }
        out.push(b'}');
    }

    pub fn write_chat_usage(&self, out: &mut Vec<u8>) {
        let AnswerUsage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens } =
            self.usage;
        let total = self.usage.total();
        put!(out, r#"{{"prompt_tokens":{prompt_tokens},"completion_tokens":{completion_tokens},"#);
        put!(out, r#""total_tokens":{total},"#);
        put!(out, r#""prompt_tokens_details":{{"cached_tokens":{cached_tokens},"#);
        put!(out, r#""audio_tokens":null}},"completion_tokens_details":{{"#);
        put!(out, r#""reasoning_tokens":{reasoning_tokens},"audio_tokens":null}}}}"#);
    }

    /// Writes a Responses object; before it is `done` it has no output and no usage.
    pub fn write_response(&self, out: &mut Vec<u8>, done: bool) {
        let Self { id, created, model, service_tier, .. } = self;
        let status = match (done, self.cut_short) {
            (false, _) => "in_progress",
            (true, false) => "completed",
            (true, true) => "incomplete",
        };
        put!(out, r#"{{"id":"resp_{id:016x}","object":"response","created_at":{created},"#);
        put!(out, r#""status":"{status}","error":null,"incomplete_details":"#);
        if status == "incomplete" {
            put!(out, r#"{{"reason":"max_output_tokens"}}"#);
        } else {
            put!(out, "null");
        }
        put!(out, r#","instructions":null,"metadata":{{}},"model":"{model}","#);
        put!(out, r#""service_tier":{service_tier},"#);
        put!(out, r#""parallel_tool_calls":true,"temperature":1.0,"tool_choice":"auto","#);
        put!(out, r#""tools":[],"top_p":1.0,"output":["#);
        if done {
            self.write_item(out, true);
        }
        put!(out, r#"],"usage":"#);
        if done {
            self.write_response_usage(out);
        } else {
            put!(out, "null");
        }
        out.push(b'}');
    }

    /// Writes the one message of a Responses output.
    pub fn write_item(&self, out: &mut Vec<u8>, done: bool) {
        let status = match (done, self.cut_short) {
            (false, _) => "in_progress",
            (true, false) => "completed",
            (true, true) => "incomplete",
        };
        let id = self.id;
        put!(out, r#"{{"type":"message","id":"msg_{id:016x}","status":"{status}","#);
        put!(out, r#""role":"assistant","content":["#);
        if done {
            self.write_part(out, true);
        }
        put!(out, "]}}");
    }

    pub fn write_part(&self, out: &mut Vec<u8>, done: bool) {
        put!(out, r#"{{"type":"output_text","text":""#);
        if done {
            self.write_text(out);
        }
        put!(out, r#"","annotations":[]}}"#);
    }

    fn write_response_usage(&self, out: &mut Vec<u8>) {
        let AnswerUsage { prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens } =
            self.usage;
        let total = self.usage.total();
        put!(out, r#"{{"input_tokens":{prompt_tokens},"#);
        put!(out, r#""input_tokens_details":{{"cached_tokens":{cached_tokens}}},"#);
        put!(out, r#""output_tokens":{completion_tokens},"#);
        put!(out, r#""output_tokens_details":{{"reasoning_tokens":{reasoning_tokens}}},"#);
        put!(out, r#""total_tokens":{total}}}"#);
    }

    fn write_embeddings(&self, out: &mut Vec<u8>) {
        let Some(embedding) = self.embedding else { return };
        put!(out, r#"{{"object":"list","data":["#);
        for (index, input) in embedding.inputs.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            put!(out, r#"{{"object":"embedding","index":{index},"embedding":"#);
            embedding.write_vector(*input, out);
            out.push(b'}');
        }
        let (model, tokens) = (self.model, self.usage.prompt_tokens);
        put!(out, r#"],"model":"{model}","#);
        put!(out, r#""usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#);
    }
}

#[cfg(test)]
pub mod tests {
    use serde_json::Value;

    use super::*;

    pub fn answer(api: SimulatedApi) -> ApiAnswer<'static> {
        let usage = AnswerUsage {
            prompt_tokens: 20,
            cached_tokens: 0,
            completion_tokens: 14,
            reasoning_tokens: 4,
        };
        ApiAnswer {
            api,
            id: 0xabc,
            created: 1,
            model: "gpt-4o-2024-08-06",
            filters: true,
            usage,
            choices: 1,
            service_tier: "null",
            cut_short: false,
            words: AnswerWords { start: 30, count: 10, structured_output: None },
            embedding: None,
        }
    }

    #[test]
    fn every_word_is_one_token() {
        for tokenizer in [bpe_openai::o200k_base(), bpe_openai::cl100k_base()] {
            let mut text = Vec::new();
            AnswerWords { start: 0, count: 320, structured_output: None }.write(0, 320, &mut text);
            assert_eq!(tokenizer.count(std::str::from_utf8(&text).unwrap()), 320);
        }
    }

    #[test]
    fn a_chat_answer_says_what_it_cost() {
        let body: Value = serde_json::from_slice(&answer(SimulatedApi::Chat).to_json()).unwrap();
        assert_eq!(body["usage"]["total_tokens"], 34);
        assert_eq!(body["usage"]["completion_tokens_details"]["reasoning_tokens"], 4);
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
        let text = body["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(text.split(' ').count(), 10);
        assert_eq!(body["prompt_filter_results"][0]["prompt_index"], 0);
    }

    #[test]
    fn a_plain_server_has_no_filter_verdicts() {
        let answer = ApiAnswer { filters: false, ..answer(SimulatedApi::Chat) };
        let body: Value = serde_json::from_slice(&answer.to_json()).unwrap();
        assert!(body.get("prompt_filter_results").is_none());
        assert!(body["choices"][0].get("content_filter_results").is_none());
    }

    #[test]
    fn a_response_that_was_cut_short_says_so() {
        let answer = ApiAnswer { cut_short: true, ..answer(SimulatedApi::Responses) };
        let body: Value = serde_json::from_slice(&answer.to_json()).unwrap();
        assert_eq!(body["status"], "incomplete");
        assert_eq!(body["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(body["usage"]["output_tokens"], 14);
    }
}
