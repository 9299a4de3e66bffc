//! Request parsing: the bodies of the three APIs, read without copying them.
//!
//! Every request becomes one [`ApiRequest`]: its texts, its maximum output, and the hash that makes
//! it a distinct prompt in the ledger. Texts are borrowed from the body, so that a request costs
//! little more than counting its tokens. Neighbours: `wire` has the JSON shapes, `refusal` the
//! error responses, `service` does the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64_with_seed};

use super::embedding::EmbeddingParams;
use super::refusal::HttpRefusal;
use super::structured_output::StructuredOutput;
use super::wire::{
    ChatBody, EmbeddingInput, EmbeddingsBody, OneOrMany, ResponsesBody, WireMessage, WirePart,
    WireText,
};

/// Maximum inputs of one embeddings request, and messages of one chat request.
const MAX_ITEMS: usize = 2_048;

/// Tokens of a message: three of framing and one for its role; the answer's opening costs three
/// more (the cookbook's published formula).
const MESSAGE_TOKENS: u32 = 4;
const OPENING_TOKENS: u32 = 3;

/// Tokens of a low-detail image. Others cost by their size, which is not checked here.
const IMAGE_TOKENS: u32 = 85;

/// Bytes of the shortest cached prefix. Prompts share the cache when they begin with the same
/// 1,024 tokens; token positions are not kept, so four bytes stand for a token, in English as in
/// Japanese.
const PREFIX_BYTES: usize = 4 * 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimulatedApi {
    Chat,
    Responses,
    Embeddings,
}

/// Parsed request: the parts that the service acts on.
#[derive(Debug)]
pub struct ApiRequest<'a> {
    pub api: SimulatedApi,
    /// Deployment named in the body; used if the URL names none.
    pub model: Option<Cow<'a, str>>,
    /// Hash of the API and the prompt, and of nothing else in the body.
    pub key: u64,
    texts: Vec<Cow<'a, str>>,
    /// Tokens that are not in the texts: framing, images, inputs that came as tokens.
    extra_tokens: u32,
    sample: usize,
    pub max_output: Option<u32>,
    pub choices: u32,
    pub stream: bool,
    pub include_usage: bool,
    /// True if the request asks for the flex tier; `None` if it names no tier.
    pub flex: Option<bool>,
    /// First parameter that reasoning models reject.
    pub not_for_reasoning: Option<&'static str>,
    pub embedding: Option<EmbeddingParams>,
    /// Raw `response_format`.
    pub response_format: Option<&'a str>,
    /// Structured output that `response_format` requires.
    pub structured_output: Option<StructuredOutput>,
}

impl<'a> ApiRequest<'a> {
    pub fn parse(api: SimulatedApi, body: &'a [u8]) -> Result<Self, HttpRefusal> {
        let body = simdutf8::basic::from_utf8(body)
            .map_err(|_| HttpRefusal::invalid("The body is not UTF-8.", None))?;
        match api {
            SimulatedApi::Chat => parse_chat(read(body)?),
            SimulatedApi::Responses => parse_responses(read(body)?),
            SimulatedApi::Embeddings => parse_embeddings(read(body)?),
        }
    }

    fn new(api: SimulatedApi) -> Self {
        Self {
            api,
            model: None,
            key: xxh3_64_with_seed(&[], api as u64),
            texts: Vec::new(),
            extra_tokens: 0,
            sample: 0,
            max_output: None,
            choices: 1,
            stream: false,
            include_usage: false,
            flex: None,
            not_for_reasoning: None,
            embedding: None,
            response_format: None,
            structured_output: None,
        }
    }

    pub fn count_tokens(&self, count: impl Fn(&str) -> usize) -> u32 {
        let texts: usize = self.texts.iter().map(|text| count(text)).sum();
        u32::try_from(texts).unwrap_or(u32::MAX).saturating_add(self.extra_tokens)
    }

    pub fn contains(&self, trigger: &str) -> bool {
        !trigger.is_empty() && self.texts.iter().any(|text| text.contains(trigger))
    }

    /// Returns the text by which people recognise the prompt: the user's last one.
    pub fn sample(&self) -> &str {
        self.texts.get(self.sample).map_or("", |text| text)
    }

    /// Returns hashes of the prompt's prefixes of 1,024, 2,048, 4,096 tokens and so on: enough to
    /// find how much of it was seen before, and few even for the longest prompt.
    pub fn prefix_hashes(&self) -> Vec<u64> {
        let mut hasher = Xxh3Default::new();
        let (mut hashes, mut done, mut goal) = (Vec::new(), 0, PREFIX_BYTES);
        for text in &self.texts {
            let mut rest = text.as_bytes();
            while done + rest.len() >= goal {
                let (head, tail) = rest.split_at(goal - done);
                hasher.update(head);
                hashes.push(hasher.digest());
                (rest, done, goal) = (tail, goal, goal * 2);
            }
            hasher.update(rest);
            done += rest.len();
        }
        hashes
    }

    fn hash(&mut self, bytes: &[u8]) {
        self.key = xxh3_64_with_seed(bytes, self.key);
    }

    fn add_text(&mut self, text: Cow<'a, str>) {
        self.hash(text.as_bytes());
        self.texts.push(text);
    }

    /// Adds an input that came as tokens and returns the hash of it alone.
    fn add_tokens(&mut self, tokens: &[u32]) -> u64 {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        self.extra_tokens += tokens.len() as u32;
        self.hash(&bytes);
        xxh3_64_with_seed(&bytes, 1)
    }

    fn add_content(&mut self, content: OneOrMany<'a, WirePart<'a>>) {
        match content {
            OneOrMany::One(text) => self.add_text(text),
            OneOrMany::Many(parts) => {
                for part in parts {
                    if let Some(WireText(text)) = part.text {
                        self.add_text(text);
                    }
                    if let Some(image) = part.image_url {
                        self.hash(image.get().as_bytes());
                        self.extra_tokens += IMAGE_TOKENS;
                    }
                }
            }
        }
    }

    fn add_message(&mut self, message: WireMessage<'a>) {
        self.extra_tokens += MESSAGE_TOKENS;
        if let Some(WireText(role)) = &message.role {
            self.hash(role.as_bytes());
        }
        if let Some(WireText(name)) = message.name {
            self.extra_tokens += 1;
            self.add_text(name);
        }
        let before = self.texts.len();
        if let Some(content) = message.content {
            self.add_content(content);
        }
        let is_user = message.role.as_ref().is_none_or(|WireText(role)| role == "user");
        if is_user && self.texts.len() > before {
            self.sample = self.texts.len() - 1;
        }
        for raw in [message.tool_calls, message.output].into_iter().flatten() {
            self.add_text(Cow::Borrowed(raw.get()));
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, HttpRefusal> {
    serde_json::from_str(body).map_err(|error| {
        HttpRefusal::invalid(
            &format!("We could not parse the JSON body of your request: {error}"),
            None,
        )
    })
}

fn parse_chat(body: ChatBody<'_>) -> Result<ApiRequest<'_>, HttpRefusal> {
    let not_for_reasoning = body.not_for_reasoning();
    let Some(messages) = body.messages else {
        return Err(HttpRefusal::invalid(
            "Missing required parameter: 'messages'.",
            Some("messages"),
        ));
    };
    if messages.is_empty() || messages.len() > MAX_ITEMS {
        let text = "'messages' must hold 1 to 2048 messages.";
        return Err(HttpRefusal::invalid(text, Some("messages")));
    }
    let mut request = ApiRequest::new(SimulatedApi::Chat);
    request.not_for_reasoning = not_for_reasoning;
    request.response_format = body.response_format.map(RawValue::get);
    for message in messages {
        if message.role.is_none() {
            let text = "Missing required parameter: 'messages[].role'.";
            return Err(HttpRefusal::invalid(text, Some("messages")));
        }
        request.add_message(message);
    }
    request.extra_tokens += OPENING_TOKENS;
    if let Some(tools) = body.tools {
        request.add_text(Cow::Borrowed(tools.get()));
    }
    request.model = body.model.map(|WireText(model)| model);
    request.max_output = body.max_completion_tokens.or(body.max_tokens);
    request.choices = body.n.unwrap_or(1);
    request.flex = body.service_tier.map(|WireText(tier)| tier == "flex");
    request.stream = body.stream.unwrap_or(false);
    request.include_usage = body.stream_options.is_some_and(|o| o.include_usage.unwrap_or(false));
    if request.max_output == Some(0) {
        return Err(HttpRefusal::invalid("max_tokens must be at least 1.", Some("max_tokens")));
    }
    if !(1..=128).contains(&request.choices) {
        return Err(HttpRefusal::invalid("'n' must be from 1 to 128.", Some("n")));
    }
    Ok(request)
}

fn parse_responses(body: ResponsesBody<'_>) -> Result<ApiRequest<'_>, HttpRefusal> {
    let mut request = ApiRequest::new(SimulatedApi::Responses);
    request.extra_tokens = OPENING_TOKENS;
    if let Some(WireText(instructions)) = body.instructions {
        request.extra_tokens += MESSAGE_TOKENS;
        request.add_text(instructions);
    }
    match body.input {
        None => {
            return Err(HttpRefusal::invalid(
                "Missing required parameter: 'input'.",
                Some("input"),
            ));
        }
        Some(OneOrMany::One(text)) => {
            request.extra_tokens += MESSAGE_TOKENS;
            request.sample = request.texts.len();
            request.add_text(text);
        }
        Some(OneOrMany::Many(items)) => {
            items.into_iter().for_each(|item| request.add_message(item));
        }
    }
    if let Some(tools) = body.tools {
        request.add_text(Cow::Borrowed(tools.get()));
    }
    request.model = body.model.map(|WireText(model)| model);
    request.max_output = body.max_output_tokens;
    request.flex = body.service_tier.map(|WireText(tier)| tier == "flex");
    request.stream = body.stream.unwrap_or(false);
    if request.max_output.is_some_and(|max| max < 16) {
        let text = "'max_output_tokens' must be at least 16.";
        return Err(HttpRefusal::invalid(text, Some("max_output_tokens")));
    }
    Ok(request)
}

fn parse_embeddings(body: EmbeddingsBody<'_>) -> Result<ApiRequest<'_>, HttpRefusal> {
    let Some(input) = body.input else {
        return Err(HttpRefusal::invalid("Missing required parameter: 'input'.", Some("input")));
    };
    let inputs = match input {
        OneOrMany::One(text) => vec![EmbeddingInput::Text(text)],
        OneOrMany::Many(inputs) => inputs,
    };
    let format = body.encoding_format.as_ref().map(|WireText(format)| format.as_ref());
    let mut embedding = EmbeddingParams::new(body.dimensions, format)?;
    let mut request = ApiRequest::new(SimulatedApi::Embeddings);
    let mut single = Vec::new();
    for input in inputs {
        match input {
            EmbeddingInput::Text(text) if text.is_empty() => {
                return Err(HttpRefusal::invalid(
                    "'input' can't hold an empty text.",
                    Some("input"),
                ));
            }
            EmbeddingInput::Text(text) => {
                embedding.inputs.push(xxh3_64_with_seed(text.as_bytes(), 0));
                request.add_text(text);
            }
            EmbeddingInput::Tokens(tokens) => embedding.inputs.push(request.add_tokens(&tokens)),
            EmbeddingInput::Token(token) => single.push(token),
        }
    }
    if !single.is_empty() {
        embedding.inputs.push(request.add_tokens(&single));
    }
    if !(1..=MAX_ITEMS).contains(&embedding.inputs.len()) {
        return Err(HttpRefusal::invalid("'input' must hold 1 to 2048 inputs.", Some("input")));
    }
    request.model = body.model.map(|WireText(model)| model);
    request.embedding = Some(embedding);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> ApiRequest<'_> {
        ApiRequest::parse(SimulatedApi::Chat, body.as_bytes()).unwrap()
    }

    #[test]
    fn the_same_prompt_is_the_same_whatever_else_the_body_says() {
        let plain = chat(r#"{"model":"a","messages":[{"role":"user","content":"hi"}]}"#);
        let other = chat(
            r#"{ "messages": [{"content":"\u0068i","role":"user"}], "stream":true, "max_tokens":9}"#,
        );
        assert_eq!(plain.key, other.key);
        let system = chat(r#"{"messages":[{"role":"system","content":"hi"}]}"#);
        assert_ne!(plain.key, system.key, "another role is another prompt");
        let body = br#"{"input":"hi"}"#;
        let responses = ApiRequest::parse(SimulatedApi::Responses, body).unwrap();
        assert_ne!(plain.key, responses.key, "another API is another prompt");
    }

    #[test]
    fn tokens_are_counted_by_the_published_formula() {
        let words = |text: &str| text.split(' ').count();
        let ask = chat(
            r#"{"messages":[{"role":"system","content":"be brief"},
                {"role":"user","name":"ann","content":[{"type":"text","text":"one two three"},
                 {"type":"image_url","image_url":{"url":"data:"}}]}]}"#,
        );
        assert_eq!(ask.count_tokens(words), 4 + 2 + 4 + 1 + 1 + 3 + IMAGE_TOKENS + 3);
        assert_eq!(ask.sample(), "one two three");
    }

    #[test]
    fn a_long_shared_beginning_is_recognised() {
        let long = "word ".repeat(2_000);
        let ask = |tail: &str| {
            let body = format!(
                r#"{{"messages":[{{"role":"system","content":"{long}"}},
                    {{"role":"user","content":"{tail}"}}]}}"#
            );
            ApiRequest::parse(SimulatedApi::Chat, body.as_bytes()).unwrap().prefix_hashes()
        };
        assert_eq!(ask("one").len(), 2, "4,096 and 8,192 of some 10,000 bytes");
        assert_eq!(ask("one"), ask("two"));
    }

    #[test]
    fn responses_take_a_text_or_items() {
        let text = br#"{"model":"m","instructions":"be brief","input":"hi"}"#;
        let items = br#"{"model":"m","input":[{"role":"user","content":
            [{"type":"input_text","text":"hi"}]},
            {"type":"function_call_output","call_id":"c","output":"42"}]}"#;
        assert_eq!(ApiRequest::parse(SimulatedApi::Responses, text).unwrap().sample(), "hi");
        assert_eq!(ApiRequest::parse(SimulatedApi::Responses, items).unwrap().sample(), "hi");
    }

    #[test]
    fn embeddings_take_texts_and_tokens() {
        for (input, inputs, tokens) in
            [(r#""a b""#, 1, 2), (r#"["a","b c"]"#, 2, 3), ("[1,2,3]", 1, 3), ("[[1],[2,3]]", 2, 3)]
        {
            let body = format!(r#"{{"model":"m","input":{input}}}"#);
            let ask = ApiRequest::parse(SimulatedApi::Embeddings, body.as_bytes()).unwrap();
            assert_eq!(ask.count_tokens(|text| text.split(' ').count()), tokens, "{input}");
            assert_eq!(ask.embedding.unwrap().inputs.len(), inputs, "{input}");
        }
    }

    #[test]
    fn what_no_model_could_answer_is_refused() {
        for (api, body) in [
            (SimulatedApi::Chat, "{"),
            (SimulatedApi::Chat, "{}"),
            (SimulatedApi::Chat, r#"{"messages":[]}"#),
            (SimulatedApi::Chat, r#"{"messages":"hi"}"#),
            (SimulatedApi::Chat, r#"{"messages":[{"content":"hi"}]}"#),
            (SimulatedApi::Chat, r#"{"messages":[{"role":"user","content":"hi"}],"n":0}"#),
            (SimulatedApi::Chat, r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":0}"#),
            (SimulatedApi::Responses, "{}"),
            (SimulatedApi::Embeddings, "{}"),
            (SimulatedApi::Embeddings, r#"{"input":[]}"#),
            (SimulatedApi::Embeddings, r#"{"input":""}"#),
            (SimulatedApi::Embeddings, r#"{"input":"a","dimensions":0}"#),
            (SimulatedApi::Embeddings, r#"{"input":"a","encoding_format":"hex"}"#),
        ] {
            let refusal = ApiRequest::parse(api, body.as_bytes()).unwrap_err();
            assert_eq!(refusal.status.as_u16(), 400, "{body}");
        }
    }
}
