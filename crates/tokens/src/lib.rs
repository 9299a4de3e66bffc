//! Token estimate: what the service will book for a request, prompt tokens plus the longest answer.
//!
//! Azure OpenAI books an estimate when a request arrives, long before it knows the answer's length
//! (Azure docs: "quota", the limiter's model). The prompt is counted with the model's own
//! tokenizer; parts that are no text get the published flat costs.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use domain::job::{Api, TokenEstimate};

/// Output tokens assumed where a request sets no limit. Too high only costs pace, and the
/// service's headers correct it; too low leads to 429s.
pub const DEFAULT_MAX_OUTPUT: u32 = 4096;

/// Tokens around every chat message and before the answer, as OpenAI's cookbook counts them.
const PER_MESSAGE: usize = 3;
const PER_REPLY: usize = 3;
const PER_NAME: usize = 1;

/// A 1024 x 1024 picture in high detail, and any picture in low detail (OpenAI's vision guide).
const IMAGE_HIGH: usize = 765;
const IMAGE_LOW: usize = 85;

/// Counts the tokens of a request body. Unreadable parts count as nothing: the service will
/// reject such a request itself.
pub fn estimate(api: Api, model: &str, body: &[u8]) -> TokenEstimate {
    let Ok(fields) = serde_json::from_slice::<PromptFields<'_>>(body) else {
        return TokenEstimate::default();
    };
    let count = tokenizer(model);
    let prompt = match api {
        Api::ChatCompletions => {
            let messages = fields.messages.iter().flatten();
            PER_REPLY + messages.map(|m| m.tokens(&count)).sum::<usize>()
        }
        Api::Responses | Api::Embeddings => {
            fields.input.map_or(0, |input| text_tokens(input, &count))
        }
    };
    let around = [fields.instructions, fields.tools, fields.functions, fields.response_format];
    let around: usize = around.into_iter().flatten().map(|raw| text_tokens(raw, &count)).sum();
    let max_output = match api {
        Api::Embeddings => 0,
        _ => fields.max_output(),
    };
    TokenEstimate { prompt: u32::try_from(prompt + around).unwrap_or(u32::MAX), max_output }
}

/// Returns whether a request limits the tokens of its answer, or has no such limit to set.
pub fn has_output_limit(api: Api, body: &str) -> bool {
    let limit = |fields: PromptFields<'_>| {
        fields.max_completion_tokens.or(fields.max_output_tokens).or(fields.max_tokens)
    };
    api == Api::Embeddings || serde_json::from_str(body).is_ok_and(|asked| limit(asked).is_some())
}

/// Fields of a request body that cost tokens.
#[derive(Deserialize)]
struct PromptFields<'a> {
    #[serde(borrow)]
    messages: Option<Vec<PromptMessage<'a>>>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow)]
    tools: Option<&'a RawValue>,
    #[serde(borrow)]
    functions: Option<&'a RawValue>,
    #[serde(borrow)]
    response_format: Option<&'a RawValue>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    n: Option<u32>,
}

impl PromptFields<'_> {
    fn max_output(&self) -> u32 {
        let each = self.max_completion_tokens.or(self.max_output_tokens).or(self.max_tokens);
        each.unwrap_or(DEFAULT_MAX_OUTPUT).saturating_mul(self.n.unwrap_or(1).max(1))
    }
}

#[derive(Deserialize)]
struct PromptMessage<'a> {
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
}

impl PromptMessage<'_> {
    fn tokens(&self, count: &dyn Fn(&str) -> usize) -> usize {
        let role = self.role.as_deref().map_or(0, |role| match role {
            // The usual roles are one token in every encoding.
            "system" | "user" | "assistant" | "developer" | "tool" => 1,
            other => count(other),
        });
        let name = self.name.as_deref().map_or(0, |name| PER_NAME + count(name));
        let bodies = [self.content, self.tool_calls].into_iter().flatten();
        PER_MESSAGE + role + name + bodies.map(|raw| text_tokens(raw, count)).sum::<usize>()
    }
}

/// Counts the tokens of a JSON value: a string, a list of strings, token numbers or parts, or a
/// message list.
fn text_tokens(raw: &RawValue, count: &dyn Fn(&str) -> usize) -> usize {
    let json = raw.get();
    match json.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<Cow<'_, str>>(json).map_or(0, |text| count(&text)),
        Some(b'[') => serde_json::from_str::<Vec<&RawValue>>(json)
            .map_or(0, |items| items.into_iter().map(|item| item_tokens(item, count)).sum()),
        Some(b'n') | None => 0,
        _ => count(json),
    }
}

fn item_tokens(raw: &RawValue, count: &dyn Fn(&str) -> usize) -> usize {
    match raw.get().as_bytes().first() {
        Some(b'{') => serde_json::from_str::<PromptPart<'_>>(raw.get())
            .map_or(0, |part| part.tokens(raw.get(), count)),
        // Embeddings accept ready-made token numbers too.
        Some(b'0'..=b'9') => 1,
        _ => text_tokens(raw, count),
    }
}

/// A content part, or a message of a Responses input.
#[derive(Deserialize)]
struct PromptPart<'a> {
    #[serde(borrow)]
    r#type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    role: Option<Cow<'a, str>>,
    #[serde(borrow)]
    image_url: Option<&'a RawValue>,
    #[serde(borrow)]
    detail: Option<Cow<'a, str>>,
}

impl PromptPart<'_> {
    fn tokens(&self, whole: &str, count: &dyn Fn(&str) -> usize) -> usize {
        if matches!(self.r#type.as_deref(), Some("image_url" | "input_image")) {
            let nested = self.image_url.is_some_and(|url| url.get().contains(r#""detail":"low""#));
            let low = self.detail.as_deref() == Some("low") || nested;
            return if low { IMAGE_LOW } else { IMAGE_HIGH };
        }
        match (self.text, self.content) {
            (Some(text), _) => text_tokens(text, count),
            (None, Some(content)) => {
                let message = if self.role.is_some() { PER_MESSAGE + 1 } else { 0 };
                message + text_tokens(content, count)
            }
            // A tool definition or the like: the model reads its JSON.
            (None, None) => count(whole),
        }
    }
}

/// Returns the number of tokens of a text for current models.
pub fn count(text: &str) -> usize {
    bpe_openai::o200k_base().count(text)
}

/// Returns the model's encoding, by the names OpenAI's tokenizer maps to it. Deployments can have
/// any name: unknown ones are taken for current models.
fn tokenizer(model: &str) -> impl Fn(&str) -> usize {
    const CL100K: [&str; 4] = ["gpt-4", "gpt-35", "gpt-3.5", "text-embedding"];
    const O200K: [&str; 3] = ["gpt-4o", "gpt-4.", "gpt-4-o"];
    let model = model.to_ascii_lowercase();
    let starts = |names: &[&str]| names.iter().any(|name| model.starts_with(name));
    let tokenizer = if starts(&CL100K) && !starts(&O200K) {
        bpe_openai::cl100k_base()
    } else {
        bpe_openai::o200k_base()
    };
    |text| tokenizer.count(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(api: Api, model: &str, body: &str) -> (u32, u32) {
        let e = estimate(api, model, body.as_bytes());
        (e.prompt, e.max_output)
    }

    #[test]
    fn chat_is_counted_as_the_service_counts_it() {
        // 3 a message + role 1 + "Hello" 1 + 3 before the answer: what the live service reports.
        let body = r#"{"messages":[{"role":"user","content":"Hello"}],"max_tokens":10}"#;
        assert_eq!(of(Api::ChatCompletions, "gpt-4o", body), (8, 10));
    }

    #[test]
    fn all_three_names_of_the_output_limit_count_and_n_multiplies() {
        for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            let body = format!(r#"{{"messages":[],"{name}":7,"n":3}}"#);
            assert_eq!(of(Api::ChatCompletions, "gpt-4o", &body).1, 21, "{name}");
        }
        assert_eq!(of(Api::Responses, "m", r#"{"input":"x"}"#).1, DEFAULT_MAX_OUTPUT);
    }

    #[test]
    fn japanese_text_is_counted_by_the_models_own_encoding() {
        let body = r#"{"input":"吾輩は猫である。名前はまだ無い。"}"#;
        // Counted with js-tiktoken, which ships the published tables.
        let o200k = of(Api::Embeddings, "gpt-4.1", body).0;
        let cl100k = of(Api::Embeddings, "text-embedding-3-small", body).0;
        assert_eq!((o200k, cl100k), (14, 21));
    }

    #[test]
    fn embeddings_have_no_output_and_count_every_input() {
        let body = r#"{"input":["one two","three",[1,2,3]]}"#;
        assert_eq!(of(Api::Embeddings, "text-embedding-3-large", body), (6, 0));
    }

    #[test]
    fn parts_and_pictures_count() {
        let body = r#"{"messages":[{"role":"user","content":[{"type":"text","text":"Hello"},
            {"type":"image_url","image_url":{"url":"data:","detail":"low"}}]}]}"#;
        assert_eq!(of(Api::ChatCompletions, "gpt-4o", body).0, 8 + 85);
    }

    #[test]
    fn responses_messages_count_like_chat_messages() {
        let body =
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"Hello"}]}]}"#;
        assert_eq!(of(Api::Responses, "gpt-4o", body).0, 3 + 1 + 1);
    }
}
