//! The prompt of a request: messages, their parts, and what stands around them.

use serde_json::value::RawValue;

use super::fields::{JsonObject, RequestFields, items, text};
use super::image::PictureRate;
use super::media::{audio_tokens, file_tokens};
use super::tools::{FunctionCounter, compact};
use domain::job::Api;

/// Tokens around every chat message and before the answer, as OpenAI's cookbook counts them.
const PER_MESSAGE: usize = 3;
const PER_REPLY: usize = 3;
const PER_NAME: usize = 1;

/// Counts prompts for one model.
pub(super) struct PromptCounter {
    encoding: &'static bpe_openai::Tokenizer,
    pictures: PictureRate,
    around_function: usize,
}

impl PromptCounter {
    /// Takes the model's encoding, by the names OpenAI's tokenizer maps to it. Deployments can have any
    /// name: unknown ones are taken for current models.
    pub(super) fn new(model: &str) -> Self {
        const CL100K: [&str; 4] = ["gpt-4", "gpt-35", "gpt-3.5", "text-embedding"];
        const O200K: [&str; 3] = ["gpt-4o", "gpt-4.", "gpt-4-o"];
        let model = model.to_ascii_lowercase();
        let starts = |names: &[&str]| names.iter().any(|name| model.starts_with(name));
        let is_old = starts(&CL100K) && !starts(&O200K);
        Self {
            encoding: if is_old { bpe_openai::cl100k_base() } else { bpe_openai::o200k_base() },
            pictures: PictureRate::of(&model),
            around_function: if is_old { 10 } else { 7 },
        }
    }

    /// Counts a request.
    pub(super) fn request(&self, api: Api, fields: &RequestFields<'_>) -> usize {
        let prompt = match api {
            Api::ChatCompletions => {
                let messages = fields.messages.map_or_else(Vec::new, items);
                PER_REPLY + messages.into_iter().map(|m| self.message(m)).sum::<usize>()
            }
            Api::Responses | Api::Embeddings => fields.input.map_or(0, |input| self.value(input)),
        };
        let count = |text: &str| self.count(text);
        let functions = FunctionCounter { count: &count, around: self.around_function };
        let tools = fields.tools.into_iter().chain(fields.functions);
        let tools: usize = tools.map(|list| functions.tools(list)).sum();
        let format = fields.response_format.and_then(|raw| JsonObject::read(raw.get()));
        let nested = fields.text.and_then(|raw| JsonObject::read(raw.get())?.object("format"));
        let format = format.or(nested).map_or(0, |format| functions.format(&format));
        prompt + fields.instructions.map_or(0, |said| self.value(said)) + tools + format
    }

    fn count(&self, text: &str) -> usize {
        self.encoding.count(text)
    }

    /// Counts a message of a chat.
    fn message(&self, raw: &RawValue) -> usize {
        let Some(message) = JsonObject::read(raw.get()) else { return 0 };
        let role = message.text("role").map_or(0, |role| match role.as_ref() {
            // The usual roles are one token in every encoding.
            "system" | "user" | "assistant" | "developer" | "tool" => 1,
            other => self.count(other),
        });
        let name = message.text("name").map_or(0, |name| PER_NAME + self.count(&name));
        let content = message.get("content").map_or(0, |content| self.value(content));
        let calls = message.get("tool_calls").map_or_else(Vec::new, items);
        let calls: usize = calls.into_iter().map(|call| self.call(call)).sum();
        PER_MESSAGE + role + name + content + calls
    }

    /// Counts a call of a function: its name and its arguments, which are a text of JSON.
    fn call(&self, raw: &RawValue) -> usize {
        let Some(call) = JsonObject::read(raw.get()) else { return 0 };
        let nested = call.object("function");
        let function = nested.as_ref().unwrap_or(&call);
        let text = |name| function.text(name).map_or(0, |text| self.count(&text));
        PER_MESSAGE + text("name") + text("arguments")
    }

    /// Counts a JSON value: a text, a list of texts, token numbers, parts or messages.
    fn value(&self, raw: &RawValue) -> usize {
        match raw.get().as_bytes().first() {
            Some(b'"') => text(raw).map_or(0, |text| self.count(&text)),
            Some(b'[') => items(raw).into_iter().map(|item| self.item(item)).sum(),
            Some(b'{') => self.item(raw),
            Some(b'n') | None => 0,
            _ => self.count(raw.get()),
        }
    }

    fn item(&self, raw: &RawValue) -> usize {
        match raw.get().as_bytes().first() {
            Some(b'{') => JsonObject::read(raw.get()).map_or(0, |part| self.part(&part, raw)),
            // Embeddings accept ready-made token numbers too.
            Some(b'0'..=b'9') => 1,
            _ => self.value(raw),
        }
    }

    /// Counts a content part, or an item of a Responses input.
    fn part(&self, part: &JsonObject<'_>, raw: &RawValue) -> usize {
        match part.text("type").as_deref() {
            Some("image_url" | "input_image") => self.picture(part),
            Some("input_audio") => {
                part.object("input_audio").map_or(0, |audio| audio_tokens(&audio))
            }
            Some("file" | "input_file") => {
                let nested = part.object("file");
                let page = self.pictures.tokens(None, false);
                file_tokens(nested.as_ref().unwrap_or(part), page)
            }
            Some("function_call") => self.call(raw),
            Some("function_call_output") => {
                PER_MESSAGE + part.get("output").map_or(0, |output| self.value(output))
            }
            // Its text is packed and billed by the service as it sees fit.
            Some("reasoning") => part.get("summary").map_or(0, |summary| self.value(summary)),
            _ => self.text_part(part, raw),
        }
    }

    fn text_part(&self, part: &JsonObject<'_>, raw: &RawValue) -> usize {
        let text = part.get("text").or_else(|| part.get("refusal"));
        match (text, part.get("content")) {
            (Some(text), _) => self.value(text),
            (None, Some(content)) => {
                let message = if part.get("role").is_some() { PER_MESSAGE + 1 } else { 0 };
                message + self.value(content)
            }
            (None, None) => self.count(&compact(raw)),
        }
    }

    fn picture(&self, part: &JsonObject<'_>) -> usize {
        // Chat nests URL and detail, Responses does not.
        let nested = part.object("image_url");
        let url = nested.as_ref().map_or_else(|| part.text("image_url"), |image| image.text("url"));
        let detail = part.text("detail").or_else(|| nested.as_ref()?.text("detail"));
        self.pictures.tokens(url.as_deref(), detail.as_deref() == Some("low"))
    }
}
