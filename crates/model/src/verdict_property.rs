//! Any status, any headers, any bytes: each reply gets a verdict that every later stage can take.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

const TEMPLATES: [&str; 10] = [
    r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}"#,
    r#"{"choices":[{"message":{"content":null,"tool_calls":[{}]},"finish_reason":"tool_calls"}]}"#,
    r#"{"output":[{"type":"message","content":[{"type":"output_text","text":"a"}]}],"status":"completed"}"#,
    r#"{"data":[{"embedding":[0.5,-1e-9],"index":0}],"usage":{"total_tokens":1e99}}"#,
    r#"{"error":{"code":429,"message":"Please retry after 7 seconds.","param":["x"]}}"#,
    r#"[{"error":{"code":null,"innererror":{"content_filter_result":{}},"message":{"a":1}}}]"#,
    r#"{"statusCode":403,"message":"Out of call volume quota. Quota will be replenished in 00:21:00."}"#,
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n",
    "event: response.completed\ndata: {\"response\":{\"output\":[],\"status\":\"failed\"}}\n\n",
    "\u{feff}<html><title>502 Bad Gateway</title></html>",
];

const HEADERS: [&str; 9] = [
    "retry-after",
    "retry-after-ms",
    "content-type",
    "content-encoding",
    "x-request-id",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "x-ms-region",
];

const VALUES: [&str; 22] = [
    "0",
    "-1",
    "0.5",
    "86400",
    "1e400",
    "99999999999999999999",
    "Wed, 21 Oct 2015 07:28:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "",
    " ",
    "1m30s",
    "6ms",
    "gzip",
    "deflate, gzip",
    "br",
    "text/event-stream",
    "application/json; charset=shift_jis",
    "application/json; charset=utf-16le",
    "application/octet-stream; charset=\"",
    "NaN",
    "infinity",
    "\u{e9}",
];

/// A template with some bytes changed, removed and put in, or nothing but bytes.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<Index>(), 0..3_u8, any::<u8>()), 0..6);
    let changed = (select(&TEMPLATES[..]), changes).prop_map(|(template, changes)| {
        let mut body = template.as_bytes().to_vec();
        for (at, kind, byte) in changes.into_iter().filter(|_| !template.is_empty()) {
            let at = at.index(body.len().max(1));
            match kind {
                0 if at < body.len() => body[at] = byte,
                1 => body.truncate(at),
                _ => body.insert(at.min(body.len()), byte),
            }
        }
        body
    });
    prop_oneof![4 => changed, 1 => vec(any::<u8>(), 0..300)]
}

fn header_maps() -> impl Strategy<Value = HeaderMap> {
    vec((select(&HEADERS[..]), select(&VALUES[..])), 0..4).prop_map(|pairs| {
        let parsed = pairs.into_iter().filter_map(|(name, value)| {
            Some((name.parse::<reqwest::header::HeaderName>().ok()?, value.parse().ok()?))
        });
        parsed.collect()
    })
}

fn requests() -> impl Strategy<Value = (Api, ServiceTier)> {
    let apis = select(&[Api::ChatCompletions, Api::Responses, Api::Embeddings][..]);
    (apis, select(&[ServiceTier::AsAsked, ServiceTier::Flex][..]))
}

/// A number may be larger than any float: it is kept as it stands.
fn json_of(body: &[u8]) -> Option<&str> {
    serde_json::from_slice::<&serde_json::value::RawValue>(body).ok().map(|json| json.get())
}

/// Texts and bodies of an outcome are what every store takes: text without a zero byte, JSON.
fn is_storable(error: &ErrorReply) -> bool {
    let is_text = |text: &str| !text.contains('\0');
    let body = error.body.as_deref();
    let is_json = body.is_none_or(|body| json_of(body).is_some());
    is_text(&error.failure.code) && is_text(&error.failure.message) && is_json
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_reply_gets_a_verdict_that_can_be_acted_on(
        status in prop_oneof![select(&[200, 400, 401, 403, 404, 408, 410, 429, 500, 503][..]), 100..1000_u16],
        headers in header_maps(),
        body in bodies(),
        (api, tier) in requests(),
    ) {
        let key = HeaderValue::from_static("Bearer s3cret-key-of-ours");
        let request = JudgedRequest { api, tier, secrets: [Some(&key), None] };
        let body = Bytes::from(body);
        let verdict = judge(&request, RawResponse::Response { status, headers, body }, SystemTime::now());
        prop_assert!(verdict.error().is_none_or(is_storable), "{:?}", verdict);
        let is_success = (200..300).contains(&status);
        match verdict {
            Verdict::Answered(reply) => {
                prop_assert!(is_success, "an error counts as an answer");
                let is_object = json_of(&reply.body).is_some_and(|kept| kept.starts_with('{'));
                prop_assert!(is_object, "{:?}", reply.body);
            }
            Verdict::NoAnswer(_) => prop_assert!(is_success),
            _ => {}
        }
    }
}
