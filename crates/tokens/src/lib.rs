//! Token estimate: what the service will book for a request, prompt tokens plus the longest answer.
//!
//! Azure OpenAI books an estimate when a request arrives, long before it knows the answer's length
//! (Azure docs: "quota", the limiter's model). Text is counted with the model's own tokenizer, tools by
//! the figures of OpenAI's cookbook, pictures by the published formulas for the model's family. Audio
//! and documents are estimated from their size. docs/counting.md has the rules and their sources.

mod fields;
mod image;
mod media;
mod prompt;
mod tools;

use serde_json::value::RawValue;

use domain::job::{Api, TokenEstimate};
use fields::{RequestFields, whole_number};
use prompt::PromptCounter;

/// Output tokens assumed where a request sets no limit. Too high only costs pace, and the
/// service's headers correct it; too low leads to 429s.
pub const DEFAULT_MAX_OUTPUT: u32 = 4096;

/// Counts the tokens of a request body. Unreadable parts count as nothing: the service will
/// reject such a request itself.
pub fn estimate(api: Api, model: &str, body: &[u8]) -> TokenEstimate {
    let Some(fields) = std::str::from_utf8(body).ok().and_then(RequestFields::read) else {
        return TokenEstimate::default();
    };
    let max_output = match api {
        Api::Embeddings => 0,
        _ => max_output(&fields),
    };
    let prompt = PromptCounter::new(model).request(api, &fields);
    TokenEstimate { prompt: u32::try_from(prompt).unwrap_or(u32::MAX), max_output }
}

/// Returns whether a request limits the tokens of its answer, or has no such limit to set.
pub fn has_output_limit(api: Api, body: &str) -> bool {
    let limited =
        || RequestFields::read(body).is_some_and(|fields| output_limit(&fields).is_some());
    api == Api::Embeddings || limited()
}

/// Returns the number of tokens of a text for current models.
pub fn count(text: &str) -> usize {
    bpe_openai::o200k_base().count(text)
}

/// Returns the limit of one answer. A float or a text counts as the number it stands for: pandas and
/// spreadsheets write `500.0` and `"500"` (litellm#1854).
fn output_limit(fields: &RequestFields<'_>) -> Option<u32> {
    let limit = |raw: Option<&RawValue>| raw.and_then(whole_number);
    limit(fields.max_completion_tokens)
        .or_else(|| limit(fields.max_output_tokens))
        .or_else(|| limit(fields.max_tokens))
}

fn max_output(fields: &RequestFields<'_>) -> u32 {
    let answers = fields.n.and_then(whole_number).unwrap_or(1).max(1);
    output_limit(fields).unwrap_or(DEFAULT_MAX_OUTPUT).saturating_mul(answers)
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

    /// The example of OpenAI's cookbook, whose true counts are 101 for gpt-4o and 105 for gpt-4.
    const WEATHER: &str = r#"{"messages":[
        {"role":"system","content":"You are a helpful assistant that can answer to questions about the weather."},
        {"role":"user","content":"What's the weather like in San Francisco?"}],
        "tools":[{"type":"function","function":{"name":"get_current_weather",
        "description":"Get the current weather in a given location","parameters":{"type":"object",
        "properties":{"location":{"type":"string","description":"The city and state, e.g. San Francisco, CA"},
        "unit":{"type":"string","description":"The unit of temperature to return","enum":["celsius","fahrenheit"]}},
        "required":["location"]}}}]}"#;

    #[test]
    fn functions_count_as_the_service_bills_them_whatever_white_space_is_between() {
        let chat = |model, body: &str| of(Api::ChatCompletions, model, body).0;
        assert_eq!((chat("gpt-4o", WEATHER), chat("gpt-4", WEATHER)), (101, 105));
        let spaced = WEATHER.replace("\":", "\" : ").replace(',', ", ");
        let compact = WEATHER.replace("\n        ", "");
        assert_eq!(chat("gpt-4o", &compact), 101);
        assert!(
            chat("gpt-4o", &spaced).abs_diff(101) <= 3,
            "commas within texts have a space more"
        );
    }

    #[test]
    fn a_schema_for_the_answer_counts_where_either_api_has_it() {
        let schema =
            r#""name":"s","schema":{"type":"object","properties":{"a":{"type":"string"}}}"#;
        let chat = format!(
            r#"{{"messages":[],"response_format":{{"type":"json_schema","json_schema":{{{schema}}}}}}}"#
        );
        let responses =
            format!(r#"{{"input":"","text":{{"format":{{"type":"json_schema",{schema}}}}}}}"#);
        let chat = of(Api::ChatCompletions, "gpt-4o", &chat).0;
        let responses = of(Api::Responses, "gpt-4o", &responses).0;
        assert_eq!(chat - 3, responses);
        assert!(responses > 20, "{responses}");
        let plain = r#"{"input":"","text":{"format":{"type":"text"}}}"#;
        assert_eq!(of(Api::Responses, "gpt-4o", plain).0, 0);
    }

    #[test]
    fn documents_and_audio_are_no_prompt_text() {
        let data = "A".repeat(200_000);
        let parts = [
            format!(r#"{{"type":"file","file":{{"filename":"a.pdf","file_data":"{data}"}}}}"#),
            format!(r#"{{"type":"input_file","file_data":"{data}"}}"#),
            format!(r#"{{"type":"input_audio","input_audio":{{"data":"{data}","format":"mp3"}}}}"#),
            format!(
                r#"{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}"#
            ),
        ];
        let counts = parts.map(|part| {
            let body = format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
            of(Api::ChatCompletions, "gpt-4.1", &body).0 - 7
        });
        assert_eq!(counts, [3 * 1265, 3 * 1265, 94, 765]);
    }

    #[test]
    fn low_detail_is_seen_however_it_is_written() {
        let count = |image: &str| {
            let body = format!(r#"{{"messages":[{{"role":"user","content":[{image}]}}]}}"#);
            of(Api::ChatCompletions, "gpt-4o", &body).0 - 7
        };
        for image in [
            r#"{"type":"image_url","image_url":{"url":"https://x/a.png", "detail" : "low"}}"#,
            r#"{"type":"input_image","image_url":"https://x/a.png","detail":"low"}"#,
        ] {
            assert_eq!(count(image), 85, "{image}");
        }
    }

    #[test]
    fn an_odd_field_costs_itself_and_never_the_count_of_the_others() {
        let text = "Hello ".repeat(100);
        let message = format!(r#"{{"role":"user","content":"{text}"}}"#);
        let plain = of(Api::ChatCompletions, "gpt-4o", &format!(r#"{{"messages":[{message}]}}"#));
        for more in [
            r#""max_tokens":null"#,
            r#""max_tokens":"many""#,
            r#""max_tokens":-5"#,
            r#""n":"x""#,
            r#""tools":7"#,
            r#""response_format":"json""#,
            r#""max_tokens":[],"max_tokens":{}"#,
        ] {
            let body = format!(r#"{{"messages":[{message},7],{more}}}"#);
            assert_eq!(of(Api::ChatCompletions, "gpt-4o", &body), plain, "{more}");
        }
        let float = format!(r#"{{"messages":[{message}],"max_tokens":500.0}}"#);
        assert_eq!(of(Api::ChatCompletions, "gpt-4o", &float), (plain.0, 500));
    }
}
