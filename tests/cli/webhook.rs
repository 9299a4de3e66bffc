//! The webhook, held against the Standard Webhooks package.
//!
//! Needs a Python interpreter with `standardwebhooks`, named by PROMPTMILL_PEER_PYTHON; says so where
//! there is none.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stderr, reason = "who runs the tests learns what did not run")]

use std::time::Duration;
use test_support as support;

use promptmill::simulator::SimulatorSettings;
use serde_json::{Value, json};
use support::cli::{Place, chats};
use support::peer::Peer;
use support::service::{Service, wait_for, wait_until};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const JOBS: usize = 30;

fn receiver(failures: usize) -> Option<Peer> {
    let receiver = Peer::start("webhook.py", &[SECRET, &failures.to_string()]);
    if receiver.is_none() {
        eprintln!("not run: PROMPTMILL_PEER_PYTHON is not set");
    }
    receiver
}

fn place(service: &Service, url: &str) -> Place {
    let place = Place::new();
    place.write("in.jsonl", chats(JOBS));
    place.write(
        "promptmill.toml",
        format!(
            "[webhook]\nurl = \"{url}/hook\"\nsecret = \"{SECRET}\"\n\
             [[deployments]]\nname = \"sim\"\nendpoint = \"{}\"\n",
            service.url()
        ),
    );
    place
}

fn enqueue(place: &Place) {
    let enqueued = place.run(&["enqueue", "in.jsonl", "--batch", "night"]);
    assert_eq!(enqueued.code, Some(0), "{}", enqueued.err);
}

/// The one end that everything is about: verified by the package, and of one id.
fn one_end(lines: &[Value]) -> &Value {
    assert!(lines.iter().all(|line| line.get("forged").is_none()), "{lines:#?}");
    assert!(lines.iter().all(|line| line["id"] == lines[0]["id"]), "{lines:#?}");
    &lines.last().unwrap()["event"]
}

#[test]
fn of_three_workers_one_tells_the_end_until_it_is_heard() {
    let Some(receiver) = receiver(2) else { return };
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, &receiver.url);
    enqueue(&place);
    let workers: Vec<_> = (0..3).map(|_| place.spawn(&["work", "--drain"])).collect();
    for mut worker in workers {
        let ended = worker.wait();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(!ended.log.contains(SECRET), "the secret is not logged");
    }
    let lines = receiver.lines();
    assert_eq!(lines.len(), 3, "two refusals, and heard once: {lines:#?}");
    let event = one_end(&lines);
    assert_eq!(event["type"], "batch.completed");
    let data = &event["data"];
    assert_eq!((&data["batch"], &data["state"]), (&json!("night"), &json!("done")));
    assert_eq!((&data["jobs"], &data["endings"]), (&json!(JOBS), &json!({ "succeeded": JOBS })));
    assert_eq!(data["usage"]["prompt"], service.ledger().billed.usage.prompt_tokens);

    // Whoever works later finds it heard.
    assert_eq!(place.run(&["work", "--drain"]).code, Some(0));
    assert_eq!(receiver.lines().len(), 3);
}

#[test]
fn what_was_not_heard_is_told_by_the_next_worker_under_the_same_id() {
    let Some(receiver) = receiver(1_000) else { return };
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, &receiver.url);
    enqueue(&place);
    let mut doomed = place.spawn(&["work", "--drain"]);
    wait_until(|| !receiver.lines().is_empty());
    doomed.signal("KILL");
    doomed.wait();
    let status = place.run(&["status", "night", "--json"]);
    assert!(status.out.contains("\"state\":\"done\""), "{}", status.out);

    let refused = receiver.lines();
    let Some(other) = self::receiver(0) else { return };
    let config = std::fs::read_to_string(place.path("promptmill.toml")).unwrap();
    place.write("promptmill.toml", config.replace(&receiver.url, &other.url));
    let ended = place.run(&["work", "--drain"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let heard = other.lines();
    assert_eq!(heard.len(), 1);
    one_end(&[refused, heard].concat());
}

#[test]
fn a_worker_that_goes_on_tells_of_each_batch_when_it_ends() {
    let Some(receiver) = receiver(0) else { return };
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, &receiver.url);
    let mut worker = place.spawn(&["work"]);
    enqueue(&place);
    wait_for(Duration::from_secs(90), || !receiver.lines().is_empty());
    assert_eq!(one_end(&receiver.lines())["data"]["batch"], "night");
    worker.signal("TERM");
    assert_eq!(worker.wait().code, Some(0));
    assert_eq!(receiver.lines().len(), 1);
}

#[test]
fn run_tells_when_its_results_are_written() {
    let Some(receiver) = receiver(0) else { return };
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, &receiver.url);
    let ended = place.run(&["run", "in.jsonl", "--batch", "night"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(one_end(&receiver.lines())["data"]["batch"], "night");
    assert_eq!(receiver.lines().len(), 1);
}

#[test]
fn a_cancelled_batch_is_told_of_when_its_last_job_has_ended() {
    let Some(receiver) = receiver(0) else { return };
    let service = Service::start(SimulatorSettings::default());
    let place = place(&service, &receiver.url);
    enqueue(&place);
    let cancelled = place.run(&["cancel", "night"]);
    assert_eq!(cancelled.code, Some(0), "{}", cancelled.err);
    assert_eq!(receiver.lines().len(), 0, "its jobs have not ended yet");
    place.run(&["work", "--drain"]);
    let lines = receiver.lines();
    let event = one_end(&lines);
    assert_eq!((lines.len(), &event["type"]), (1, &json!("batch.cancelled")));
    assert_eq!(event["data"]["endings"], json!({ "cancelled": JOBS }));
    place.run(&["work", "--drain"]);
    assert_eq!(receiver.lines().len(), 1);
}

#[test]
fn half_a_webhook_is_told_at_start_and_no_secret_is_shown() {
    let place = Place::new();
    place.write("promptmill.toml", "[webhook]\nurl = \"https://a\"\n");
    let ended = place.run(&["status"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("webhook.url and webhook.secret"), "{}", ended.err);
    place.write(
        "promptmill.toml",
        format!("[webhook]\nurl = \"https://a\"\nsecret = \"{SECRET}\"\n"),
    );
    let shown = place.run(&["config"]);
    assert!(shown.out.contains("(hidden)") && !shown.out.contains(SECRET), "{}", shown.out);
}
