//! Verdicts on replies of every kind.

use super::*;
use domain::outcome::AnswerFinish;

fn respond(status: u16, headers: &[(&'static str, &str)], body: &str) -> Verdict {
    respond_to(Api::ChatCompletions, ServiceTier::AsAsked, status, headers, body.as_bytes())
}

fn respond_to(
    api: Api,
    tier: ServiceTier,
    status: u16,
    headers: &[(&'static str, &str)],
    body: &[u8],
) -> Verdict {
    let headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
    let body = Bytes::copy_from_slice(body);
    let now = httpdate::parse_http_date("Mon, 23 Nov 2026 16:00:00 GMT").unwrap();
    let key = HeaderValue::from_static("Bearer s3cret-key-of-ours");
    let request = JudgedRequest { api, tier, secrets: [Some(&key), None] };
    judge(&request, RawResponse::Response { status, headers, body }, now)
}

fn answered(body: &[u8]) -> ModelResponse {
    let tier = ServiceTier::AsAsked;
    match respond_to(Api::ChatCompletions, tier, 200, &[], body) {
        Verdict::Answered(reply) => reply,
        other => panic!("{other:?}"),
    }
}

const WHOLE: &str = r#"{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}"#;

/// Cells of the rows below this head on the page of replies.
fn rows_of_the_page(head: &str) -> Vec<Vec<String>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/replies.md");
    let page = std::fs::read_to_string(path).unwrap();
    let rows = page.lines().skip_while(|line| !line.starts_with(head)).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    rows.map(|row| row.trim_matches('|').split(" | ").map(cell).collect()).collect()
}

#[test]
fn the_page_of_replies_tells_the_verdict_on_each() {
    let rows = rows_of_the_page("| status |");
    assert!(rows.len() >= 40, "{}", rows.len());
    for row in rows {
        let [status, body, verdict] = row.try_into().unwrap();
        let given = if body == "-" { "" } else { &body };
        let named = respond(status.parse().unwrap(), &[], given).name();
        assert_eq!(named, verdict, "{status} {body}");
    }
}

#[test]
fn the_page_of_replies_tells_what_follows_from_every_verdict() {
    let rows = rows_of_the_page("| verdict |");
    let told: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(told, Verdict::NAMES);
    assert!(rows.iter().all(|row| row.len() == 4));
}

#[test]
fn a_model_without_a_flex_tier_is_the_lanes_fault_and_not_the_jobs() {
    let about = r#"{"error":{"message":"Unsupported value: 'flex'","param":"service_tier"}}"#;
    let other = r#"{"error":{"code":"context_length_exceeded","message":"m"}}"#;
    let named =
        |tier, body: &str| respond_to(Api::ChatCompletions, tier, 400, &[], body.as_bytes()).name();
    assert_eq!(named(ServiceTier::Flex, about), "misconfigured");
    assert_eq!(named(ServiceTier::Flex, other), "refused");
    assert_eq!(named(ServiceTier::AsAsked, about), "denied", "the job asked for it");
}

#[test]
fn an_answer_says_what_it_is_billed_as_and_how_it_ended() {
    let reply = answered(
        br#"{"choices":[{"message":{},"finish_reason":"length"}],"service_tier":"flex",
             "usage":{"prompt_tokens":20,"completion_tokens":9}}"#,
    );
    assert_eq!(reply.service_tier.as_deref(), Some("flex"));
    assert_eq!(reply.finish, Some(AnswerFinish::Length));
    let usage = TokenUsage { prompt: 20, completion: 9, ..TokenUsage::default() };
    assert_eq!((reply.usage, reply.flaw), (usage, None));
    assert_eq!(answered(WHOLE.as_bytes()).usage.unreported, 1);
}

#[test]
fn a_bad_byte_costs_its_character_and_never_the_answer() {
    let body = b"{\"choices\":[{\"message\":{\"content\":\"caf\xe9\"}}]}";
    let reply = answered(body);
    assert_eq!(reply.flaw, Some(AnswerFlaw::NotUtf8));
    let kept: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(kept["choices"][0]["message"]["content"], "caf\u{fffd}");
    let odd = answered(br#"{"choices":[{"message":{"content":"a"}}],"score":NaN}"#);
    assert_eq!(odd.flaw, Some(AnswerFlaw::NotJson));
    let kept: serde_json::Value = serde_json::from_slice(&odd.body).unwrap();
    assert!(kept["score"].is_null());
}

#[test]
fn a_complete_answer_that_can_not_be_read_is_kept_as_its_text() {
    let page = "<html>Log in</html>";
    let Verdict::NoAnswer(error) = respond(200, &[], page) else { panic!("no answer") };
    assert_eq!(error.body.as_deref(), Some(&br#""<html>Log in</html>""#[..]));
    assert_eq!((error.failure.code.as_str(), error.usage.unreported), ("unreadable_answer", 1));
    let long = "吾".repeat(LARGEST_TEXT);
    let Verdict::NoAnswer(error) = respond(200, &[], &long) else { panic!("no answer") };
    let kept: String = serde_json::from_slice(&error.body.unwrap()).unwrap();
    assert!(kept.len() <= LARGEST_TEXT && kept.len() > LARGEST_TEXT - 4);
}

#[test]
fn a_refusal_for_want_of_room_keeps_its_wait_and_its_words() {
    let body = r#"{"error":{"code":"429","message":"Please retry after 7 seconds."}}"#;
    for (headers, wait) in [
        (vec![("retry-after-ms", "1500"), ("retry-after", "9")], Some(1_500)),
        (vec![("retry-after", "86400")], Some(86_400_000)),
        (vec![], Some(7_000)),
    ] {
        let Verdict::Throttled { error, asked } = respond(429, &headers, body) else {
            panic!("throttled");
        };
        assert_eq!(asked, wait.map(Duration::from_millis));
        assert_eq!(error.words(), "429: Please retry after 7 seconds.");
    }
}

#[test]
fn the_services_error_is_kept_with_its_code_and_request_id() {
    let body = r#"{"error":{"code":"content_filter","message":"filtered","innererror":{}}}"#;
    let Verdict::Refused(error) = respond(400, &[("apim-request-id", "r-1")], body) else {
        panic!("refused");
    };
    assert_eq!(error.failure.code, "content_filter");
    assert_eq!(error.request_id.as_deref(), Some("r-1"));
    assert_eq!(error.body.as_deref(), Some(body.as_bytes()));
    assert_eq!(error.words(), "400 content_filter: filtered");
}

#[test]
fn a_key_that_the_service_quotes_is_kept_nowhere() {
    let quoted = r#"{"error":{"message":"Incorrect key: s3cret-key-of-ours!"}}"#;
    let answer = r#"{"choices":[{"message":{"content":"Bearer s3cret-key-of-ours"}}]}"#;
    for (status, body) in [(400, quoted), (401, quoted), (200, answer), (500, "s3cret-key-of-ours")]
    {
        let verdict = format!("{:?}", respond(status, &[], body));
        assert!(!verdict.contains("s3cret") && verdict.contains("[key]"), "{verdict}");
    }
}

#[test]
fn a_redirect_names_where_to_and_is_not_the_jobs_fault() {
    let request = JudgedRequest {
        api: Api::ChatCompletions,
        tier: ServiceTier::AsAsked,
        secrets: [None, None],
    };
    let raw = RawResponse::Redirected { status: 307, to: "https://other.example/v1".into() };
    let Verdict::Denied { suspect, why, .. } = judge(&request, raw, SystemTime::now()) else {
        panic!("denied");
    };
    assert_eq!(suspect, Suspect::Deployment);
    assert!(why.contains("https://other.example/v1") && why.contains("endpoint"), "{why}");
}
