//! `enqueue`, `work`, `status`, `results`, `check`, `init` and `config` on local backends, as a user
//! types them.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use promptmill::simulator::{self, SimulatedLatency, SimulatorSettings};
use serde_json::Value;
use support::cli::{Ended, Place, chats};
use test_support as support;

fn place_with(url: &str) -> Place {
    let place = Place::new();
    place.write(
        "promptmill.toml",
        format!("[[deployments]]\nname = \"sim\"\nendpoint = \"{url}\"\n"),
    );
    place
}

fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_goes_through_the_commands_one_after_the_other() {
    let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), SimulatorSettings::default())
        .await
        .unwrap();
    let place = place_with(&format!("http://{}/v1", simulator.addr()));
    place.write("in.jsonl", chats(30));
    let init = place.run(&["init"]);
    assert_eq!(init.code, Some(0), "{}", init.err);
    assert!(init.out.contains("promptmill.db"), "{}", init.out);
    let enqueue = || place.run(&["enqueue", "in.jsonl", "--batch", "night", "--json"]);
    let enqueued = enqueue();
    assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
    assert_eq!(json_of(&enqueued)["jobs"], 30);
    assert_eq!(json_of(&enqueue())["waiting"], 30, "nothing is added twice");
    let status = || json_of(&place.run(&["status", "night", "--json"]));
    assert_eq!(status()["batches"][0]["pending"], 30);
    assert_eq!(status()["queue"]["active"], 30);
    assert_eq!(place.run(&["results", "night"]).code, Some(1), "none has ended yet");
    let worked = place.run(&["work", "--drain"]);
    assert_eq!(worked.code, Some(0), "{}", worked.err);
    assert!(worked.err.contains("30 succeeded"), "{}", worked.err);
    assert_eq!(status()["batches"][0]["state"], "done");
    let state: String =
        place.database().query_row("SELECT state FROM batches", [], |row| row.get(0)).unwrap();
    assert_eq!(state, "done", "it is stored, not only shown");
    assert_eq!(json_of(&enqueue())["known"], 30);
    let results = place.run(&["results", "night", "--ordered", "--out", "o", "--errors", "e"]);
    assert_eq!(results.code, Some(0), "{}", results.err);
    assert_eq!(place.ids("o"), (0..30).map(|n| format!("job-{n}")).collect::<Vec<_>>());
    assert_eq!(simulator.ledger().requests, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_watched_until_it_is_done() {
    let settings = SimulatorSettings {
        latency: SimulatedLatency { base_ms: 100.0, sigma: 0.1, ..SimulatedLatency::default() },
        ..SimulatorSettings::default()
    };
    let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
    let place = place_with(&format!("http://{}/v1\"\nconcurrency = 4\n# \"", simulator.addr()));
    place.write("in.jsonl", chats(150));
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "night"]).code, Some(0));
    let before = json_of(&place.run(&["status", "--json"]));
    let before = &before["batches"][0];
    assert_eq!((&before["rate"], &before["forecast"]["eta"]), (&Value::Null, &Value::Null));
    assert_eq!(before["cost"], 0.0, "nothing was used, so nothing was paid");
    let watch =
        |args: &[&str]| place.spawn(&[&["status", "--watch", "--interval", "1"], args].concat());
    let mut impatient = watch(&["night"]);
    while std::fs::read(place.path("process-0.out")).unwrap().is_empty() {
        assert!(impatient.is_running());
        tokio::task::yield_now().await;
    }
    impatient.signal("INT");
    assert_eq!(impatient.wait().code, Some(130));
    let mut watching = [watch(&["night"]), watch(&["--json"])];
    assert_eq!(place.run(&["work", "--drain"]).code, Some(0));
    let [text, looks] = watching.each_mut().map(|watching| {
        let ended = watching.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(ended.err.contains("batch night is done"), "{}", ended.err);
        ended.out
    });
    assert!(text.contains("night: running, 0/150, "), "{text}");
    assert!(text.contains("night: done, 150/150, 150 succeeded, cost 0."), "{text}");
    let looks: Vec<Value> = looks.lines().map(|look| serde_json::from_str(look).unwrap()).collect();
    let is_told = |look: &Value| {
        let batch = &look["batches"][0];
        let rate = batch["rate"]["jobs_per_second"].as_f64();
        rate > Some(0.0) && batch["forecast"]["eta"]["likely"].as_f64() > Some(0.0)
    };
    assert!(looks.iter().any(is_told), "{looks:?}");
    let last = looks.last().unwrap();
    assert_eq!(last["batches"][0]["state"], "done");
    assert_eq!(last["batches"][0]["endings"]["succeeded"], 150);
    assert_eq!(last["batches"][0]["forecast"], Value::Null);
    let usage = json_of(&place.run(&["usage", "night", "--json"]));
    assert_eq!(last["batches"][0]["cost"], usage["total"]["cost"]);
    assert!(usage["total"]["cost"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_is_not_there_is_said_with_exit_code_2() {
    let place = Place::new();
    for args in [["status", "nothing"], ["results", "nothing"], ["work", "--drain"]] {
        let ended = place.run(&args);
        assert_eq!(ended.code, Some(2), "{args:?} {}", ended.err);
    }
    place.write("in.jsonl", "{\n");
    let ended = place.run(&["enqueue", "in.jsonl"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("nothing was enqueued"), "{}", ended.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_what_answers_from_what_does_not() {
    let settings = SimulatorSettings { tpm: Some(120_000), ..SimulatorSettings::default() };
    let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), settings).await.unwrap();
    let place = place_with(&format!("http://{}/v1", simulator.addr()));
    let ended = place.run(&["check"]);
    assert_eq!(ended.code, Some(0), "{} {}", ended.out, ended.err);
    assert_eq!(simulator.ledger().billed.requests, 0, "a check costs nothing");
    let ended = place.run(&["check", "--call"]);
    assert!(ended.out.contains("quota: 120000 tokens a minute"), "{}", ended.out);
    assert_eq!(simulator.ledger().billed.requests, 1, "one call is made where it is asked for");
    let ended = place_with("http://127.0.0.1:9/v1").run(&["check", "--json"]);
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    let deployment = &json_of(&ended)["services"][2];
    assert!(deployment["problem"].as_str().unwrap().contains("refused"), "{deployment}");
}

#[test]
fn config_says_where_each_value_came_from_and_hides_secrets() {
    let place = Place::new();
    place.write(
        "promptmill.toml",
        "[worker]\nmax_tries = 3\n[store.cosmos]\nendpoint = \"https://a.example/\"\n\
         credential = { key = \"s3cret\" }\n[queue.service_bus]\nqueue = \"jobs\"\n",
    );
    let string = "Endpoint=sb://h/;SharedAccessKeyName=n;SharedAccessKey=s3cret";
    let mut command = place.command(&["--log", "trace", "config"]);
    command.env("PROMPTMILL__QUEUE__SERVICE_BUS__CONNECTION_STRING", string);
    let ended = Ended::from(command.output().unwrap());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    for line in [
        "max_tries = 3  # promptmill.toml",
        "max_deliveries = 10  # default",
        "connection_string = \"(hidden)\"  # PROMPTMILL__QUEUE__SERVICE_BUS__CONNECTION_STRING",
        "key = \"(hidden)\"  # promptmill.toml",
    ] {
        assert!(ended.out.lines().any(|l| l == line), "{line}\n{}", ended.out);
    }
    assert!(!format!("{ended:?}").contains("s3cret"));
    assert!(ended.out.parse::<toml::Table>().is_ok(), "{}", ended.out);
}

#[test]
fn a_run_is_refused_where_a_worker_is_at_work() {
    let place = place_with("http://127.0.0.1:9/v1");
    place.write("in.jsonl", chats(1));
    let state = promptmill::state::StateDir::lock_shared(&place.path(".promptmill")).unwrap();
    let refused = place.run(&["run", "in.jsonl"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("share it"), "{}", refused.err);
    drop(state);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_equals_the_services_own_ledger_by_any_key() {
    let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), SimulatorSettings::default())
        .await
        .unwrap();
    let place = place_with(&format!("http://{}/v1", simulator.addr()));
    let line = |n: usize| {
        let mut line = support::cli::chat(&format!("job-{n}"), &format!("prompt {n}"), 32);
        line["metadata"] =
            serde_json::json!({ "team": if n.is_multiple_of(2) { "東京" } else { "oslo" } });
        line["body"]["model"] = ["gpt-4.1-mini", "my-own"][n % 3 / 2].into();
        format!("{line}\n")
    };
    place.write("in.jsonl", (0..30).map(line).collect::<String>());
    assert_eq!(place.run(&["run", "in.jsonl", "--batch", "night"]).code, Some(0));
    let usage = |args: &[&str]| {
        let ended = place.run(&[&["usage", "night"], args].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        ended
    };
    let report = json_of(&usage(&["--by", "metadata.team,model", "--json"]));
    let ledger = simulator.ledger();
    assert_eq!(report["total"]["prompt"], ledger.billed.usage.prompt_tokens);
    assert_eq!(report["total"]["completion"], ledger.billed.usage.completion_tokens);
    assert_eq!(report["lines"].as_array().unwrap().len(), 4);
    assert_eq!(report["lines"][0]["keys"]["metadata.team"], "oslo");
    assert!(report["total"]["cost"].is_null(), "a part of it has no price: {report}");
    let table = usage(&["--by", "model"]);
    assert!(table.out.contains("my-own") && table.out.contains("unknown"), "{}", table.out);
    assert!(table.err.contains("prices of 20"), "{}", table.err);
    let csv = usage(&["--by", "metadata.team", "--csv"]);
    assert!(csv.out.starts_with("metadata.team,jobs,calls,prompt"), "{}", csv.out);
    assert_eq!(place.run(&["usage", "--by", "team"]).code, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_by_cause_shown_and_worked_again() {
    let start = |settings| simulator::start("127.0.0.1:0".parse().unwrap(), settings);
    let faults = simulator::FaultRates { rate_503: 1.0, ..simulator::FaultRates::default() };
    let broken = start(SimulatorSettings { faults, ..SimulatorSettings::default() }).await.unwrap();
    let place = place_with(&format!("http://{}/v1", broken.addr()));
    place.write("in.jsonl", chats(3));
    let work = |url: &str| {
        let mut command = place.command(&["work", "--drain"]);
        command.env("PROMPTMILL__WORKER__MAX_TRIES", "1");
        command.env("PROMPTMILL__DEPLOYMENTS__0__ENDPOINT", url);
        Ended::from(command.output().unwrap())
    };
    assert_eq!(place.run(&["enqueue", "in.jsonl", "--batch", "night"]).code, Some(0));
    assert_eq!(work(&format!("http://{}/v1", broken.addr())).code, Some(1));
    let listed = place.run(&["dead-letters", "list"]);
    assert!(listed.out.starts_with("3 RetriesExhausted, such as job-"), "{}", listed.out);
    let shown = place.run(&["dead-letters", "show", "job-1"]);
    assert_eq!(json_of(&shown)["message"]["custom_id"], "job-1", "{}", shown.out);
    assert_eq!(place.run(&["dead-letters", "retry"]).code, Some(2), "which?");
    let retried = place.run(&["dead-letters", "retry", "job-0", "job-1", "--batch", "night"]);
    assert!(retried.err.contains("2 jobs are back in the queue"), "{}", retried.err);
    let well = start(SimulatorSettings::default()).await.unwrap();
    assert_eq!(work(&format!("http://{}/v1", well.addr())).code, Some(0));
    let dropped = place.run(&["dead-letters", "drop", "--all"]);
    assert!(dropped.err.contains("1 dead letters were dropped"), "{}", dropped.err);
    let status = json_of(&place.run(&["status", "night", "--json"]));
    assert_eq!(status["batches"][0]["state"], "done", "{status}");
    let endings = &status["batches"][0]["endings"];
    assert_eq!((endings["succeeded"].as_u64(), endings["dead"].as_u64()), (Some(2), Some(1)));
}
