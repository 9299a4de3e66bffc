//! Request bodies of the three APIs as they come over the wire.
//!
//! Only shapes: fields that the simulator acts on, all optional, so that a missing one gets the
//! service's error message instead of the parser's. Unknown fields pass, as they do at the service.
//! Neighbour: `request` turns any of them into an `ApiRequest`.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// String borrowed from the body if it has no escapes, also inside `Option` and `Vec`, where a
/// bare `Cow` would be copied.
#[derive(Debug, Deserialize)]
pub struct WireText<'a>(#[serde(borrow)] pub Cow<'a, str>);

#[derive(Deserialize)]
pub struct ChatBody<'a> {
    #[serde(borrow)]
    pub model: Option<WireText<'a>>,
    #[serde(borrow)]
    pub messages: Option<Vec<WireMessage<'a>>>,
    #[serde(borrow)]
    pub tools: Option<&'a RawValue>,
    pub max_tokens: Option<u32>,
    pub max_completion_tokens: Option<u32>,
    #[serde(borrow)]
    pub service_tier: Option<WireText<'a>>,
    pub n: Option<u32>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    #[serde(borrow)]
    pub response_format: Option<&'a RawValue>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    logprobs: Option<bool>,
    logit_bias: Option<IgnoredAny>,
}

impl ChatBody<'_> {
    /// Returns the first parameter that reasoning models reject. They accept a parameter that has
    /// its default value.
    pub fn not_for_reasoning(&self) -> Option<&'static str> {
        let set = |value: Option<f64>, default: f64| value.is_some_and(|value| value != default);
        [
            (self.max_tokens.is_some(), "max_tokens"),
            (set(self.temperature, 1.0), "temperature"),
            (set(self.top_p, 1.0), "top_p"),
            (set(self.presence_penalty, 0.0), "presence_penalty"),
            (set(self.frequency_penalty, 0.0), "frequency_penalty"),
            (self.logprobs == Some(true), "logprobs"),
            (self.logit_bias.is_some(), "logit_bias"),
        ]
        .into_iter()
        .find_map(|(is_set, name)| is_set.then_some(name))
    }
}

#[derive(Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// A chat message, or an item of a Responses input.
#[derive(Deserialize)]
pub struct WireMessage<'a> {
    #[serde(borrow)]
    pub role: Option<WireText<'a>>,
    #[serde(borrow)]
    pub name: Option<WireText<'a>>,
    #[serde(borrow)]
    pub content: Option<OneOrMany<'a, WirePart<'a>>>,
    #[serde(borrow)]
    pub tool_calls: Option<&'a RawValue>,
    /// Tool output, in a Responses input.
    #[serde(borrow)]
    pub output: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub struct WirePart<'a> {
    #[serde(borrow)]
    pub text: Option<WireText<'a>>,
    #[serde(borrow)]
    pub image_url: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub struct ResponsesBody<'a> {
    #[serde(borrow)]
    pub model: Option<WireText<'a>>,
    #[serde(borrow)]
    pub input: Option<OneOrMany<'a, WireMessage<'a>>>,
    #[serde(borrow)]
    pub instructions: Option<WireText<'a>>,
    #[serde(borrow)]
    pub tools: Option<&'a RawValue>,
    pub max_output_tokens: Option<u32>,
    #[serde(borrow)]
    pub service_tier: Option<WireText<'a>>,
    pub stream: Option<bool>,
}

#[derive(Deserialize)]
pub struct EmbeddingsBody<'a> {
    #[serde(borrow)]
    pub model: Option<WireText<'a>>,
    #[serde(borrow)]
    pub input: Option<OneOrMany<'a, EmbeddingInput<'a>>>,
    pub dimensions: Option<u32>,
    #[serde(borrow)]
    pub encoding_format: Option<WireText<'a>>,
}

/// A string, or a list: the shape of every prompt field of the three APIs.
pub enum OneOrMany<'a, T> {
    One(Cow<'a, str>),
    Many(Vec<T>),
}

impl<'de: 'a, 'a, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<'a, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor<'a, T>(PhantomData<OneOrMany<'a, T>>);

        impl<'de: 'a, 'a, T: Deserialize<'de>> Visitor<'de> for OneOrManyVisitor<'a, T> {
            type Value = OneOrMany<'a, T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(OneOrMany::One(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(OneOrMany::One(Cow::Owned(text.to_owned())))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany::Many(items))
            }
        }

        deserializer.deserialize_any(OneOrManyVisitor(PhantomData))
    }
}

/// One input to embed, as an element of the list.
pub enum EmbeddingInput<'a> {
    Text(Cow<'a, str>),
    Tokens(Vec<u32>),
    /// One token of an input that is itself the list.
    Token(u32),
}

impl<'de: 'a, 'a> Deserialize<'de> for EmbeddingInput<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EmbeddingInputVisitor<'a>(PhantomData<EmbeddingInput<'a>>);

        impl<'de: 'a, 'a> Visitor<'de> for EmbeddingInputVisitor<'a> {
            type Value = EmbeddingInput<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token or a list of tokens")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(EmbeddingInput::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(EmbeddingInput::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<Self::Value, E> {
                u32::try_from(token).map(EmbeddingInput::Token).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = list.next_element()? {
                    tokens.push(token);
                }
                Ok(EmbeddingInput::Tokens(tokens))
            }
        }

        deserializer.deserialize_any(EmbeddingInputVisitor(PhantomData))
    }
}
