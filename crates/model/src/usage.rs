//! Usage that an answer reports, read leniently: it is never a reason to lose the answer.
//!
//! Chat and embeddings say prompt and completion, Responses says input and output, and gateways say
//! both, or write null, floats, text or negative numbers (GenAIComps#926, aisix#474,
//! async-openai#61). What can't be a count is unknown, which is not the same as 0.

use serde_json::value::RawValue;

use super::lenient::{object, raw_fields, text};
use domain::job::Api;
use domain::outcome::TokenUsage;

/// Largest count that is believed. No model's context comes near it; sums of a billion such counts
/// still fit every store's numbers.
const LARGEST_COUNT: u64 = 1_000_000_000;

raw_fields!(
    /// Usage in both spellings.
    UsageFields {
        prompt_tokens,
        input_tokens,
        completion_tokens,
        output_tokens,
        total_tokens,
        prompt_tokens_details,
        input_tokens_details,
        completion_tokens_details,
        output_tokens_details,
    }
);

raw_fields!(
    /// Parts of the prompt's and of the completion's tokens.
    DetailFields { cached_tokens, reasoning_tokens }
);

/// Reads the usage of an answer of this API. An answer that does not say all of it counts among
/// the unreported.
pub(super) fn read(api: Api, usage: Option<&RawValue>) -> TokenUsage {
    let fields: UsageFields<'_> = object(usage);
    let either = |one, other| greater(count(one), count(other));
    let total = count(fields.total_tokens);
    let prompt = either(fields.prompt_tokens, fields.input_tokens);
    let completion = either(fields.completion_tokens, fields.output_tokens);
    // An embedding has no completion.
    let completion = completion.or((api == Api::Embeddings).then_some(0));
    let rest = |known: Option<u64>| Some(total?.saturating_sub(known?));
    let (prompt, completion) = (prompt.or(rest(completion)), completion.or(rest(prompt)));
    let detail = |one, other, field: fn(DetailFields<'_>) -> Option<u64>| {
        greater(field(object(one)), field(object(other))).unwrap_or(0)
    };
    let cached = detail(fields.prompt_tokens_details, fields.input_tokens_details, |d| {
        count(d.cached_tokens)
    });
    let reasoning = detail(fields.completion_tokens_details, fields.output_tokens_details, |d| {
        count(d.reasoning_tokens)
    });
    // No call takes no tokens at all: zeros stand where a gateway knows nothing.
    let is_whole = prompt.is_some() && completion.is_some() && prompt.max(completion) > Some(0);
    let (prompt, completion) = (prompt.unwrap_or(0), completion.unwrap_or(0));
    TokenUsage {
        prompt,
        cached: cached.min(prompt),
        completion,
        reasoning: reasoning.min(completion),
        unreported: u64::from(!is_whole),
    }
}

fn greater(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.max(other)
}

/// Reads a count: a number or its text. A fraction is rounded up.
fn count(value: Option<&RawValue>) -> Option<u64> {
    let written = text(value);
    let written = written.as_deref().or(value.map(RawValue::get))?.trim();
    let count = match written.parse::<u64>() {
        Ok(count) => count,
        Err(_) => {
            let number = written.parse::<f64>().ok().filter(|n| *n >= 0.0 && n.is_finite())?;
            // Saturates, and is then too large to be believed.
            number.ceil() as u64
        }
    };
    (count <= LARGEST_COUNT).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(json: &str) -> TokenUsage {
        let value: Box<RawValue> = serde_json::from_str(json).unwrap();
        read(Api::ChatCompletions, Some(&value))
    }

    fn whole(prompt: u64, completion: u64) -> TokenUsage {
        TokenUsage { prompt, completion, ..TokenUsage::default() }
    }

    #[test]
    fn every_spelling_of_the_same_counts_is_read() {
        for json in [
            r#"{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}"#,
            r#"{"input_tokens":12,"output_tokens":3}"#,
            r#"{"prompt_tokens":12,"completion_tokens":3,"input_tokens":12,"output_tokens":3}"#,
            r#"{"prompt_tokens":12.0,"completion_tokens":3.0}"#,
            r#"{"prompt_tokens":"12","completion_tokens":" 3 "}"#,
            r#"{"prompt_tokens":12,"completion_tokens":3,"prompt_tokens_details":[]}"#,
            r#"{"prompt_tokens":0,"completion_tokens":0,"input_tokens":12,"output_tokens":3}"#,
            r#"{"prompt_tokens":12,"completion_tokens":3,"prompt_tokens":12}"#,
            r#"{"prompt_tokens":12,"total_tokens":15}"#,
            r#"{"prompt_tokens":12,"completion_tokens":2.5}"#,
        ] {
            assert_eq!(usage(json), whole(12, 3), "{json}");
        }
    }

    #[test]
    fn details_are_parts_of_their_wholes() {
        let read = usage(
            r#"{"prompt_tokens":20,"completion_tokens":9,
                "prompt_tokens_details":{"cached_tokens":4.0,"audio_tokens":null},
                "completion_tokens_details":{"reasoning_tokens":500}}"#,
        );
        let expected =
            TokenUsage { prompt: 20, cached: 4, completion: 9, reasoning: 9, unreported: 0 };
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_no_count_is_unknown_and_not_nothing() {
        for json in [
            "{}",
            "[1,2]",
            "7",
            r#"{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}"#,
            r#""many""#,
            r#"{"total_tokens":15}"#,
            r#"{"prompt_tokens":-1,"completion_tokens":-1}"#,
            r#"{"prompt_tokens":9223372036854775808,"completion_tokens":1e300}"#,
            r#"{"prompt_tokens":99999999999999999999999999,"completion_tokens":3}"#,
            r#"{"prompt_tokens":[],"completion_tokens":{}}"#,
        ] {
            assert_eq!(usage(json).unreported, 1, "{json}");
        }
        let part = usage(r#"{"prompt_tokens":12,"completion_tokens":null,"total_tokens":null}"#);
        assert_eq!((part.prompt, part.unreported), (12, 1), "what is known is kept");
        assert_eq!(read(Api::ChatCompletions, None).unreported, 1);
    }

    #[test]
    fn an_embedding_has_no_completion_to_report() {
        let value: Box<RawValue> = serde_json::from_str(r#"{"prompt_tokens":7}"#).unwrap();
        assert_eq!(read(Api::Embeddings, Some(&value)), whole(7, 0));
    }
}
