//! Bad input is told by file, line and mend, before anything is enqueued or paid.

use support::cli::{Place, chat, chats};
use test_support as support;

/// Runs a file that must be refused; returns what was said.
fn refused(name: &str, content: &[u8], more: &[&str]) -> String {
    let place = Place::new();
    place.write(name, content);
    let ended = place.run(&[&["run", name, "--simulate"], more].concat());
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert_eq!(place.queued(), 0, "nothing may be enqueued");
    assert!(!place.path("in.results.jsonl").exists(), "nothing may be answered");
    ended.err
}

fn accepted(content: &[u8]) -> String {
    let place = Place::new();
    place.write("in.jsonl", content);
    let ended = place.run(&["run", "in.jsonl", "--simulate"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(place.ids("in.results.jsonl").len(), 2);
    ended.err
}

fn two_lines() -> String {
    chats(2)
}

#[test]
fn every_bad_line_is_told_with_its_place_and_mend() {
    let good = chat("a", "x", 5).to_string();
    let changed = |from: &str, to: &str| {
        let line = good.replace(from, to);
        assert_ne!(line, good, "{from}");
        line
    };
    let no_model = changed(r#","model":"gpt-4.1-mini""#, "");
    let cases = [
        ("{\"custom_id\":".to_owned(), "in.jsonl, line 2: invalid JSON"),
        (
            changed(r#""custom_id":"a","#, ""),
            "in.jsonl, line 2: 'custom_id' is missing; give each line",
        ),
        (changed("POST", "GET"), "in.jsonl, line 2: 'method' must be \"POST\""),
        (
            changed("/v1/chat/completions", "/v1/files"),
            "in.jsonl, line 2: the url '/v1/files' is not served; use",
        ),
        (
            no_model,
            "in.jsonl, line 2: the body names no model; add \"model\" to it, or give --model",
        ),
        (
            chat("job-0", "y", 5).to_string(),
            "in.jsonl, line 2: the custom_id is used already in in.jsonl, line 1; give",
        ),
    ];
    for (line, expected) in cases {
        let said = refused("in.jsonl", format!("{}{line}\n", chats(1)).as_bytes(), &[]);
        assert!(said.contains(expected), "said: {said}\nwant: {expected}");
        assert!(said.contains("1 of 2 lines are not valid jobs; nothing was enqueued"), "{said}");
    }
}

#[test]
fn an_unknown_model_is_told_with_the_known_ones() {
    let place = Place::new();
    place.write("in.jsonl", chats(1)).write(
        "promptmill.toml",
        "[[deployments]]\nendpoint = \"http://127.0.0.1:9\"\nmodel = \"gpt-4o\"\n",
    );
    let ended = place.run(&["run", "in.jsonl"]);
    assert_eq!(ended.code, Some(2));
    let expected = "no deployment serves the model 'gpt-4.1-mini'; use one of: gpt-4o";
    assert!(ended.err.contains(expected), "{}", ended.err);
    assert_eq!(place.queued(), 0);
}

#[test]
fn a_line_over_the_limit_is_told() {
    let long = format!("{}\n", chat("long", &"x".repeat(1_100_000), 5));
    let said = refused("in.jsonl", long.as_bytes(), &["--max-line-mib", "1"]);
    assert!(
        said.contains("in.jsonl, line 1: the line has 1 MiB, more than the limit of 1 MiB; split"),
        "{said}"
    );
}

#[test]
fn text_that_is_not_utf_8_is_told() {
    let mut bytes = two_lines().into_bytes();
    // Shift_JIS for 日本.
    bytes.extend_from_slice(b"{\"custom_id\":\"\x93\xfa\x96\x7b\"}\n");
    let said = refused("in.jsonl", &bytes, &[]);
    assert!(
        said.contains("in.jsonl, line 3: not UTF-8 from byte 15 on; save the file as UTF-8"),
        "{said}"
    );
    let utf16: Vec<u8> = [0xff, 0xfe].into_iter().chain(*b"{\0}\0").collect();
    let said = refused("in.jsonl", &utf16, &[]);
    assert!(said.contains("in.jsonl is UTF-16; save it as UTF-8"), "{said}");
}

#[test]
fn an_empty_file_is_told() {
    for content in ["", "\n\n  \n"] {
        let said = refused("in.jsonl", content.as_bytes(), &[]);
        assert!(
            said.contains("in.jsonl: the file is empty; write one JSON object a line"),
            "{said}"
        );
    }
}

#[test]
fn a_missing_file_and_a_folder_are_told() {
    let place = Place::new();
    let ended = place.run(&["run", "none.jsonl", "--simulate"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("can't read none.jsonl: No such file"), "{}", ended.err);
    let ended = place.run(&["run", ".", "--simulate"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("can't read .: is a directory"), "{}", ended.err);
}

#[test]
fn a_byte_order_mark_is_skipped_with_a_note() {
    let said = accepted(format!("\u{feff}{}", two_lines()).as_bytes());
    assert!(said.contains("in.jsonl begins with a byte order mark, which was skipped"), "{said}");
}

#[test]
fn windows_line_ends_and_a_last_line_without_end_are_fine() {
    accepted(two_lines().replace('\n', "\r\n").as_bytes());
    accepted(two_lines().trim_end().as_bytes());
}

#[test]
fn only_the_first_twenty_faults_are_shown_and_all_are_counted() {
    let said = refused("in.jsonl", "nonsense\n".repeat(50).as_bytes(), &[]);
    assert_eq!(said.matches("invalid JSON").count(), 20, "{said}");
    assert!(said.contains("… and 30 more") && said.contains("50 of 50 lines"), "{said}");
}

#[test]
fn skip_invalid_goes_on_with_the_good_lines_and_reports_the_bad_ones() {
    let place = Place::new();
    let again = chat("job-1", "another prompt", 5);
    place.write("in.jsonl", format!("{}nonsense\n{again}\n", chats(3)));
    let ended = place.run(&["run", "in.jsonl", "--simulate", "--skip-invalid"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert_eq!(place.ids("in.results.jsonl").len(), 3);
    let errors = place.lines("in.errors.jsonl");
    let codes: Vec<_> = errors
        .iter()
        .map(|e| (e["error"]["code"].as_str().unwrap(), &e["error"]["line"]))
        .collect();
    assert_eq!(codes, [("invalid_json_line", &4.into()), ("duplicate_custom_id", &5.into())]);
}

#[test]
fn without_an_endpoint_the_mend_is_named() {
    let place = Place::new();
    place.write("in.jsonl", two_lines());
    let ended = place.run(&["run", "in.jsonl"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("give --endpoint URL, or --simulate"), "{}", ended.err);
}

#[test]
fn a_misspelt_setting_is_named() {
    let place = Place::new();
    place.write("in.jsonl", two_lines()).write("promptmill.toml", "[worker]\nmax_trys = 3\n");
    let ended = place.run(&["run", "in.jsonl", "--simulate"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("max_trys"), "{}", ended.err);
}
