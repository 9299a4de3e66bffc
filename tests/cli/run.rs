//! `promptmill run`, as a user types it.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::io::Write;
use std::process::Stdio;
use test_support as support;

use promptmill::simulator::{FaultRates, SimulatorSettings};
use serde_json::{Value, json};
use support::cli::{Ended, Place, chat, chats};
use support::service::{Service, wait_until};

#[test]
fn the_first_command_of_the_readme_works() {
    let place = Place::new();
    let input = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/prompts.jsonl");
    let ended = place.run(&["run", input, "--simulate"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.err.contains("40 succeeded"), "{}", ended.err);
    let first = &place.lines("prompts.results.jsonl")[0];
    assert_eq!(first["response"]["status_code"], 200);
    assert_eq!(first["error"], Value::Null);
    assert!(first["response"]["body"]["choices"][0]["message"]["content"].is_string());
    assert!(place.lines("prompts.errors.jsonl").is_empty());
}

#[test]
fn all_three_apis_and_streams_are_answered_in_the_order_of_the_input() {
    let place = Place::new();
    let line = |id: &str, url: &str, body: Value| json!({"custom_id": id, "method": "POST", "url": url, "body": body});
    let stream = |id: &str| {
        let mut line = chat(id, "say it in pieces", 20);
        line["body"]["stream"] = true.into();
        line
    };
    let lines = [
        chat("c", "hello", 10),
        stream("s"),
        line(
            "r",
            "/v1/responses",
            json!({"model": "m", "input": "こんにちは", "max_output_tokens": 16}),
        ),
        line(
            "rs",
            "/v1/responses",
            json!({"model": "m", "input": "x", "max_output_tokens": 16, "stream": true}),
        ),
        line(
            "e",
            "/v1/embeddings",
            json!({"model": "text-embedding-3-small", "input": ["a", "b"]}),
        ),
    ];
    place.write("in.jsonl", lines.map(|line| format!("{line}\n")).concat());
    let ended = place.run(&["run", "in.jsonl", "--simulate", "--ordered", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let results = place.lines("in.results.jsonl");
    assert_eq!(place.ids("in.results.jsonl"), ["c", "s", "r", "rs", "e"]);
    let body = |n: usize| &results[n]["response"]["body"];
    assert_eq!(body(1)["object"], "chat.completion", "a stream is put together");
    assert!(body(1)["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    assert_eq!(body(3)["object"], "response");
    assert_eq!(body(4)["data"].as_array().unwrap().len(), 2);
    let summary: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(summary["endings"], json!({"succeeded": 5}));
    let completion: u64 = [0, 1]
        .map(|n| body(n)["usage"]["completion_tokens"].as_u64().unwrap())
        .iter()
        .sum::<u64>()
        + [2, 3].map(|n| body(n)["usage"]["output_tokens"].as_u64().unwrap()).iter().sum::<u64>();
    assert_eq!(summary["completion"], completion, "usage is what the answers say");
}

#[test]
fn compressed_files_and_standard_input_are_read() {
    let place = Place::new();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(chats(3).as_bytes()).unwrap();
    place.write("a.jsonl.gz", gz.finish().unwrap());
    place.write("b.jsonl.zst", zstd::encode_all(chats(4).as_bytes(), 1).unwrap());
    assert_eq!(place.run(&["run", "a.jsonl.gz", "--simulate"]).code, Some(0));
    assert_eq!(place.ids("a.results.jsonl").len(), 3);
    assert_eq!(place.run(&["run", "b.jsonl.zst", "--simulate"]).code, Some(0));
    assert_eq!(place.ids("b.results.jsonl").len(), 4);

    let mut command = place.command(&["run", "-", "--simulate", "--out", "-", "--quiet"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(chats(5).as_bytes()).unwrap();
    let ended = Ended::from(child.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.out.lines().count()), (Some(0), 5));
}

#[test]
fn running_again_pays_nothing_and_a_longer_input_pays_only_what_is_new() {
    let service = Service::start(SimulatorSettings::default());
    let place = Place::new();
    place.write("in.jsonl", chats(30));
    let url = service.url();
    let run = || place.run(&["run", "in.jsonl", "--endpoint", &url, "--batch", "night"]);
    assert_eq!(run().code, Some(0));
    assert_eq!(run().code, Some(0));
    assert_eq!(service.ledger().requests, 30);
    place.write("in.jsonl", chats(33));
    assert_eq!(run().code, Some(0));
    assert_eq!(service.ledger().requests, 33);
    assert_eq!(place.ids("night.results.jsonl").len(), 33);
}

#[test]
fn a_custom_id_with_another_body_is_not_taken_for_answered() {
    let place = Place::new();
    place.write("in.jsonl", chats(3));
    assert_eq!(place.run(&["run", "in.jsonl", "--simulate", "--batch", "b"]).code, Some(0));
    place.write("in.jsonl", format!("{}\n", chat("job-1", "a changed prompt", 32)));
    let ended = place.run(&["run", "in.jsonl", "--simulate", "--batch", "b"]);
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.err.contains("custom_id 'job-1' of batch 'b-simulated' has its outcome already"),
        "{}",
        ended.err
    );
}

#[test]
fn what_the_simulator_said_is_asked_again_of_a_real_endpoint_and_costs_nothing() {
    let place = Place::new();
    place.write("in.jsonl", chats(5));
    let first = place.run(&["run", "in.jsonl", "--simulate", "--batch", "night"]);
    assert_eq!(first.code, Some(0), "{}", first.err);
    assert!(first.err.contains("(5 lines, simulated)"), "{}", first.err);
    assert!(place.lines("night.results.jsonl").iter().all(|line| line["simulated"] == true));
    let service = Service::start(SimulatorSettings::default());
    let real = ["run", "in.jsonl", "--endpoint", &service.url(), "--batch"];
    let refused = place.run(&[&real[..], &["night-simulated"]].concat());
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    let second = place.run(&[&real[..], &["night"]].concat());
    assert_eq!(second.code, Some(0), "{}", second.err);
    assert_eq!(service.ledger().requests, 5, "each is asked for");
    let results = place.lines("night.results.jsonl");
    assert!(results.iter().all(|line| line.get("simulated").is_none()));
    let usage = place.run(&["usage", "--by", "batch", "--json"]);
    let usage: Value = serde_json::from_str(&usage.out).unwrap();
    let cost = |n: usize| &usage["lines"][n]["cost"];
    assert_eq!(usage["lines"][1]["keys"]["batch"], "night-simulated", "{usage}");
    assert_eq!(cost(1), 0.0, "{usage}");
    assert_ne!(cost(0), 0.0, "{usage}");
}

#[test]
fn refused_jobs_go_to_the_error_file_with_the_services_words() {
    let place = Place::new();
    let lines = [
        chat("ok", "fine", 5),
        chat("bad", "[[content_filter]]", 5),
        chat("long", "[[context_length_exceeded]]", 5),
    ];
    place.write("in.jsonl", lines.map(|line| format!("{line}\n")).concat());
    let ended = place.run(&["run", "in.jsonl", "--simulate", "--ordered"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert_eq!(place.ids("in.results.jsonl"), ["ok"]);
    let errors = place.lines("in.errors.jsonl");
    let codes: Vec<_> = errors.iter().map(|e| &e["response"]["body"]["error"]["code"]).collect();
    assert_eq!(codes, ["content_filter", "context_length_exceeded"]);
    assert_eq!(errors[0]["error"], Value::Null, "as in the Batch API");
}

#[test]
fn jobs_whose_tries_are_used_up_are_dead_with_the_last_error() {
    let faults = FaultRates { rate_500: 1.0, ..FaultRates::default() };
    let service = Service::start(SimulatorSettings { faults, ..SimulatorSettings::default() });
    let place = Place::new();
    place.write("in.jsonl", chats(3));
    let mut command = place.command(&["run", "in.jsonl", "--endpoint", &service.url()]);
    let ended = Ended::from(command.env("PROMPTMILL__WORKER__MAX_TRIES", "2").output().unwrap());
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains("3 dead"), "{}", ended.err);
    let errors = place.lines("in.errors.jsonl");
    assert_eq!(errors.len(), 3);
    assert_eq!(errors[0]["error"]["ending"], "dead");
    assert_eq!(errors[0]["error"]["attempts"], 2);
    assert_eq!(errors[0]["response"]["status_code"], 500);
    let reasons: String = place
        .database()
        .query_row("SELECT group_concat(DISTINCT reason) FROM dead_letters", [], |row| row.get(0))
        .unwrap();
    assert_eq!(reasons, "RetriesExhausted");
}

#[test]
fn a_wrong_key_ends_the_run_with_nothing_lost_or_failed() {
    let key = Some("right".to_owned().into());
    let service =
        Service::start(SimulatorSettings { api_key: key, ..SimulatorSettings::default() });
    let place = Place::new();
    place.write("in.jsonl", chats(20)).write("key", "right\n");
    let url = service.url();
    let mut command = place.command(&["run", "in.jsonl", "--endpoint", &url]);
    let ended = Ended::from(command.env("AZURE_OPENAI_API_KEY", "wr0ng").output().unwrap());
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("401") && ended.err.contains("Check the API key"), "{}", ended.err);
    assert!(!ended.err.contains("wr0ng"), "keys are never shown");
    assert_eq!(place.queued(), 20);
    let ended = place.run(&["run", "in.jsonl", "--endpoint", &url, "--api-key-file", "key"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(place.ids("in.results.jsonl").len(), 20);
}

#[test]
fn a_key_is_in_no_log_line_even_at_trace_level() {
    let key = Some("s3cret-key".to_owned().into());
    let service =
        Service::start(SimulatorSettings { api_key: key, ..SimulatorSettings::default() });
    let place = Place::new();
    place.write("in.jsonl", chats(5));
    let mut command = place.command(&["run", "in.jsonl", "--endpoint", &service.url()]);
    let ended = Ended::from(command.env("OPENAI_API_KEY", "s3cret-key").output().unwrap());
    assert_eq!(ended.code, Some(0));
    assert!(ended.log.contains("call ended"), "everything is logged");
    assert!(!ended.log.contains("s3cret-key"), "the key was logged");
    assert!(!ended.log.contains("prompt 3"), "a prompt was logged");
}

#[test]
fn an_endpoint_that_is_not_there_is_named_and_nothing_is_lost() {
    let place = Place::new();
    place.write("in.jsonl", chats(5));
    let ended = place.run(&["run", "in.jsonl", "--endpoint", "http://127.0.0.1:9"]);
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    assert!(
        ended.err.contains("http://127.0.0.1:9/") && ended.err.contains("refused"),
        "{}",
        ended.err
    );
    assert_eq!(place.queued(), 5);
}

#[test]
fn the_second_process_on_a_state_directory_is_told_who_holds_it() {
    let faults = FaultRates { rate_hang: 1.0, ..FaultRates::default() };
    let service = Service::start(SimulatorSettings { faults, ..SimulatorSettings::default() });
    let place = Place::new();
    place.write("in.jsonl", chats(2));
    let url = service.url();
    let mut first = place.spawn(&["run", "in.jsonl", "--endpoint", &url]);
    wait_until(|| service.ledger().requests >= 2);
    let second = place.run(&["run", "in.jsonl", "--endpoint", &url]);
    first.signal("KILL");
    first.wait();
    assert_eq!(second.code, Some(2));
    let expected = format!("in use by process {} since", first.id());
    assert!(second.err.contains(&expected), "{}", second.err);
}

#[test]
fn a_request_larger_than_the_quota_fails_and_says_why() {
    let place = Place::new();
    place.write("in.jsonl", format!("{}\n{}\n", chat("ok", "x", 10), chat("huge", "x", 50_000)));
    let ended = place.run(&["run", "in.jsonl", "--simulate", "--tpm", "10000"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let errors = place.lines("in.errors.jsonl");
    assert_eq!(errors[0]["error"]["code"], "charge_exceeds_quota");
    assert_eq!(place.ids("in.results.jsonl"), ["ok"]);
}

#[test]
fn a_passed_deadline_expires_without_a_call() {
    let service = Service::start(SimulatorSettings::default());
    let place = Place::new();
    let mut late = chat("late", "x", 10);
    late["deadline"] = "2020-01-01T00:00:00Z".into();
    place.write("in.jsonl", format!("{late}\n"));
    let ended = place.run(&["run", "in.jsonl", "--endpoint", &service.url()]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert_eq!(place.lines("in.errors.jsonl")[0]["error"]["ending"], "expired");
    assert_eq!(service.ledger().requests, 0);
}
