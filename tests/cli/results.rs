//! Results as tables, read by readers that others wrote.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stderr, reason = "who runs the tests learns what did not run")]

use std::process::Command;
use test_support as support;

use promptmill::simulator::SimulatorSettings;
use serde_json::Value;
use support::cli::{Place, chat};
use support::service::Service;

/// Thirty answers and one refusal, in Japanese.
fn place() -> (Place, Service) {
    let service = Service::start(SimulatorSettings::default());
    let place = Place::new();
    let config = format!("[[deployments]]\nname = \"sim\"\nendpoint = \"{}\"\n", service.url());
    let mut lines: String = (0..30)
        .map(|n| format!("{}\n", chat(&format!("仕事-{n}"), &format!("質問, \"{n}\"\n続き"), 32)))
        .collect();
    lines += &format!("{}\n", chat("拒否", "[[content_filter]]", 32));
    place.write("promptmill.toml", config).write("in.jsonl", lines);
    assert_eq!(place.run(&["run", "in.jsonl", "--batch", "night"]).code, Some(1));
    (place, service)
}

#[test]
fn a_csv_table_holds_every_outcome_whatever_is_in_it() {
    let (place, _service) = place();
    let ended = place.run(&["results", "night", "--format", "csv", "--ordered"]);
    assert_eq!(ended.code, Some(1), "one failed: {}", ended.err);
    let mut reader = csv::Reader::from_path(place.path("night.csv")).unwrap();
    let header = reader.headers().unwrap().clone();
    let at = |name: &str| header.iter().position(|column| column == name).unwrap();
    let rows: Vec<_> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 31);
    assert_eq!(&rows[7][at("custom_id")], "仕事-7");
    let lines = place.lines("night.results.jsonl");
    let body: Value = serde_json::from_str(&rows[7][at("body")]).unwrap();
    let same = lines.iter().find(|line| line["custom_id"] == "仕事-7").unwrap();
    assert_eq!(body, same["response"]["body"]);
    assert_eq!(body["choices"][0]["message"]["content"], rows[7][at("answer")]);
    assert_eq!(&rows[30][at("ending")], "failed");
    assert_eq!(&rows[30][at("error_code")], "content_filter");
}

#[test]
fn only_what_is_asked_for_is_written() {
    let (place, _service) = place();
    let args = ["results", "night", "--format", "csv", "--only", "failed,dead", "--out", "-"];
    let ended = place.run(&args);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(csv::Reader::from_reader(ended.out.as_bytes()).records().count(), 1);
    assert_eq!(place.run(&["results", "night", "--only", "good"]).code, Some(2));
    let wrong = ["results", "night", "--format", "csv", "--errors", "e"];
    assert_eq!(place.run(&wrong).code, Some(2), "a table has no second file");
}

/// Needs `PROMPTMILL_PEER_PYTHON`, a Python with `pyarrow`.
#[test]
fn a_parquet_table_is_read_by_apache_arrow() {
    let Ok(python) = std::env::var("PROMPTMILL_PEER_PYTHON") else {
        eprintln!("did not run: PROMPTMILL_PEER_PYTHON is not set");
        return;
    };
    let (place, _service) = place();
    let ended = place.run(&["results", "night", "--format", "parquet", "--ordered"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let script = "import json, sys, pyarrow.parquet as pq\n\
                  table = pq.read_table(sys.argv[1])\n\
                  print(json.dumps(table.to_pylist()))";
    let mut command = Command::new(python);
    let output = command.args(["-c", script]).arg(place.path("night.parquet")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows.len(), 31);
    assert_eq!(rows[7]["custom_id"], "仕事-7");
    assert!(rows[7]["error_code"].is_null() && rows[7]["prompt_tokens"].as_u64().unwrap() > 0);
    assert!(!rows[7]["answer"].as_str().unwrap().is_empty());
    assert_eq!(rows[30]["error_code"], "content_filter");
}
