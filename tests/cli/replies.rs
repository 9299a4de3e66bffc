//! Odd replies of services: none of them loses an answer, a job, or a night.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use test_support::cli::{Ended, Place};
use test_support::endpoint::{Endpoint, EndpointReply, EndpointRequest, chat};
use tokio::time::Instant;

const KEY: &str = "key-of-the-test-1234567890";

/// So many jobs of model `m`, named `job-N` and asking `N`.
fn jobs(count: usize) -> String {
    (0..count).map(|n| job(&format!("job-{n}"), "m", &n.to_string())).collect()
}

fn job(id: &str, model: &str, prompt: &str) -> String {
    let body = json!({"model": model, "messages": [{"role": "user", "content": prompt}],
                      "max_tokens": 16});
    let line = json!({"custom_id": id, "method": "POST", "url": "/v1/chat/completions",
                      "body": body});
    format!("{line}\n")
}

fn run(place: &Place, endpoint: &Endpoint, more: &[&str]) -> Ended {
    let url = endpoint.url();
    let args = [&["run", "in.jsonl", "--endpoint", &url], more].concat();
    Ended::from(place.command(&args).env("OPENAI_API_KEY", KEY).output().unwrap())
}

fn place(lines: impl AsRef<[u8]>) -> Place {
    let place = Place::new();
    place.write("in.jsonl", lines);
    place
}

fn answer_of(place: &Place, id: &str) -> Value {
    let lines = place.lines("in.results.jsonl");
    let line = lines.into_iter().find(|line| line["custom_id"] == id).unwrap();
    line["response"]["body"]["choices"][0]["message"]["content"].clone()
}

#[test]
fn bytes_that_are_no_text_cost_their_characters_and_nothing_else() {
    let endpoint = Endpoint::start(|request| {
        match request.prompt.as_str() {
        "3" => EndpointReply::new(
            200,
            b"{\"choices\":[{\"message\":{\"content\":\"caf\xe9 \xe3\x81\"},\"finish_reason\":\"stop\"}]}",
        ),
        "4" => EndpointReply::new(200, chat("x").to_string().replace("\"m\"", "NaN")),
        "5" => EndpointReply::new(200, format!("\u{feff}{}", chat("marked"))),
        _ => EndpointReply::chat("ok"),
    }
    });
    let place = place(jobs(30));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!((ended.code, endpoint.calls()), (Some(0), 30), "{}", ended.err);
    assert_eq!(answer_of(&place, "job-3"), "caf\u{fffd} \u{fffd}");
    assert_eq!(answer_of(&place, "job-4"), "x");
    assert_eq!(answer_of(&place, "job-5"), "marked");
    let lines = place.lines("in.results.jsonl");
    let flaws: Vec<_> = lines.iter().filter_map(|line| line.get("flaw")?.as_str()).collect();
    assert_eq!(flaws.len(), 2, "{flaws:?}");
    assert!(flaws.contains(&"not_utf8") && flaws.contains(&"not_json"), "{flaws:?}");
}

#[test]
fn no_usage_however_odd_loses_the_answer_it_came_with() {
    let odd = [
        "null",
        "[]",
        "7",
        r#"{"prompt_tokens":12,"completion_tokens":null}"#,
        r#"{"prompt_tokens":12,"input_tokens":12,"completion_tokens":3,"output_tokens":3}"#,
        r#"{"prompt_tokens":12.5,"completion_tokens":"3"}"#,
        r#"{"prompt_tokens":-1,"completion_tokens":-1}"#,
        r#"{"prompt_tokens":9223372036854775807,"completion_tokens":18446744073709551615}"#,
        r#"{"prompt_tokens":99999999999999999999999,"completion_tokens":1e999}"#,
        r#"{"prompt_tokens":12,"prompt_tokens":13,"completion_tokens":3}"#,
    ];
    let endpoint = Endpoint::start(move |request| {
        let usage = odd[request.prompt.parse::<usize>().unwrap() % odd.len()];
        let whole = chat("ok").to_string();
        let from = whole.find("\"usage\":").unwrap();
        let end = whole[from..].find('}').unwrap() + from + 1;
        EndpointReply::new(200, format!("{}\"usage\":{usage}{}", &whole[..from], &whole[end..]))
    });
    let place = place(jobs(20));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!((ended.code, endpoint.calls()), (Some(0), 20), "{}", ended.err);
    let results = std::fs::read_to_string(place.path("in.results.jsonl")).unwrap();
    assert_eq!(results.lines().count(), 20);
}

#[test]
fn an_answer_that_can_not_be_read_is_kept_as_text_and_asked_for_twice() {
    let endpoint = Endpoint::start(|request| match request.prompt.as_str() {
        "1" => EndpointReply::new(200, "<html>Log in</html>"),
        "2" => EndpointReply::new(200, "{}"),
        "3" if request.seen == 1 => EndpointReply::new(200, ""),
        _ => EndpointReply::chat("ok"),
    });
    let place = place(jobs(5));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert_eq!(place.lines("in.results.jsonl").len(), 3);
    let errors = place.lines("in.errors.jsonl");
    let page = errors.iter().find(|line| line["custom_id"] == "job-1").unwrap();
    assert_eq!(page["response"]["body"], "<html>Log in</html>");
    assert_eq!(page["error"]["code"], "unreadable_answer");
    assert_eq!([1, 2, 3].map(|n| endpoint.calls_for(&n.to_string())), [2, 2, 2]);
}

#[test]
fn an_error_in_a_200_is_no_success_and_passes_where_it_passes() {
    let endpoint = Endpoint::start(|request| match request.prompt.as_str() {
        "1" => EndpointReply::json(200, &json!({"error": {"code": "content_filter"}})),
        "2" if request.seen < 3 => {
            EndpointReply::json(200, &json!({"error": {"code": 502, "message": "upstream"}}))
        }
        "3" if request.seen < 3 => {
            EndpointReply::json(200, &json!({"error": {"code": 429, "message": "busy"}}))
        }
        _ => EndpointReply::chat("ok"),
    });
    let place = place(jobs(5));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert_eq!(place.lines("in.results.jsonl").len(), 4);
    let errors = place.lines("in.errors.jsonl");
    assert_eq!(errors[0]["error"]["code"], "content_filter", "not told by its status 200 alone");
}

#[test]
fn a_key_that_the_service_quotes_is_written_nowhere() {
    let endpoint = Endpoint::start(|request| {
        let quoted = format!("Incorrect API key provided: {}", request.headers["authorization"]);
        match request.prompt.as_str() {
            "1" => EndpointReply::error(400, "invalid_api_key", &quoted),
            "2" => EndpointReply::error(500, "server_error", &quoted),
            "3" => EndpointReply::chat(&quoted),
            _ => EndpointReply::chat("ok"),
        }
    });
    let place = place(jobs(5));
    place.write("promptmill.toml", "[worker]\nmax_tries = 2");
    let ended = run(&place, &endpoint, &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    for name in ["in.results.jsonl", "in.errors.jsonl"] {
        let text = std::fs::read_to_string(place.path(name)).unwrap();
        assert!(!text.contains(KEY) && text.contains("[key]"), "{text}");
    }
    let state = std::fs::read(place.path(".promptmill/promptmill.db")).unwrap();
    assert!(!String::from_utf8_lossy(&state).contains(KEY));
    assert!(!ended.log.contains(KEY));
}

/// Answers all but these prompts of a night.
fn night(
    odd: impl Fn(&EndpointRequest) -> Option<EndpointReply> + Send + Sync + 'static,
) -> Endpoint {
    Endpoint::start(move |request| odd(request).unwrap_or_else(|| EndpointReply::chat("ok")))
}

#[test]
fn a_model_that_one_job_mistyped_costs_that_job_alone() {
    for reply in [
        ("model_not_found", "The model `gpt-9` does not exist or you do not have access to it."),
        ("DeploymentNotFound", "The API deployment for this resource does not exist."),
    ] {
        let endpoint = night(move |request| {
            let is_wrong = request.body["model"] == "gpt-9";
            is_wrong.then(|| EndpointReply::error(404, reply.0, reply.1))
        });
        // First of all, where nothing was answered yet that could speak for the deployment.
        let mistyped: String = (0..7).map(|n| job(&format!("bad-{n}"), "gpt-9", "?")).collect();
        let place = place(mistyped + &jobs(60));
        let ended = run(&place, &endpoint, &["--concurrency", "1"]);
        assert_eq!(ended.code, Some(1), "{}", ended.err);
        assert_eq!(place.lines("in.results.jsonl").len(), 60);
        assert_eq!(place.lines("in.errors.jsonl").len(), 7);
    }
}

#[test]
fn a_missing_file_a_closed_door_and_a_retired_prompt_cost_one_job_each() {
    let endpoint = night(|request| {
        Some(match request.prompt.as_str() {
            "5" => EndpointReply::error(404, "", "File with id 'file-x' not found."),
            "6" => EndpointReply::error(403, "", "Access to this content is denied."),
            "7" => EndpointReply::error(410, "", "The prompt was deleted."),
            "8" => EndpointReply::error(404, "", "Nothing here."),
            _ => return None,
        })
    });
    let place = place(jobs(60));
    let ended = run(&place, &endpoint, &["--concurrency", "2"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert_eq!(place.lines("in.results.jsonl").len(), 56);
    assert!(endpoint.most_calls() <= 4, "{}", endpoint.most_calls());
}

#[test]
fn one_passing_401_ends_nothing() {
    let endpoint = night(|request| {
        let is_odd = request.number % 50 == 30;
        is_odd.then(|| EndpointReply::error(401, "401", "Access denied due to invalid key."))
    });
    let place = place(jobs(200));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
}

#[test]
fn a_wrong_key_or_a_retired_model_ends_the_run_and_no_job() {
    for (status, hint) in [(401, "API key"), (410, "retired"), (404, "deployment's name")] {
        let endpoint = Endpoint::start(move |_| EndpointReply::error(status, "", "no"));
        let place = place(jobs(20));
        let ended = run(&place, &endpoint, &[]);
        assert_eq!(ended.code, Some(2), "{}", ended.err);
        let said = [hint, "says to job 'job-", "of model 'm'", "20 jobs are left"];
        assert!(said.iter().all(|words| ended.err.contains(words)), "{said:?}: {}", ended.err);
        assert!(endpoint.calls() < 150, "{}", endpoint.calls());
        assert_eq!(place.queued(), 20);
    }
}

#[test]
fn a_parameter_that_the_model_refuses_of_every_job_fails_none() {
    let endpoint = Endpoint::start(|_| {
        let message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use \
                       'max_completion_tokens' instead.";
        EndpointReply::json(
            400,
            &json!({"error": {"code": "unsupported_parameter", "param": "max_tokens",
                              "message": message}}),
        )
    });
    let place = place(jobs(300));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("max_completion_tokens"), "{}", ended.err);
    assert_eq!(place.queued(), 300);
}

#[test]
fn refusals_are_never_hammered_whatever_their_header_says() {
    for asked in ["0", "-1", "Wed, 21 Oct 2015 07:28:00 GMT", "86400"] {
        let began = Instant::now();
        let endpoint = night(move |request| {
            let is_full = request.at.duration_since(began) < Duration::from_secs(2);
            is_full.then(|| EndpointReply::error(429, "429", "busy").header("retry-after", asked))
        });
        let place = place(jobs(5));
        let ended = run(&place, &endpoint, &[]);
        assert_eq!(ended.code, Some(0), "{asked}: {}", ended.err);
        assert!(endpoint.calls() <= 40, "{asked}: {} calls", endpoint.calls());
    }
}

#[test]
fn a_request_that_no_wait_can_mend_is_its_jobs_fault() {
    let endpoint = night(|request| {
        let message =
            "Request too large for m on tokens per min (TPM): Limit 30000, Requested 34239.";
        (request.prompt == "3").then(|| EndpointReply::error(429, "rate_limit_exceeded", message))
    });
    let place = place(jobs(20));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!((ended.code, endpoint.calls_for("3")), (Some(1), 1), "{}", ended.err);
    assert_eq!(place.lines("in.results.jsonl").len(), 19);
}

#[test]
fn a_bill_that_is_not_paid_ends_the_run_at_once() {
    let endpoint = Endpoint::start(|_| {
        EndpointReply::error(429, "billing_not_active", "The account is not active.")
    });
    let place = place(jobs(50));
    let ended = run(&place, &endpoint, &["--concurrency", "4"]);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(endpoint.calls() <= 4 && ended.err.contains("not active"), "{}", ended.err);
}

#[test]
fn a_gateways_quota_is_waited_for_and_a_day_on_a_503_is_not() {
    let endpoint = night(|request| match (request.prompt.as_str(), request.seen) {
        ("3", 1) => Some(EndpointReply::json(
            403,
            &json!({"statusCode": 403, "message": "Out of call volume quota. Quota will be \
                                                   replenished in 00:00:02."}),
        )),
        ("4", 1) => Some(EndpointReply::new(503, "{}").header("retry-after", "86400")),
        _ => None,
    });
    let place = place(jobs(20));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!((ended.code, endpoint.calls()), (Some(0), 22), "{}", ended.err);
}

#[test]
fn a_redirect_is_followed_with_the_key_on_its_own_host_alone() {
    let elsewhere = Endpoint::start(|_| EndpointReply::chat("stolen"));
    let target = elsewhere.url();
    let endpoint = night(move |request| {
        assert_eq!(request.headers["authorization"], format!("Bearer {KEY}"));
        match request.path.as_str() {
            "/v1/chat/completions" if request.prompt == "3" => {
                Some(EndpointReply::new(307, "").header("location", &format!("{target}/x?key=1")))
            }
            "/v1/chat/completions" => Some(EndpointReply::new(308, "").header("location", "/new")),
            _ => None,
        }
    });
    let place = place(jobs(10));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!((ended.code, elsewhere.calls()), (Some(1), 0), "{}", ended.err);
    assert_eq!(place.lines("in.results.jsonl").len(), 9);
}

#[test]
fn answers_that_are_not_whole_are_counted_told_and_listed() {
    let endpoint = Endpoint::start(|request| {
        let mut answer = chat("ok");
        match request.prompt.as_str() {
            "1" | "2" => answer["choices"][0]["finish_reason"] = "length".into(),
            "3" => answer["choices"][0]["finish_reason"] = "content_filter".into(),
            "4" => answer["usage"] = Value::Null,
            _ => {}
        }
        EndpointReply::json(200, &answer)
    });
    let place = place(jobs(6));
    let ended = run(&place, &endpoint, &["--batch", "night"]);
    assert_eq!((ended.code, endpoint.calls()), (Some(0), 6), "they are kept: {}", ended.err);
    for told in ["cut off: 2 answers", "filtered: 1 answers", "1 answers came without usage"] {
        assert!(ended.err.contains(told), "{told}: {}", ended.err);
    }

    let status = place.run(&["status", "night", "--json"]);
    let status: Value = serde_json::from_str(&status.out).unwrap();
    let written = status.to_string();
    for count in [r#""truncated":2"#, r#""filtered":1"#, r#""unreported":1"#] {
        assert!(written.contains(count), "{count}: {written}");
    }
    let usage = place.run(&["usage", "--by", "model"]);
    assert!(usage.err.contains("1 answers came without usage"), "{}", usage.err);

    for (kind, expected) in [("truncated", vec!["job-1", "job-2"]), ("filtered", vec!["job-3"])] {
        let listed = place.run(&["results", "night", "--only", kind, "--ordered", "--out", "some"]);
        assert_eq!(listed.code, Some(0), "{}", listed.err);
        let ids: Vec<_> =
            place.lines("some").iter().map(|line| line["custom_id"].clone()).collect();
        assert_eq!(ids, expected, "{kind}");
    }
    let table = ["results", "night", "--format", "csv", "--only", "truncated", "--out", "t.csv"];
    assert_eq!(place.run(&table).code, Some(0));
    let table = std::fs::read_to_string(place.path("t.csv")).unwrap();
    assert!(table.lines().next().unwrap().ends_with("finish,unreported,flaw"), "{table}");
    assert_eq!(table.matches(",length,0").count(), 2, "{table}");
}

#[test]
fn what_would_be_answered_in_the_background_is_refused_before_it_is_paid() {
    let endpoint = Endpoint::start(|_| EndpointReply::chat("ok"));
    let body = json!({"model": "m", "input": "x", "background": true});
    let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": body});
    let place = place(format!("{line}\n"));
    let ended = run(&place, &endpoint, &[]);
    assert_eq!((ended.code, endpoint.calls()), (Some(2), 0), "{}", ended.err);
    assert!(ended.err.contains("would be lost"), "{}", ended.err);
}

#[test]
fn a_batch_of_which_every_job_fails_is_paused_before_it_costs_more() {
    let refused = || EndpointReply::error(400, "invalid_value", "The temperature must be below 2.");
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = is_mended.clone();
    let endpoint = Endpoint::start(move |_| {
        if mended.load(Ordering::SeqCst) { EndpointReply::chat("ok") } else { refused() }
    });
    let place = place(jobs(600));
    let ended = run(&place, &endpoint, &["--batch", "night", "--concurrency", "8"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!((50..200).contains(&endpoint.calls()), "{} calls", endpoint.calls());
    for said in [
        "batch night is paused (50 of its first 50 jobs failed",
        "invalid_value",
        "'job-",
        "The temperature must be below 2",
        "promptmill resume night",
    ] {
        assert!(ended.err.contains(said), "{said}: {}", ended.err);
    }
    let status = place.run(&["status", "night"]);
    assert!(status.out.contains("50 of its first 50 jobs failed"), "{}", status.out);
    is_mended.store(true, Ordering::SeqCst);
    let again = run(&place, &endpoint, &["--batch", "night"]);
    assert_eq!(again.code, Some(1), "still paused: {}", again.err);
    let resumed = place.run(&["resume", "night"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.err);
    let again = run(&place, &endpoint, &["--batch", "night"]);
    assert_eq!(again.code, Some(1), "some failed: {}", again.err);
    let [answers, errors] =
        ["night.results.jsonl", "night.errors.jsonl"].map(|name| place.lines(name).len());
    assert_eq!(answers + errors, 600);
    assert!((50..200).contains(&errors), "{errors} failed");
}

#[test]
fn whoever_wants_all_failures_gets_them() {
    let endpoint = Endpoint::start(|_| EndpointReply::error(400, "invalid_value", "no"));
    let place = place(jobs(300));
    let ended = run(&place, &endpoint, &["--max-failure-rate", "100"]);
    assert_eq!((ended.code, endpoint.calls()), (Some(1), 300), "{}", ended.err);
    let wrong = run(&place, &endpoint, &["--max-failure-rate", "101"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);
    assert!(wrong.err.contains("from 0 to 100"), "{}", wrong.err);
}
