//! A quota that is told is used up, and hardly ever run into.
//!
//! The bands are wide enough for a busy machine; `benches/quota` measures how close it comes.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use std::time::Duration;
use test_support as support;

use promptmill::simulator::{FaultRates, SimulatedLatency, SimulatorSettings};
use support::cli::{Place, chats};
use support::service::Service;

fn used_and_refused(faults: FaultRates) -> (f64, f64) {
    let settings = SimulatorSettings {
        tpm: Some(600_000),
        window: Duration::from_secs(2),
        latency: SimulatedLatency { base_ms: 20.0, per_token_ms: 0.5, sigma: 0.3 },
        faults,
        ..SimulatorSettings::default()
    };
    let service = Service::start(settings);
    let place = Place::new();
    place.write("in.jsonl", chats(3_500));
    let ended = place.run(&["run", "in.jsonl", "--endpoint", &service.url(), "--tpm", "600000"]);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(place.ids("in.results.jsonl").len(), 3_500, "no job is lost");
    let ledger = serde_json::to_value(service.ledger()).unwrap();
    let windows = ledger["windows"].as_array().unwrap();
    let whole = &windows[1..windows.len() - 1];
    assert!(whole.len() >= 5, "{} windows", whole.len());
    let sum = |key: &str| whole.iter().map(|w| w[key].as_f64().unwrap()).sum::<f64>();
    let refused = ledger["refused"]["by_tokens"].as_f64().unwrap();
    (sum("charged") / sum("quota"), refused / ledger["answered"].as_f64().unwrap())
}

#[test]
fn a_told_quota_is_used_with_next_to_no_429s() {
    let (used, refused) = used_and_refused(FaultRates::default());
    assert!(used > 0.95, "{:.1} % of the quota used", used * 100.0);
    assert!(refused < 0.01, "{:.2} % refused", refused * 100.0);
}

#[test]
fn faults_do_not_cost_quota() {
    let (used, refused) = used_and_refused(FaultRates::spread(0.05));
    assert!(used > 0.94, "{:.1} % of the quota used", used * 100.0);
    assert!(refused < 0.01, "{:.2} % refused", refused * 100.0);
}
