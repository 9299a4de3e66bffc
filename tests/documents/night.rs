//! Nights of documents, by the real binary: what is asked, what is not asked again, and what becomes of
//! a night that is killed.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use test_support as support;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as cosmos_support;

use promptmill::simulator::{FaultRates, SimulatedLatency, SimulatorSettings};
use serde_json::Value;
use support::azurite::{Azurite, Filler};
use support::broker;
use support::cli::{Ended, Place};
use support::service::{Service, wait_for, wait_until};

/// Calls in flight: what each kill may make us pay twice.
const CONCURRENCY: u64 = 4;

/// As long as a client may try by itself before it says that a service is away.
const LONG: Duration = Duration::from_secs(120);

/// Documents of several parts, which are combined.
const COMBINED: &str = "model = \"gpt-4.1-mini\"\npart_tokens = 40\n\
    prompt = \"Sum up {{ heading }} of {{ name }}: {{ text }}\"\n\
    [parameters]\nmax_completion_tokens = 40\n\
    [reduce]\nprompt = \"Make one of: {% for a in answers %}<{{ a }}> {% endfor %}\"\ngroup_tokens = 100\n";

fn service(settings: SimulatorSettings) -> Service {
    Service::start(settings)
}

/// A folder of `documents` texts with six sections each.
fn place(documents: usize, recipe: &str) -> Place {
    let place = Place::new();
    place.write("r.toml", recipe);
    std::fs::create_dir(place.path("docs")).unwrap();
    for n in 0..documents {
        place.write(&format!("docs/{n:03}.md"), text(n));
    }
    place
}

fn text(n: usize) -> String {
    let section = |part: usize| {
        format!(
            "# Section {part} of {n}\n\nWhat stands in section {part} of document number {n} is \
             said in one sentence of some length. 夜の文書、第{part}節。\n\n"
        )
    };
    (0..6).map(section).collect()
}

fn night<'a>(url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = [
        "documents",
        "--source",
        "docs",
        "--recipe",
        "r.toml",
        "--run",
        "--endpoint",
        url,
        "--concurrency",
        "4",
    ];
    [&args[..], &["--table", "table.jsonl", "--json"], more].concat()
}

/// Runs a night to its end and reads its report.
fn report(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|_| panic!("{ended:?}"))
}

fn table(place: &Place) -> BTreeMap<String, Value> {
    let rows = place.lines("table.jsonl").into_iter();
    rows.map(|row| (row["document"].as_str().unwrap().to_owned(), row)).collect()
}

fn requests(service: &Service) -> u64 {
    service.ledger().requests
}

#[test]
fn only_what_changed_is_called() {
    let service = service(SimulatorSettings::default());
    let place = place(12, COMBINED);
    let first = place.run(&night(&service.url(), &[]));
    assert_eq!(first.code, Some(0), "{}", first.err);
    let said = report(&first);
    assert_eq!(said["documents"]["new"], 12);
    let asked = said["requests"]["asked"].as_u64().unwrap();
    assert_eq!(requests(&service), asked);
    let before = table(&place);
    assert!(before.values().all(|row| row["state"] == "answered"), "{before:?}");

    let same = report(&place.run(&night(&service.url(), &[])));
    assert_eq!((&same["requests"]["asked"], requests(&service)), (&0.into(), asked));
    assert_eq!(same["requests"]["reused"], asked);
    assert_eq!(same["saved"]["usage"]["prompt"], said["usage"]["prompt"], "all of it is saved");
    assert_eq!(table(&place)["003.md"]["answer"], before["003.md"]["answer"]);

    for n in [2, 5, 7] {
        place
            .write(&format!("docs/{n:03}.md"), text(n).replace("Section 3 of", "Section three of"));
    }
    place.write("docs/new.md", text(77));
    std::fs::remove_file(place.path("docs/009.md")).unwrap();
    let third = report(&place.run(&night(&service.url(), &[])));
    let of = |name: &str| third["documents"][name].as_u64().unwrap();
    assert_eq!([of("all"), of("new"), of("changed"), of("same"), of("removed")], [12, 1, 3, 8, 1]);
    let now = requests(&service) - asked;
    assert_eq!(third["requests"]["asked"], now);
    // Of a changed document one part, and what is combined of it.
    let each = asked / 12;
    assert!(now <= each + 3 * (each - 5 + 1), "{now} calls, a document has {each}");
    assert!(service.answered().values().all(|answers| *answers == 1), "nothing is called twice");
    assert_eq!(table(&place)["002.md"]["standing"], "changed");
    assert_ne!(table(&place)["002.md"]["answer"], Value::Null);
}

#[test]
fn a_night_that_is_killed_goes_on_and_pays_nothing_known_twice() {
    let latency = SimulatedLatency { base_ms: 80.0, ..SimulatedLatency::default() };
    let service = service(SimulatorSettings {
        latency,
        faults: FaultRates::spread(0.05),
        ..SimulatorSettings::default()
    });
    let place = place(14, COMBINED);
    let url = service.url();
    // While parts are asked, and while they are combined: of 6 parts each, 84 in all.
    let mut kills = 0;
    for answers in [20, 60, 90, 100] {
        let mut night = place.spawn(&night(&url, &[]));
        wait_until(|| service.ledger().answered >= answers || !night.is_running());
        if night.is_running() {
            kills += 1;
        }
        night.signal("KILL");
        night.wait();
    }
    let mut ended = place.run(&night(&url, &[]));
    for _ in 0..3 {
        // A request that failed eight times is left to the next night.
        if ended.code == Some(1) {
            ended = place.run(&night(&url, &[]));
        }
    }
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(kills >= 3, "{kills} kills");
    let rows = table(&place);
    assert!(rows.len() == 14 && rows.values().all(|row| row["state"] == "answered"));
    let twice: u64 = service.answered().values().map(|answers| answers.saturating_sub(1)).sum();
    // Cut bodies were answered too, and are no answers.
    let cut = service.ledger().answered.saturating_sub(service.answered().len() as u64 + twice);
    assert!(twice <= kills * 2 * CONCURRENCY + cut + 4, "{twice} answers were paid twice");
}

const EXTRACTING: &str = "model = \"gpt-4.1-mini\"\nprompt = \"What is it? {{ text }}\"\n\
    schema = \"s.json\"\n[parameters]\nmax_completion_tokens = 200\n\
    [columns]\nnote = \"/note\"\namount = \"/total/amount\"\npaid = \"/paid\"\n";

const SCHEMA: &str = r#"{"type": "object", "additionalProperties": false,
    "required": ["note", "total", "paid"], "properties": {
    "note": {"type": "string"}, "paid": {"type": "boolean"},
    "total": {"type": "object", "additionalProperties": false, "required": ["amount"],
        "properties": {"amount": {"type": "number"}}}}}"#;

#[test]
fn answers_that_do_not_fit_are_mended_once_or_told() {
    let service = service(SimulatorSettings { misfits: 0.4, ..SimulatorSettings::default() });
    let place = place(60, EXTRACTING);
    place.write("s.json", SCHEMA);
    let ended = place.run(&night(&service.url(), &[]));
    assert_eq!(ended.code, Some(1), "some can't be mended: {}", ended.err);
    let said = report(&ended);
    let (answered, failed) =
        (said["rows"]["answered"].as_u64().unwrap(), said["rows"]["failed"].as_u64().unwrap());
    let repairs = said["requests"]["repairs"].as_u64().unwrap();
    assert_eq!(answered + failed, 60);
    assert!(repairs > failed && failed > 0, "{said}");
    assert_eq!(requests(&service), 60 + repairs);
    for row in place.lines("table.jsonl") {
        match row["state"].as_str().unwrap() {
            "answered" => assert_eq!(row["answer"]["paid"], true, "{row}"),
            state => {
                assert_eq!(state, "failed");
                let error = row["error"].as_str().unwrap();
                assert!(
                    error.contains("even after a repair") && error.contains("not JSON"),
                    "{error}"
                );
            }
        }
    }
    // What failed is known as well; it is asked again when somebody says so.
    let again = report(&place.run(&night(&service.url(), &[])));
    assert_eq!(
        (&again["requests"]["asked"], &again["rows"]["failed"]),
        (&0.into(), &failed.into())
    );
    let retried = report(&place.run(&night(&service.url(), &["--retry-failed"])));
    assert!(retried["requests"]["asked"].as_u64().unwrap() >= failed);

    let url = service.url();
    let csv = ["documents", "--source", "docs", "--recipe", "r.toml", "--run", "--endpoint", &url];
    place.run(&[&csv[..], &["--table", "t.csv"]].concat());
    let text = std::fs::read_to_string(place.path("t.csv")).unwrap();
    assert!(text.lines().next().unwrap().ends_with(",answer,amount,note,paid"), "{text}");
    assert_eq!(text.lines().filter(|line| line.ends_with(",true")).count() as u64, answered);
}

#[test]
fn what_can_not_be_read_is_told_and_the_rest_is_done() {
    let service = service(SimulatorSettings::default());
    let recipe = "model = \"gpt-4.1-mini\"\nprompt = \"{{ metadata.kind }} {{ text }}{{ row }}\"\n\
                  [parameters]\nmax_completion_tokens = 9\n";
    let place = place(2, recipe);
    place.write("docs/empty.txt", "");
    place.write("docs/broken.pdf", b"%PDF-1.7\nnothing of the kind");
    place.write("docs/people.csv", "name,town\n佐藤,東京\nMüller,Köln\n");
    let ended = place.run(&night(&service.url(), &[]));
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let said = report(&ended);
    assert_eq!((&said["documents"]["unread"], &said["rows"]["answered"]), (&2.into(), &4.into()));
    assert!(ended.err.contains("broken.pdf: unread: "), "{}", ended.err);
    let rows = place.lines("table.jsonl");
    let of = |name: &str| rows.iter().filter(|row| row["document"] == name).count();
    assert_eq!((of("people.csv"), of("empty.txt")), (2, 1), "a row of the table each");
}

#[test]
fn a_recipe_or_a_time_that_can_not_be_is_refused_before_anything_is_asked() {
    let service = service(SimulatorSettings::default());
    let place = place(3, COMBINED);
    let url = service.url();
    let refused = |args: &[&str], code: i32, says: &str| {
        let ended = place.run(args);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        assert!(ended.err.contains(says), "{}", ended.err);
    };
    place.write("wrong.toml", COMBINED.replace("{{ name }}", "{{ nmae }}"));
    let wrong = ["documents", "--source", "docs", "--recipe", "wrong.toml", "--preview", "1"];
    refused(&wrong, 2, "'prompt' names 'nmae'");
    let nowhere = ["documents", "--source", "dcos", "--recipe", "r.toml", "--preview", "1"];
    refused(&nowhere, 2, "dcos is no folder");
    let sheet = ["documents", "--source", "docs", "--recipe", "r.toml", "--table", "t.xlsx"];
    refused(&sheet, 2, ".parquet");
    let alone = ["documents", "--source", "docs", "--recipe", "r.toml", "--simulate"];
    refused(&alone, 2, "go with --run");
    // Three documents of six parts at one request a minute take longer than the shortest night.
    let soon = (jiff::Timestamp::now() + Duration::from_secs(90)).to_string();
    let late = night(&url, &["--rpm", "1", "--finish-by", &soon, "--strict"]);
    refused(&late, 1, "nothing is sent");
    assert_eq!(requests(&service), 0);
    let preview =
        place.run(&["documents", "--source", "docs", "--recipe", "r.toml", "--preview", "1"]);
    assert_eq!(preview.code, Some(0), "{}", preview.err);
    assert!(preview.out.contains("Sum up Section 0 of 0 of 000.md"), "{}", preview.out);
    let file = ["documents", "--source", "docs", "--recipe", "r.toml", "--batch-file", "b.jsonl"];
    assert_eq!(place.run(&file).code, Some(0));
    let run = place.run(&["run", "b.jsonl", "--endpoint", &url, "--out", "o", "--errors", "e"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(place.ids("o").len() as u64, requests(&service));
}

#[test]
fn a_night_that_the_simulator_answered_is_asked_again_of_a_real_endpoint() {
    let service = service(SimulatorSettings::default());
    let place = place(2, COMBINED);
    let simulated =
        ["documents", "--source", "docs", "--recipe", "r.toml", "--run", "--simulate", "--json"];
    let first = place.run(&simulated);
    assert_eq!(first.code, Some(0), "{}", first.err);
    let batch = report(&first)["batch"].as_str().unwrap().to_owned();
    assert!(batch.ends_with("-simulated"), "{batch}");
    let second = place.run(&night(&service.url(), &[]));
    assert_eq!(second.code, Some(0), "{}", second.err);
    assert!(requests(&service) > 0, "nothing of it is reused");
    let again = place.run(&simulated);
    assert_eq!(again.code, Some(0), "{}", again.err);
}

#[test]
fn a_night_that_nobody_works_ends_with_its_time_and_says_that_it_was_missed() {
    let service = service(SimulatorSettings::default());
    let place = place(2, COMBINED);
    let soon = (jiff::Timestamp::now() + Duration::from_secs(3)).to_string();
    place.write(
        "promptmill.toml",
        format!("[worker]\nrequest_timeout_seconds = 1\n{}", deployment(&service)),
    );
    let late =
        ["documents", "--source", "docs", "--recipe", "r.toml", "--finish-by", &soon, "--json"];
    let ended = place.run(&late);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    let said = report(&ended);
    assert_eq!((&said["is_met"], &said["rows"]["unfinished"]), (&false.into(), &2.into()));
    assert!(ended.err.contains("it was not answered in time"), "{}", ended.err);
    // What it left in the queue is over too; the next night asks anew.
    let worked = place.run(&["work", "--drain"]);
    assert_eq!((worked.code, requests(&service)), (Some(1), 0), "{}", worked.err);
    let next = place.run(&night(&service.url(), &[]));
    assert_eq!(next.code, Some(0), "{}", next.err);
    assert!(table(&place).values().all(|row| row["state"] == "answered"));
}

/// A night whose prompts go to workers, by a process that is stopped and started again.
fn night_for_workers(place: &Place, service: &Service) {
    let conduct = ["documents", "--source", "docs", "--recipe", "r.toml", "--batch", "tonight"];
    let no_wait = place.run(&[&conduct[..], &["--no-wait"]].concat());
    assert_eq!(no_wait.code, Some(0), "{}", no_wait.err);
    assert!(no_wait.err.contains("prompts are in the queue"), "{}", no_wait.err);
    let mut worker = place.spawn(&["work"]);
    let whole = [&conduct[..], &["--table", "table.jsonl", "--json"]].concat();
    let mut first = place.spawn(&whole);
    wait_until(|| service.ledger().answered >= 10);
    let second = place.run(&whole);
    assert_eq!(second.code, Some(0), "{}", second.err);
    first.signal("TERM");
    let stopped = first.wait();
    assert!(matches!(stopped.code, Some(0 | 130)), "{stopped:?}");
    let ended = place.run(&whole);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    worker.signal("TERM");
    worker.wait();
    let rows = table(place);
    assert!(rows.len() == 8 && rows.values().all(|row| row["state"] == "answered"), "{rows:?}");
    let status: Value =
        serde_json::from_str(&place.run(&["status", "tonight", "--json"]).out).unwrap();
    assert_eq!(status["batches"][0]["state"], "done");
    assert_eq!(status["batches"][0]["pending"], 0);
    let twice: HashMap<_, _> =
        service.answered().into_iter().filter(|(_, answers)| *answers > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

fn slow() -> Service {
    let latency = SimulatedLatency { base_ms: 60.0, ..SimulatedLatency::default() };
    service(SimulatorSettings { latency, ..SimulatorSettings::default() })
}

fn deployment(service: &Service) -> String {
    format!("[[deployments]]\nname = \"sim\"\nendpoint = \"{}\"\nconcurrency = 4\n", service.url())
}

#[test]
fn workers_answer_a_night_that_stops_and_goes_on() {
    let service = slow();
    let place = place(8, COMBINED);
    place.write("promptmill.toml", deployment(&service));
    night_for_workers(&place, &service);
}

/// A place whose queue and store are doubles of Azure's.
fn on_azure(
    service: &Service,
    runtime: &tokio::runtime::Runtime,
    more: &str,
) -> (Place, service_bus_broker::Broker, cosmos_host::Host) {
    let broker = runtime.block_on(broker::start(broker::jobs()));
    let host = runtime.block_on(cosmos_support::own_host());
    let place = place(8, COMBINED);
    let text = format!(
        "[queue.service_bus]\nqueue = \"{}\"\nconnection_string = \"{}\"\n\
         [store.cosmos]\nendpoint = \"{}\"\ncredential = {{ key = \"{}\" }}\nemulator = true\n\
         shards = 4\n{more}",
        broker::JOBS,
        broker.connection_string(),
        host.endpoint(),
        host.key()
    );
    place.write("promptmill.toml", text + &deployment(service));
    let ready = place.run(&["init"]);
    assert_eq!(ready.code, Some(0), "{}", ready.err);
    (place, broker, host)
}

#[test]
fn a_night_on_service_bus_and_cosmos() {
    let service = slow();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (place, _broker, _host) = on_azure(&service, &runtime, "");
    night_for_workers(&place, &service);
}

#[test]
fn a_store_that_is_away_for_a_while_holds_a_night_up_and_ends_it_not() {
    let service = slow();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (place, _broker, host) = on_azure(&service, &runtime, "patience_s = 1\n");
    let mut worker = place.spawn(&["work"]);
    let args = ["documents", "--source", "docs", "--recipe", "r.toml", "--table", "table.jsonl"];
    let mut night = place.spawn(&args);
    wait_until(|| service.ledger().answered >= 10);
    host.pause();
    wait_for(LONG, || night.log().contains("queue or store unavailable: the night waits"));
    host.resume();
    wait_for(LONG, || !night.is_running());
    let ended = night.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    worker.signal("TERM");
    worker.wait();
    let rows = table(&place);
    assert!(rows.len() == 8 && rows.values().all(|row| row["state"] == "answered"), "{rows:?}");
}

#[test]
fn unchanged_blobs_are_neither_downloaded_nor_asked() {
    let Some(azurite) = Azurite::start(None) else { return };
    let Some(mut filler) = Filler::start(&azurite, "docs", None) else { return };
    for n in 0..5 {
        filler.put(&format!("reports/{n}.md"), &text(n));
    }
    let service = service(SimulatorSettings::default());
    let place = Place::new();
    place.write("r.toml", COMBINED);
    let signature = filler.sas("rl", 1);
    place
        .write("promptmill.toml", format!("[documents]\nemulator = true\nsas = \"{signature}\"\n"));
    let (source, url) = (azurite.container("docs"), service.url());
    let args =
        ["documents", "--source", &source, "--recipe", "r.toml", "--run", "--endpoint", &url];
    let night = || {
        let ended = place.run(&[&args[..], &["--json", "--table", "table.jsonl"]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        report(&ended)
    };
    let first = night();
    assert_eq!(first["documents"]["new"], 5);
    assert_eq!(azurite.downloads("4.md"), 5);
    filler.put("reports/3.md", &text(3).replace("section 2", "section two"));
    filler.put("reports/5.md", &text(5));
    filler.tell(&serde_json::json!(["delete", "reports/0.md"]));
    let second = night();
    let of = |name: &str| second["documents"][name].as_u64().unwrap();
    assert_eq!([of("new"), of("changed"), of("same"), of("removed")], [1, 1, 3, 1]);
    assert_eq!(azurite.downloads("5.md"), 7, "the changed and the new one alone");
    assert_eq!(table(&place).len(), 5);
    let asked = |report: &Value| report["requests"]["asked"].as_u64().unwrap();
    assert_eq!(requests(&service), asked(&first) + asked(&second));
}
