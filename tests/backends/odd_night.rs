//! A night on Service Bus and Cosmos DB in which a service answers oddly here and there.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use promptmill::simulator::SimulatorSettings;
use test_support::endpoint::{Endpoint, EndpointReply, EndpointRequest};
use test_support::fleet::{Fleet, Setup};

const JOBS: usize = 3_000;

/// A wrong model, a file that is gone, an answer with a bad byte, one passing 401; else an answer.
fn odd(request: &EndpointRequest, passed: &AtomicBool) -> EndpointReply {
    match request.prompt.as_str() {
        "prompt 700" => EndpointReply::error(404, "model_not_found", "The model does not exist."),
        "prompt 1400" => EndpointReply::error(404, "", "File with id 'file-x' not found."),
        "prompt 2100" => EndpointReply::new(
            200,
            b"{\"choices\":[{\"message\":{\"content\":\"caf\xe9\"},\"finish_reason\":\"stop\"}]}",
        ),
        _ if request.number > 500 && !passed.swap(true, Ordering::SeqCst) => {
            EndpointReply::error(401, "401", "Access denied due to invalid subscription key.")
        }
        _ => EndpointReply::chat("ok"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_jobs_and_four_odd_replies_leave_two_failures_and_nothing_to_do_again() {
    let setup = Setup { simulator: SimulatorSettings::default(), jobs: JOBS, ..Setup::default() };
    let fleet = Fleet::with(setup).await;
    let passed = Arc::new(AtomicBool::new(false));
    let endpoints: Vec<_> = (0..2)
        .map(|_| {
            let passed = passed.clone();
            Endpoint::start(move |request| odd(request, &passed))
        })
        .collect();
    let settings = std::fs::read_to_string(fleet.place.path("promptmill.toml")).unwrap();
    let (settings, _) = settings.split_once("[[deployments]]").unwrap();
    let deployments = endpoints.iter().enumerate().map(|(n, endpoint)| {
        format!("[[deployments]]\nname = \"d{n}\"\nendpoint = \"{}\"\n", endpoint.url())
    });
    fleet
        .place
        .write("promptmill.toml", deployments.fold(settings.to_owned(), |all, one| all + &one));
    fleet.drain(fleet.workers()).await;
    assert!(passed.load(Ordering::SeqCst));
    let results = fleet.place.run(&["results", "night", "--out", "out", "--errors", "err"]);
    assert!(matches!(results.code, Some(0 | 1)), "{}", results.err);
    let answers = fleet.place.lines("out");
    assert_eq!(answers.len(), JOBS - 2);
    assert_eq!(answers.iter().filter(|line| line.get("flaw").is_some()).count(), 1);
    let failed: Vec<_> =
        fleet.place.lines("err").iter().map(|line| line["custom_id"].clone()).collect();
    assert!(
        failed.len() == 2
            && ["job-700", "job-1400"].iter().all(|id| failed.contains(&(*id).into()))
    );
    let calls: usize = endpoints.iter().map(Endpoint::calls).sum();
    assert!((JOBS..JOBS + 40).contains(&calls), "{calls} calls");
}
