//! What an input will take, before anything is spent: `promptmill plan` and the library behind it.
//!
//! Most of it is in simulated time. Where the clock is asked, a slow machine can't make a test fail;
//! `benches/plan-check` measures how near the forecast comes.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::fmt::Write;
use test_support as support;

use jiff::Timestamp;
use promptmill::config::{Config, DeploymentConfig};
use promptmill::intake::InputSource;
use promptmill::plan::{
    self, AssumedLength, BindingLimit, CallLatency, CallProfile, PlanForecast, PlanInputs,
};
use promptmill::prices::Prices;
use promptmill::simulator::{SimulatedLatency, SimulatorSettings};
use serde_json::{Value, json};
use support::cli::{Place, chat, chats};
use support::service::Service;

/// 8 prompt tokens and what the answer may have.
fn hellos(jobs: usize, max_tokens: u32) -> String {
    let line = |n| format!("{}\n", chat(&format!("job-{n}"), "Hello", max_tokens));
    (0..jobs).map(line).collect()
}

fn deployment(name: &str, model: &str) -> DeploymentConfig {
    DeploymentConfig {
        name: Some(name.into()),
        endpoint: format!("https://{name}.openai.azure.com"),
        model: Some(model.into()),
        ..DeploymentConfig::default()
    }
}

/// Answers as long as allowed, and calls that all take so many seconds.
fn exact(seconds: f64) -> CallProfile {
    let mut experience = CallProfile::default();
    experience.latency.others =
        CallLatency { first: seconds, per_token: 0.0, spread: 0.0, error: 0.0 };
    experience.answers.others = AssumedLength::Share(1.0);
    experience
}

fn forecast(
    input: &str,
    deployments: Vec<DeploymentConfig>,
    experience: &CallProfile,
) -> PlanForecast {
    let place = Place::new();
    place.write("in.jsonl", input);
    let sources = [InputSource::File(place.path("in.jsonl"))];
    let config = Config { deployments, ..Config::default() };
    let prices = Prices::load(None).unwrap();
    let worker = config.worker_settings();
    let circumstances = PlanInputs {
        members: &config.members().unwrap(),
        spill_after: worker.spill_after,
        max_held: worker.max_held,
        prices: &prices,
        profile: experience,
        workers: 1,
        begin: "2026-11-24T22:00:00+09:00".parse::<Timestamp>().unwrap(),
    };
    plan::forecast(&sources, &config.reading(), &circumstances).unwrap()
}

#[test]
fn each_kind_of_limit_is_named_and_its_time_is_right() {
    let mini = || deployment("east", "gpt-4.1-mini");
    let input = hellos(1_000, 92);
    // 100,000 tokens: of the first minute a part is over, and its whole quota is there.
    let tokens = DeploymentConfig { tpm: Some(20_000), rpm: Some(60_000), ..mini() };
    let found = forecast(&input, vec![tokens], &exact(1.0));
    assert_eq!(found.binding, BindingLimit::TokensAMinute);
    assert!((245.0..=305.0).contains(&found.seconds.p50), "{:?}", found.seconds);
    assert!((270.0..=305.0).contains(&found.seconds.p95), "{:?}", found.seconds);
    assert_eq!(found.refused, 0, "the worker's own pace meets no refusal");

    let requests = DeploymentConfig { tpm: Some(9_000_000), rpm: Some(240), ..mini() };
    let found = forecast(&input, vec![requests], &exact(1.0));
    assert_eq!(found.binding, BindingLimit::RequestsAMinute);
    // 98 % of them are used, less what timers of a millisecond lose.
    assert!((found.seconds.p50 / (250.0 / 0.98) - 1.0).abs() < 0.02, "{:?}", found.seconds);

    let calls = DeploymentConfig { tpm: Some(9_000_000), concurrency: Some(10), ..mini() };
    let found = forecast(&input, vec![calls], &exact(3.0));
    assert_eq!(found.binding, BindingLimit::CallsInFlight);
    assert!((found.seconds.p50 / 300.0 - 1.0).abs() < 0.01, "{:?}", found.seconds);

    let nothing = DeploymentConfig { tpm: Some(9_000_000), concurrency: Some(10), ..mini() };
    let found = forecast(&hellos(8, 92), vec![nothing], &exact(5.0));
    assert_eq!(found.binding, BindingLimit::Answers);

    let mut slow = exact(0.1);
    slow.calls_a_second = Some(10.0);
    let idle = DeploymentConfig { tpm: Some(9_000_000), ..mini() };
    let found = forecast(&input, vec![idle], &slow);
    assert_eq!(found.binding, BindingLimit::Workers);
    assert!((found.seconds.p50 / 100.0 - 1.0).abs() < 0.02, "{:?}", found.seconds);
}

#[test]
fn what_was_learnt_of_few_answers_makes_the_p95_later_and_not_the_p50() {
    let calls = || DeploymentConfig { concurrency: Some(10), ..deployment("east", "gpt-4.1-mini") };
    let few = |error| {
        let mut experience = exact(3.0);
        experience.latency.others.error = error;
        forecast(&hellos(1_000, 92), vec![calls()], &experience).seconds
    };
    let (sure, unsure) = (few(0.0), few(0.1));
    assert!((unsure.p50 / sure.p50 - 1.0).abs() < 0.01, "{unsure:?}");
    // The second slowest of nine is 1.2 standard errors slower than the middle one, the slowest 1.6.
    assert!((1.10..1.17).contains(&(unsure.p95 / sure.p95)), "{unsure:?}");
}

#[test]
fn another_deployment_and_more_quota_buy_what_they_should() {
    let east = DeploymentConfig { tpm: Some(20_000), ..deployment("east", "gpt-4.1-mini") };
    let found = forecast(&hellos(2_000, 92), vec![east], &exact(1.0));
    let with = |change: &str| {
        let change = found.what_if.iter().find(|what| what.change.contains(change)).unwrap();
        change.seconds / (change.seconds + change.saved)
    };
    assert!((with("10 % more tokens") - 1.0 / 1.1).abs() < 0.03, "{:?}", found.what_if);
    assert!((with("another deployment like east") - 0.5).abs() < 0.05, "{:?}", found.what_if);
    assert!((with("calls in flight") - 1.0).abs() < 0.01, "{:?}", found.what_if);
}

#[test]
fn every_tier_has_its_jobs_and_its_price() {
    let quota = |name: &str, tier| DeploymentConfig {
        tier,
        tpm: Some(30_000),
        ..deployment(name, "gpt-4.1-mini")
    };
    let flex = DeploymentConfig {
        name: Some("east-flex".into()),
        flex: true,
        ..deployment("east", "gpt-4.1-mini")
    };
    let hourly =
        DeploymentConfig { ptu: true, concurrency: Some(1), ..deployment("ptu", "gpt-4.1-mini") };
    let deployments = vec![hourly, flex, quota("east", 1), quota("west", 2)];
    let found = forecast(&hellos(1_500, 92), deployments, &exact(2.0));
    let parts = &found.costs.deployments;
    assert_eq!(parts.iter().map(|part| part.jobs).sum::<u64>(), 1_500);
    let cost = |n: usize| parts[n].cost.map(|cost| cost.known.amount());
    let price = |n: usize| parts[n].jobs as f64 * (8.0 * 0.4 + 92.0 * 1.6) / 1e6;
    assert!(parts[0].jobs > 0 && cost(0).is_none(), "what is provisioned is paid by the hour");
    assert!((cost(1).unwrap() - price(1) / 2.0).abs() < 1e-9, "flex is half the price");
    assert!((cost(3).unwrap() - price(3)).abs() < 1e-9 && parts[3].jobs > 0, "{parts:?}");
    let all = (0..4).map(price).sum::<f64>();
    assert!((found.costs.batch_api.known.amount() - all / 2.0).abs() < 1e-9);
}

#[test]
fn jobs_that_will_never_be_called_for_are_told() {
    let mut input = hellos(10, 92);
    let mut line = |id: &str, more: Value| {
        let mut line = chat(id, "Hello", 92);
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        writeln!(input, "{line}").unwrap();
    };
    line("late", json!({ "deadline": "2026-11-24T12:00:00Z" }));
    line("later", json!({ "not_before": "2026-11-24T22:05:00+09:00" }));
    writeln!(input, "{}", chat("large", "Hello", 70_000)).unwrap();
    let other = DeploymentConfig { tpm: Some(60_000), ..deployment("east", "gpt-4.1-mini") };
    let found = forecast(&input, vec![other], &exact(1.0));
    let turned_away = found.turned_away;
    assert_eq!((turned_away.expired, turned_away.too_large, turned_away.not_served), (1, 1, 0));
    assert!((300.0..303.0).contains(&found.seconds.p50), "one may not begin before: {found:?}");
}

#[test]
fn what_is_not_known_is_said_and_a_price_that_is_missing_is_not_nothing() {
    let own = deployment("east", "my-own-model");
    let input = hellos(5, 92).replace("gpt-4.1-mini", "my-own-model");
    let found = forecast(&input, vec![own], &CallProfile::default());
    let said = found.rests_on.join("\n");
    for part in ["(assumed)", "50 % of the tokens", "no tpm is set for east"] {
        assert!(said.contains(part), "{said}");
    }
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["costs"]["expected"], Value::Null);
}

#[test]
fn tokens_and_cost_are_those_that_the_run_is_billed_for() {
    let latency = SimulatedLatency { base_ms: 40.0, per_token_ms: 1.0, sigma: 0.2 };
    let service = Service::start(SimulatorSettings { latency, ..SimulatorSettings::default() });
    let place = Place::new();
    let config = format!(
        "[[deployments]]\nname = \"sim\"\nendpoint = \"{}\"\ntpm = 10_000_000\nconcurrency = 4\n",
        service.url()
    );
    place.write("promptmill.toml", config).write("in.jsonl", chats(120));
    let ran = place.run(&["run", "in.jsonl", "--batch", "night", "--quiet", "--json"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let ran: Value = serde_json::from_str(&ran.out).unwrap();
    let usage = place.run(&["usage", "--by", "model", "--json"]);
    let usage: Value = serde_json::from_str(&usage.out).unwrap();

    let planned = place.run(&["plan", "in.jsonl", "--like", "night", "--json"]);
    assert_eq!(planned.code, Some(0), "{}", planned.err);
    let planned: Value = serde_json::from_str(&planned.out).unwrap();
    assert_eq!(planned["tokens"]["prompt"], ran["prompt"]);
    assert_eq!(planned["tokens"]["completion"], ran["completion"]);
    assert_eq!(planned["costs"]["expected"], usage["total"]["cost"], "to the last digit");
    assert_eq!(planned["binding"], "calls_in_flight");
    let (seconds, real) = (planned["seconds"]["p50"].as_f64(), ran["seconds"].as_f64());
    let ratio = real.unwrap() / seconds.unwrap();
    // The machine may be as slow as it likes; the calls themselves can't have been faster.
    assert!(ratio > 0.8, "planned {seconds:?}, took {real:?}");
}

#[test]
fn a_benchmark_teaches_what_calls_take() {
    let latency = SimulatedLatency { base_ms: 50.0, per_token_ms: 2.0, sigma: 0.0 };
    let service = Service::start(SimulatorSettings { latency, ..SimulatorSettings::default() });
    let place = Place::new();
    let url = service.url();
    let mut args = vec!["bench", "--endpoint", &url, "--deployment", "d", "--warm-up", "0"];
    args.extend(["--count", "40", "--concurrency", "4", "--output-tokens", "40", "--quiet"]);
    let benched = place.run(&[&args[..], &["--report", "bench.json"]].concat());
    assert_eq!(benched.code, Some(0), "{}", benched.err);
    place.write("in.jsonl", hellos(300, 100));
    let flags = ["--concurrency", "1", "--output-tokens", "100", "--json"];
    let planned = place.run(&[&["plan", "in.jsonl", "--bench", "bench.json"], &flags[..]].concat());
    assert_eq!(planned.code, Some(0), "{}", planned.err);
    let planned: Value = serde_json::from_str(&planned.out).unwrap();
    // 300 calls of 250 ms at the least; a slow machine measures more.
    assert!(planned["seconds"]["p50"].as_f64().unwrap() > 0.9 * 75.0, "{planned}");
    let rests_on = planned["rests_on"].to_string();
    assert!(rests_on.contains("by the benchmark bench.json"), "{rests_on}");
    place.write("other.json", "{}");
    let refused = place.run(&["plan", "in.jsonl", "--tpm", "1000", "--bench", "other.json"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("other.json"), "{}", refused.err);
}

#[test]
fn it_says_whether_the_night_is_long_enough() {
    let place = Place::new();
    place.write("in.jsonl", hellos(600, 92));
    let plan = |more: &[&str]| {
        let night = ["--start", "2026-11-24T22:00:00+09:00", "--time-zone", "Asia/Tokyo"];
        let args = [&["plan", "in.jsonl", "--tpm", "10000"], &night[..], more].concat();
        place.run(&args)
    };
    // 60,000 tokens at 10,000 a minute.
    let fits = plan(&["--finish-by", "22:30", "--strict"]);
    assert_eq!(fits.code, Some(0), "{}", fits.err);
    assert!(fits.out.contains("wanted by 2026-11-24 22:30:00 JST: fits"), "{}", fits.out);
    let late = plan(&["--finish-by", "22:02"]);
    assert_eq!(late.code, Some(0));
    assert!(late.out.contains("does not fit"), "{}", late.out);
    let late = plan(&["--finish-by", "2026-11-24T22:02:00+09:00", "--strict", "--json"]);
    assert_eq!(late.code, Some(1));
    let late: Value = serde_json::from_str(&late.out).unwrap();
    assert_eq!(
        (&late["fits"], &late["finish_by"]),
        (&json!(false), &json!("2026-11-24T13:02:00Z"))
    );
    assert_eq!(plan(&["--finish-by", "soon"]).code, Some(2));
    assert_eq!(plan(&["--time-zone", "Mars/Base"]).code, Some(2));
}

#[test]
fn bad_lines_are_told_and_the_others_planned() {
    let place = Place::new();
    place.write("in.jsonl", format!("{}no job\n", hellos(20, 92)));
    let planned = place.run(&["plan", "in.jsonl", "--tpm", "10000", "--json"]);
    assert_eq!(planned.code, Some(1));
    assert!(planned.err.contains("in.jsonl"), "{}", planned.err);
    let json: Value = serde_json::from_str(&planned.out).unwrap();
    assert_eq!(json["jobs"], 20);
    let nowhere = place.run(&["plan", "in.jsonl"]);
    assert_eq!(nowhere.code, Some(2));
    assert!(nowhere.err.contains("--tpm"), "{}", nowhere.err);
}
