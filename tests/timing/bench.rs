//! `promptmill bench` against the simulator: what is counted, told apart and written.
//!
//! Times of a shared machine prove nothing, so these tests go by counts and by bounds that a slow
//! machine keeps too; `benches/bench-check` measures how exact it is.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use promptmill::bench::pipeline::{PipelineReport, PipelineStopReason as PipeEnded};
use promptmill::bench::report::{BenchReport, BenchStopReason};
use promptmill::outcome::OutcomeStatus;
use promptmill::simulator::{
    self, FaultRates, ProfileSetting, SimulatedLatency, SimulatorSettings,
};
use support::broker;
use support::cli::{Ended as Exited, Place, chats};
use support::service::Service;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

fn bench(place: &Place, service: &Service, more: &[&str]) -> Exited {
    let url = service.url();
    let mut args = vec!["bench", "--endpoint", &url, "--deployment", "d", "--warm-up", "0"];
    args.extend(["--prompt-tokens", "40", "--output-tokens", "20"]);
    args.extend(more);
    place.run(&args)
}

/// The report of a run that ended well.
fn report(place: &Place, service: &Service, more: &[&str]) -> BenchReport {
    let ended = bench(place, service, &[more, &["--json"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    serde_json::from_str(&ended.out).unwrap()
}

fn percentile(report: &BenchReport, share: f64) -> f64 {
    report.phases[0].latency.e2e.as_ref().unwrap().percentile(share).unwrap().ms
}

#[test]
fn every_request_is_counted_once_with_its_tokens() {
    let (place, service) = (Place::new(), Service::start(SimulatorSettings::default()));
    let found = report(&place, &service, &["--poisson", "400", "--count", "150"]);
    let ledger = serde_json::to_value(service.ledger()).unwrap();
    let phase = &found.phases[0];
    assert_eq!(found.ended, BenchStopReason::Complete);
    assert_eq!((phase.counts.succeeded, phase.counts.calls), (150, 150));
    assert_eq!(ledger["requests"], 150);
    assert_eq!(ledger["prompts"], 150, "each prompt is its own");
    assert_eq!(ledger["billed"]["prompt_tokens"], phase.counts.prompt_tokens);
    assert_eq!(ledger["billed"]["completion_tokens"], phase.counts.output_tokens);
    assert_eq!(phase.counts.prompt_tokens, 150 * 40, "as long as asked for");
    let charged: u64 = phase.series.iter().map(|second| second.charged_tokens).sum();
    assert_eq!(charged, 150 * 60);
    assert_eq!(phase.latency.ttft.as_ref().unwrap().count, 150);
    assert_eq!(phase.latency.e2e.as_ref().unwrap().count, 150);
    assert!(phase.client.cpu_us_per_request > 0.0);
}

#[test]
fn whole_answers_have_no_time_to_first_token_and_a_cache_may_help() {
    let (place, service) = (Place::new(), Service::start(SimulatorSettings::default()));
    let flags = ["--concurrency", "3", "--count", "30", "--no-stream", "--cacheable"];
    let found = report(&place, &service, &flags);
    assert_eq!(found.phases[0].latency.ttft, None);
    assert_eq!(found.phases[0].counts.succeeded, 30);
    assert_eq!(serde_json::to_value(service.ledger()).unwrap()["prompts"], 1);
}

#[test]
fn a_stall_shows_in_the_latencies_of_all_that_had_to_wait() {
    let latency = SimulatedLatency { base_ms: 100.0, ..SimulatedLatency::default() };
    let service = Service::start(SimulatorSettings { latency, ..SimulatorSettings::default() });
    let flags =
        ["--rate", "100", "--count", "20", "--max-in-flight", "1", "--stop-at-error-rate", "1"];
    let found = report(&Place::new(), &service, &flags);
    // The twentieth is meant to start at 190 ms and starts at 1,900 ms at the earliest.
    let last = found.phases[0].latency.e2e.as_ref().unwrap().max_ms;
    assert!(last >= 1_800.0, "{last} ms: counted from the actual start");
    assert!(percentile(&found, 0.5) >= 800.0, "{}", percentile(&found, 0.5));
    let lag = found.phases[0].client.lag.as_ref().unwrap();
    assert!(lag.max_ms >= 1_700.0, "the wait is told as lag too: {}", lag.max_ms);
    let flags = ["--rate", "100", "--duration", "1", "--max-in-flight", "1"];
    let cut = report(&Place::new(), &service, &flags);
    let counts = &cut.phases[0].counts;
    assert_eq!(counts.requests() + counts.unsent, 100, "{counts:?}");
    assert!(counts.requests() <= 11 && counts.unsent >= 89, "{counts:?}");
    let one_by_one = report(&Place::new(), &service, &["--concurrency", "1", "--count", "5"]);
    assert!(percentile(&one_by_one, 0.5) >= 100.0);
}

#[test]
fn throttled_and_failed_are_kept_apart_and_retries_are_counted() {
    let faults = FaultRates { rate_500: 0.3, ..FaultRates::default() };
    let limited = SimulatorSettings { tpm: Some(60 * 50), faults, ..SimulatorSettings::default() };
    let service = Service::start(limited);
    let flags = ["--rate", "200", "--count", "100", "--stop-at-error-rate", "1"];
    let found = report(&Place::new(), &service, &flags);
    let counts = &found.phases[0].counts;
    assert_eq!(counts.succeeded + counts.throttled + counts.failed, 100);
    assert!(counts.succeeded >= 1 && counts.failed >= 1 && counts.throttled >= 40, "{counts:?}");
    assert_eq!(counts.refused_calls, counts.throttled);
    assert_eq!(counts.codes.values().sum::<u64>(), counts.failed, "{counts:?}");

    let faults = FaultRates { rate_503: 0.3, ..FaultRates::default() };
    let service = Service::start(SimulatorSettings { faults, ..SimulatorSettings::default() });
    let flags = ["--concurrency", "20", "--count", "60", "--retry", "exponential"];
    let found = report(&Place::new(), &service, &flags);
    let counts = &found.phases[0].counts;
    assert_eq!(counts.succeeded, 60, "passing faults pass");
    assert!(counts.calls > 60);
}

#[test]
fn with_retries_a_service_that_asks_for_a_pause_is_not_flooded() {
    // Room for some calls, and then none until the minute is over, long after the phase's end.
    let limited = SimulatorSettings { tpm: Some(60 * 5), ..SimulatorSettings::default() };
    let service = Service::start(limited);
    let flags = ["--concurrency", "4", "--duration", "3", "--retry", "exponential"];
    let found = report(&Place::new(), &service, &flags);
    let counts = &found.phases[0].counts;
    assert_eq!(found.ended, BenchStopReason::Complete);
    assert!(counts.throttled >= 1, "{counts:?}");
    // Every place is refused a few times at most: by the minute that ends meanwhile, perhaps, too.
    assert!(counts.refused_calls <= 4 * 8, "{counts:?}");
    assert_eq!(service.ledger().requests, counts.calls);
}

#[test]
fn what_is_wrong_ends_it_at_once_with_its_exit_code() {
    let only =
        SimulatorSettings { deployments: vec!["other".into()], ..SimulatorSettings::default() };
    let (place, service) = (Place::new(), Service::start(only));
    let ended = bench(&place, &service, &["--rate", "50", "--quiet"]);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.out.contains("deployment's name"), "{}", ended.out);
    assert!(service.ledger().requests < 50, "it did not go on for a minute");

    let faults = FaultRates { rate_500: 1.0, ..FaultRates::default() };
    let service = Service::start(SimulatorSettings { faults, ..SimulatorSettings::default() });
    let ended = bench(&place, &service, &["--rate", "100", "--quiet"]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.out.contains("stopped: 100 % of the requests failed"), "{}", ended.out);

    let nobody = ["bench", "--endpoint", "http://127.0.0.1:1", "--model", "m", "--quiet"];
    assert_eq!(place.run(&nobody).code, Some(3));
    assert_eq!(place.run(&["bench", "--quiet"]).code, Some(2));
    assert_eq!(
        place.run(&[&nobody[..], &["--rate", "1", "--poisson", "1"]].concat()).code,
        Some(2)
    );
}

#[test]
fn utilisation_is_told_as_the_service_reports_it() {
    let ptu = [("d".to_owned(), vec![ProfileSetting::Ptu(Some(20_000))])];
    let service =
        Service::start(SimulatorSettings { overrides: ptu.into(), ..SimulatorSettings::default() });
    let found = report(&Place::new(), &service, &["--rate", "100", "--count", "50"]);
    let utilization = found.phases[0].utilization.unwrap();
    assert!((0.1..=100.0).contains(&utilization.max), "{utilization:?}");
    assert!(utilization.mean <= utilization.max);
}

#[test]
fn a_sweep_finds_the_knee_and_every_report_is_written() {
    let latency = SimulatedLatency { base_ms: 20.0, ..SimulatedLatency::default() };
    // 10 requests a second are what the quota gives: 60 tokens are booked for each.
    let settings = SimulatorSettings {
        latency,
        rpm: Some(600),
        request_slice: std::time::Duration::from_millis(100),
        ..SimulatorSettings::default()
    };
    let (place, service) = (Place::new(), Service::start(settings));
    let mut flags = vec!["--sweep", "1..4", "--duration", "1", "--retry", "exponential"];
    flags.extend(["--report", "r.json", "--csv", "r.csv", "--html", "r.html"]);
    let found = report(&place, &service, &flags);
    let levels: Vec<_> = found.phases.iter().map(|phase| phase.concurrency.unwrap()).collect();
    assert_eq!(levels, [1, 2, 4]);
    assert!(found.knee.is_some());
    let kept: BenchReport =
        serde_json::from_slice(&std::fs::read(place.path("r.json")).unwrap()).unwrap();
    assert_eq!(kept, found, "what is printed and what is kept are the same");
    let csv = std::fs::read_to_string(place.path("r.csv")).unwrap();
    assert_eq!(csv.lines().count(), 1 + found.phases.iter().map(|p| p.series.len()).sum::<usize>());
    let html = std::fs::read_to_string(place.path("r.html")).unwrap();
    for text in ["Throughput over time", "Latency, cumulative", "TTFT against", "saturation knee"] {
        assert!(html.contains(text), "{text}");
    }
    assert!(html.matches("<svg").count() >= 5);
    assert!(!html.contains("src=") && !html.contains("href=") && !html.contains("@import"));
}

#[test]
fn a_slower_service_is_told_from_the_same_one() {
    let place = Place::new();
    let service = |base_ms| {
        let latency = SimulatedLatency { base_ms, ..SimulatedLatency::default() };
        Service::start(SimulatorSettings { latency, ..SimulatorSettings::default() })
    };
    let (fast, slow) = (service(0.0), service(300.0));
    for (name, service) in [("a.json", &fast), ("b.json", &slow)] {
        report(&place, service, &["--concurrency", "10", "--count", "60", "--report", name]);
    }
    let compared = place.run(&["bench", "compare", "a.json", "b.json", "--json"]);
    assert_eq!(compared.code, Some(0), "{}", compared.err);
    let rows: serde_json::Value = serde_json::from_str(&compared.out).unwrap();
    let row = |figure: &str| {
        let rows = rows["phases"][0]["rows"].as_array().unwrap();
        rows.iter().find(|row| row["figure"] == figure).unwrap().clone()
    };
    for figure in ["E2E p50", "E2E as a whole", "TTFT p50"] {
        assert_eq!(row(figure)["significant"], true, "{}", row(figure));
    }
    assert!(row("E2E p50")["low"].as_f64().unwrap() > 0.0);
    assert_eq!(row("failed share")["significant"], false);
    let itself = place.run(&["bench", "compare", "a.json", "a.json"]);
    assert!(!itself.out.contains("differs"), "{}", itself.out);
    assert_eq!(place.run(&["bench", "compare", "a.json", "none.json"]).code, Some(2));
}

#[test]
fn a_recording_is_replayed_with_its_sizes_and_real_prompts_are_sent_marked() {
    let (place, service) = (Place::new(), Service::start(SimulatorSettings::default()));
    place.write(
        "t.csv",
        "offset_seconds,prompt_tokens,output_tokens\n7,100,5\n7.01,50,9\n7.2,25,1\n",
    );
    let found = report(&place, &service, &["--replay", "t.csv"]);
    assert_eq!(found.phases[0].counts.prompt_tokens, 175);
    assert_eq!(found.phases[0].counts.succeeded, 3);

    place.write("in.jsonl", chats(5));
    let url = service.url();
    let flags = ["bench", "--endpoint", &url, "--prompts", "in.jsonl", "--count", "20", "--json"];
    let ended = place.run(&[&flags[..], &["--warm-up", "0", "--quiet"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let prompts = service.answered();
    let real = prompts.keys().filter(|text| text.contains("prompt "));
    assert_eq!(real.count(), 20, "four rounds of five, none like another");
}

#[test]
fn a_deployment_of_the_configuration_is_named_and_seconds_are_told() {
    let (place, service) = (Place::new(), Service::start(SimulatorSettings::default()));
    let url = service.url();
    place.write(
        "promptmill.toml",
        format!(
            "[[deployments]]\nname = \"one\"\nendpoint = \"http://127.0.0.1:1\"\n\
             [[deployments]]\nname = \"two\"\nmodel = \"m\"\nendpoint = \"{url}\"\n"
        ),
    );
    let flags = ["bench", "--deployment", "two", "--concurrency", "2", "--warm-up", "0"];
    let ended = place.run(&[&flags[..], &["--duration", "2.5"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(service.ledger().requests > 0);
    assert!(ended.err.lines().filter(|line| line.contains("in flight")).count() >= 1);
    assert!(ended.out.contains("TTFT") && ended.out.contains("95 % interval"), "{}", ended.out);
    let unnamed = place.run(&["bench", "--quiet"]);
    assert_eq!(unnamed.code, Some(2));
    assert!(unnamed.err.contains("--deployment"), "{}", unnamed.err);
}

/// The report of a pipe whose jobs all succeeded.
fn pipe(place: &Place, more: &[&str]) -> PipelineReport {
    let flags = ["bench", "--pipeline", "--model", "m", "--json", "--prompt-tokens", "40"];
    let flags = [&flags[..], &["--output-tokens", "20"]].concat();
    let ended = place.run(&[&flags[..], more].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    serde_json::from_str(&ended.out).unwrap()
}

#[test]
fn the_pipe_is_measured_from_queue_to_store_and_leaves_nothing_in_the_state_directory() {
    let settings = SimulatorSettings { tpm: Some(600_000), ..SimulatorSettings::default() };
    let (place, service) = (Place::new(), Service::start(settings));
    let deployment = format!(
        "[[deployments]]\nname = \"one\"\nendpoint = \"{}\"\ntpm = 600000\n",
        service.url()
    );
    place.write("promptmill.toml", deployment).write("in.jsonl", chats(3));
    assert_eq!(place.run(&["enqueue", "in.jsonl"]).code, Some(0));
    let found = pipe(&place, &["--count", "250", "--concurrency", "8", "--report", "r.json"]);
    assert_eq!(found.ended, PipeEnded::Complete);
    assert_eq!((found.setup.jobs, found.setup.calls), (250, 8));
    assert_eq!((found.enqueued.jobs, found.worked.jobs), (250, 250));
    assert_eq!(found.worked.endings.get(&OutcomeStatus::Succeeded), Some(&250));
    assert_eq!(service.ledger().requests, 250, "each job was called for once");
    for lap in [&found.worked.record, &found.worked.settle] {
        assert_eq!(lap.as_ref().unwrap().count, 250, "{lap:?}");
    }
    assert_eq!(found.enqueued.send.as_ref().unwrap().count, 1, "one chunk");
    let quota = found.worked.quota.unwrap();
    let charged = quota.charged_tpm * found.worked.seconds / 60.0;
    assert_eq!((quota.tpm, charged.round()), (600_000, 250.0 * 60.0));
    assert!(found.worked.cpu_us_per_job > 0.0 && found.worked.jobs_per_commit >= 1.0);
    let written: PipelineReport =
        serde_json::from_slice(&std::fs::read(place.path("r.json")).unwrap()).unwrap();
    assert_eq!(written, found);
    assert_eq!(place.queued(), 3, "nobody's jobs are touched");
    let left = std::fs::read_dir(place.path(".promptmill")).unwrap();
    let left = left.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir());
    assert_eq!(left.count(), 0);
}

#[test]
fn the_pipe_alone_is_measured_with_answers_from_the_simulator() {
    let ended = Place::new().run(&["bench", "--pipeline", "--simulate", "--count", "60"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    for told in ["embedded, in ", "60 succeeded", "record ", "settle ", "not known"] {
        assert!(ended.out.contains(told), "{told}: {}", ended.out);
    }
    let flags = ["bench", "--pipeline", "--simulate", "--rate", "5"];
    assert_eq!(Place::new().run(&flags).code, Some(2), "a load shape has no meaning for it");
    let none = Place::new().run(&["bench", "--pipeline"]);
    assert_eq!(none.code, Some(2));
    assert!(none.err.contains("--simulate"), "{}", none.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pipe_is_measured_on_service_bus_and_cosmos_db_if_the_queue_is_empty() {
    let simulator = simulator::start("127.0.0.1:0".parse().unwrap(), SimulatorSettings::default())
        .await
        .unwrap();
    let broker = broker::start(broker::jobs()).await;
    let host = cosmos_support::own_host().await;
    let place = Place::new();
    let text = format!(
        "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n\
         [store.cosmos]\nendpoint = \"{}\"\ndatabase = \"{}\"\nemulator = true\nshards = 8\n\
         credential = {{ key = \"{}\" }}\n\
         [[deployments]]\nname = \"sim\"\nendpoint = \"http://{}/v1\"\n",
        broker::JOBS,
        broker.connection_string(),
        host.endpoint(),
        cosmos_support::settings(&host).database,
        host.key(),
        simulator.addr()
    );
    place.write("promptmill.toml", text).write("in.jsonl", chats(2));
    assert_eq!(place.run(&["init"]).code, Some(0));
    let found = pipe(&place, &["--count", "120"]);
    assert_eq!(found.worked.endings.get(&OutcomeStatus::Succeeded), Some(&120));
    assert!(found.setup.queue.contains("Service Bus"), "{}", found.setup.queue);
    assert!(found.setup.store.contains("Cosmos DB"), "{}", found.setup.store);
    let status = place.run(&["status", found.batch.as_str(), "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["batches"][0]["state"], "done");
    assert_eq!(status["batches"][0]["endings"]["succeeded"], 120);
    assert_eq!(place.run(&["enqueue", "in.jsonl"]).code, Some(0));
    let refused = place.run(&["bench", "--pipeline", "--model", "m", "--count", "5"]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(refused.err.contains("holds 2 jobs"), "{}", refused.err);
    assert_eq!(simulator.ledger().requests, 120, "and they were not worked");
}
