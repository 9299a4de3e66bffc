//! What is asked: the bodies of the three APIs, read without copying them.
//!
//! Every request becomes one [`Ask`]: its texts, what it allows as output, and the hash that makes
//! it a distinct prompt in the ledger. Texts are borrowed from the body, so that a request costs
//! little more than counting its tokens. Neighbours: `wire` has the shapes as JSON, `refusal` words
//! what is wrong with a request, `service` does the rest.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64_with_seed};

use super::embedding::EmbeddingAsk;
use super::form::Form;
use super::refusal::Refusal;
use super::wire::{ChatBody, EmbeddingsBody, Input, Message, OneOrMany, Part, ResponsesBody, Text};

/// Inputs of one embeddings request, and messages of one chat request, that the service takes.
const MOST_ITEMS: usize = 2_048;

/// Each message costs three tokens of framing and one for its role; the answer's opening costs
/// three more (the cookbook's published formula).
const MESSAGE_TOKENS: u32 = 4;
const OPENING_TOKENS: u32 = 3;

/// A picture at low detail. What others cost depends on their size, which is not looked at here.
const IMAGE_TOKENS: u32 = 85;

/// Prompts share the cache when they begin with the same 1,024 tokens. Tokens are not kept by
/// place, so the beginning is measured in bytes: four to a token, in English as in Japanese.
const PREFIX_BYTES: usize = 4 * 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Chat,
    Responses,
    Embeddings,
}

/// One request, as far as the service cares.
#[derive(Debug)]
pub struct Ask<'a> {
    pub api: Api,
    /// The deployment named in the body, which counts on the URLs that name none.
    pub model: Option<Cow<'a, str>>,
    /// Hash of the API and the prompt, and of nothing else that the body says.
    pub key: u64,
    texts: Vec<Cow<'a, str>>,
    /// Tokens that are not in the texts: framing, pictures, inputs that came as tokens.
    more_tokens: u32,
    sample: usize,
    pub max_output: Option<u32>,
    pub choices: u32,
    pub stream: bool,
    pub include_usage: bool,
    /// Whether the request asks for the flex tier, if it says anything of tiers.
    pub flex: Option<bool>,
    /// The first parameter that reasoning models do not take.
    pub not_for_reasoning: Option<&'static str>,
    pub embedding: Option<EmbeddingAsk>,
    /// The `response_format`, as it stands.
    pub format: Option<&'a str>,
    /// What that makes of an answer.
    pub form: Option<Form>,
}

impl<'a> Ask<'a> {
    pub fn parse(api: Api, body: &'a [u8]) -> Result<Self, Refusal> {
        let body = simdutf8::basic::from_utf8(body)
            .map_err(|_| Refusal::invalid("The body is not UTF-8.", None))?;
        match api {
            Api::Chat => parse_chat(read(body)?),
            Api::Responses => parse_responses(read(body)?),
            Api::Embeddings => parse_embeddings(read(body)?),
        }
    }

    fn new(api: Api) -> Self {
        Self {
            api,
            model: None,
            key: xxh3_64_with_seed(&[], api as u64),
            texts: Vec::new(),
            more_tokens: 0,
            sample: 0,
            max_output: None,
            choices: 1,
            stream: false,
            include_usage: false,
            flex: None,
            not_for_reasoning: None,
            embedding: None,
            format: None,
            form: None,
        }
    }

    pub fn count_tokens(&self, count: impl Fn(&str) -> usize) -> u32 {
        let texts: usize = self.texts.iter().map(|text| count(text)).sum();
        u32::try_from(texts).unwrap_or(u32::MAX).saturating_add(self.more_tokens)
    }

    pub fn says(&self, trigger: &str) -> bool {
        !trigger.is_empty() && self.texts.iter().any(|text| text.contains(trigger))
    }

    /// The text that people would know the prompt by: the last thing the user said.
    pub fn sample(&self) -> &str {
        self.texts.get(self.sample).map_or("", |text| text)
    }

    /// Hashes of the prompt's beginnings, 1,024 tokens long, then 2,048, 4,096 and so on: enough
    /// to find how much of it was seen before, and few even for the longest prompt.
    pub fn beginnings(&self) -> Vec<u64> {
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

    /// Adds an input that came as tokens, and gives the hash of it alone.
    fn add_tokens(&mut self, tokens: &[u32]) -> u64 {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        self.more_tokens += tokens.len() as u32;
        self.hash(&bytes);
        xxh3_64_with_seed(&bytes, 1)
    }

    fn add_content(&mut self, content: OneOrMany<'a, Part<'a>>) {
        match content {
            OneOrMany::One(text) => self.add_text(text),
            OneOrMany::Many(parts) => {
                for part in parts {
                    if let Some(Text(text)) = part.text {
                        self.add_text(text);
                    }
                    if let Some(image) = part.image_url {
                        self.hash(image.get().as_bytes());
                        self.more_tokens += IMAGE_TOKENS;
                    }
                }
            }
        }
    }

    fn add_message(&mut self, message: Message<'a>) {
        self.more_tokens += MESSAGE_TOKENS;
        if let Some(Text(role)) = &message.role {
            self.hash(role.as_bytes());
        }
        if let Some(Text(name)) = message.name {
            self.more_tokens += 1;
            self.add_text(name);
        }
        let before = self.texts.len();
        if let Some(content) = message.content {
            self.add_content(content);
        }
        let is_user = message.role.as_ref().is_none_or(|Text(role)| role == "user");
        if is_user && self.texts.len() > before {
            self.sample = self.texts.len() - 1;
        }
        for raw in [message.tool_calls, message.output].into_iter().flatten() {
            self.add_text(Cow::Borrowed(raw.get()));
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a str) -> Result<T, Refusal> {
    serde_json::from_str(body).map_err(|error| {
        Refusal::invalid(
            &format!("We could not parse the JSON body of your request: {error}"),
            None,
        )
    })
}

fn parse_chat(body: ChatBody<'_>) -> Result<Ask<'_>, Refusal> {
    let not_for_reasoning = body.not_for_reasoning();
    let Some(messages) = body.messages else {
        return Err(Refusal::invalid("Missing required parameter: 'messages'.", Some("messages")));
    };
    if messages.is_empty() || messages.len() > MOST_ITEMS {
        let text = "'messages' must hold 1 to 2048 messages.";
        return Err(Refusal::invalid(text, Some("messages")));
    }
    let mut ask = Ask::new(Api::Chat);
    ask.not_for_reasoning = not_for_reasoning;
    ask.format = body.response_format.map(RawValue::get);
    for message in messages {
        if message.role.is_none() {
            let text = "Missing required parameter: 'messages[].role'.";
            return Err(Refusal::invalid(text, Some("messages")));
        }
        ask.add_message(message);
    }
    ask.more_tokens += OPENING_TOKENS;
    if let Some(tools) = body.tools {
        ask.add_text(Cow::Borrowed(tools.get()));
    }
    ask.model = body.model.map(|Text(model)| model);
    ask.max_output = body.max_completion_tokens.or(body.max_tokens);
    ask.choices = body.n.unwrap_or(1);
    ask.flex = body.service_tier.map(|Text(tier)| tier == "flex");
    ask.stream = body.stream.unwrap_or(false);
    ask.include_usage = body.stream_options.is_some_and(|o| o.include_usage.unwrap_or(false));
    if ask.max_output == Some(0) {
        return Err(Refusal::invalid("max_tokens must be at least 1.", Some("max_tokens")));
    }
    if !(1..=128).contains(&ask.choices) {
        return Err(Refusal::invalid("'n' must be from 1 to 128.", Some("n")));
    }
    Ok(ask)
}

fn parse_responses(body: ResponsesBody<'_>) -> Result<Ask<'_>, Refusal> {
    let mut ask = Ask::new(Api::Responses);
    ask.more_tokens = OPENING_TOKENS;
    if let Some(Text(instructions)) = body.instructions {
        ask.more_tokens += MESSAGE_TOKENS;
        ask.add_text(instructions);
    }
    match body.input {
        None => {
            return Err(Refusal::invalid("Missing required parameter: 'input'.", Some("input")));
        }
        Some(OneOrMany::One(text)) => {
            ask.more_tokens += MESSAGE_TOKENS;
            ask.sample = ask.texts.len();
            ask.add_text(text);
        }
        Some(OneOrMany::Many(items)) => {
            items.into_iter().for_each(|item| ask.add_message(item));
        }
    }
    if let Some(tools) = body.tools {
        ask.add_text(Cow::Borrowed(tools.get()));
    }
    ask.model = body.model.map(|Text(model)| model);
    ask.max_output = body.max_output_tokens;
    ask.flex = body.service_tier.map(|Text(tier)| tier == "flex");
    ask.stream = body.stream.unwrap_or(false);
    if ask.max_output.is_some_and(|max| max < 16) {
        let text = "'max_output_tokens' must be at least 16.";
        return Err(Refusal::invalid(text, Some("max_output_tokens")));
    }
    Ok(ask)
}

fn parse_embeddings(body: EmbeddingsBody<'_>) -> Result<Ask<'_>, Refusal> {
    let Some(input) = body.input else {
        return Err(Refusal::invalid("Missing required parameter: 'input'.", Some("input")));
    };
    let inputs = match input {
        OneOrMany::One(text) => vec![Input::Text(text)],
        OneOrMany::Many(inputs) => inputs,
    };
    let format = body.encoding_format.as_ref().map(|Text(format)| format.as_ref());
    let mut embedding = EmbeddingAsk::new(body.dimensions, format)?;
    let mut ask = Ask::new(Api::Embeddings);
    let mut single = Vec::new();
    for input in inputs {
        match input {
            Input::Text(text) if text.is_empty() => {
                return Err(Refusal::invalid("'input' can't hold an empty text.", Some("input")));
            }
            Input::Text(text) => {
                embedding.inputs.push(xxh3_64_with_seed(text.as_bytes(), 0));
                ask.add_text(text);
            }
            Input::Tokens(tokens) => embedding.inputs.push(ask.add_tokens(&tokens)),
            Input::Token(token) => single.push(token),
        }
    }
    if !single.is_empty() {
        embedding.inputs.push(ask.add_tokens(&single));
    }
    if !(1..=MOST_ITEMS).contains(&embedding.inputs.len()) {
        return Err(Refusal::invalid("'input' must hold 1 to 2048 inputs.", Some("input")));
    }
    ask.model = body.model.map(|Text(model)| model);
    ask.embedding = Some(embedding);
    Ok(ask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> Ask<'_> {
        Ask::parse(Api::Chat, body.as_bytes()).unwrap()
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
        let responses = Ask::parse(Api::Responses, body).unwrap();
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
            Ask::parse(Api::Chat, body.as_bytes()).unwrap().beginnings()
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
        assert_eq!(Ask::parse(Api::Responses, text).unwrap().sample(), "hi");
        assert_eq!(Ask::parse(Api::Responses, items).unwrap().sample(), "hi");
    }

    #[test]
    fn embeddings_take_texts_and_tokens() {
        for (input, inputs, tokens) in
            [(r#""a b""#, 1, 2), (r#"["a","b c"]"#, 2, 3), ("[1,2,3]", 1, 3), ("[[1],[2,3]]", 2, 3)]
        {
            let body = format!(r#"{{"model":"m","input":{input}}}"#);
            let ask = Ask::parse(Api::Embeddings, body.as_bytes()).unwrap();
            assert_eq!(ask.count_tokens(|text| text.split(' ').count()), tokens, "{input}");
            assert_eq!(ask.embedding.unwrap().inputs.len(), inputs, "{input}");
        }
    }

    #[test]
    fn what_no_model_could_answer_is_refused() {
        for (api, body) in [
            (Api::Chat, "{"),
            (Api::Chat, "{}"),
            (Api::Chat, r#"{"messages":[]}"#),
            (Api::Chat, r#"{"messages":"hi"}"#),
            (Api::Chat, r#"{"messages":[{"content":"hi"}]}"#),
            (Api::Chat, r#"{"messages":[{"role":"user","content":"hi"}],"n":0}"#),
            (Api::Chat, r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":0}"#),
            (Api::Responses, "{}"),
            (Api::Embeddings, "{}"),
            (Api::Embeddings, r#"{"input":[]}"#),
            (Api::Embeddings, r#"{"input":""}"#),
            (Api::Embeddings, r#"{"input":"a","dimensions":0}"#),
            (Api::Embeddings, r#"{"input":"a","encoding_format":"hex"}"#),
        ] {
            let refusal = Ask::parse(api, body.as_bytes()).unwrap_err();
            assert_eq!(refusal.status.as_u16(), 400, "{body}");
        }
    }
}
