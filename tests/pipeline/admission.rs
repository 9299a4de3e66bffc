//! All of the quota, next to no 429s: admission against the service's own accounting, in simulated
//! time. Each test is a row of the table in `docs/admission.md`.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the rows of a table, for people who ask with --nocapture")]

use std::time::Duration;
use test_support::pool;

use pool::{Flex, Report, Scene, Service, Sizes};
use promptmill::admission::deployment::DeploymentLimits;
use promptmill::deployment::ServiceKind::{Flex as FlexTier, Provisioned};
use promptmill::simulator::{HeaderStyle, MeterRules};

/// Answers without rate-limit headers.
const SILENT: MeterRules = MeterRules { headers: HeaderStyle::None, ..MeterRules::DOCUMENTED };

const MIXED: Sizes = Sizes::Mixed(50, 8_000);

fn told(tpm: Option<u64>) -> DeploymentLimits {
    let (concurrency, unpaced_concurrency) = (256, 256);
    DeploymentLimits { tpm, concurrency, unpaced_concurrency, ..DeploymentLimits::default() }
}

/// The limits of a deployment whose `concurrency` nobody sets.
fn learnt(tpm: Option<u64>) -> DeploymentLimits {
    DeploymentLimits { tpm, concurrency: 4_096, ..DeploymentLimits::default() }
}

fn one(tpm: u64) -> Service {
    Service { told: told(Some(tpm)), tpm, ..Service::default() }
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Prints the row, and checks it: the least part of the quota used from a window on, and the most
/// refusals by success.
fn check(what: &str, report: &Report, from: usize, least: f64, most: f64) {
    let used: Vec<_> = report.services.iter().map(|service| service.from(from)).collect();
    let shown: Vec<_> = used.iter().map(|used| format!("{:.2} %", used * 100.0)).collect();
    println!("{what}: {} used, {:.3} % refused", shown.join(", "), report.refusals() * 100.0);
    assert_eq!(report.lost, 0, "{what}");
    assert!(used.iter().all(|used| *used >= least), "{what}: {:?}", report.services);
    assert!(report.refusals() <= most, "{what}: {} of {}", report.refused, report.succeeded);
}

#[test]
fn a_told_quota_is_used_up() {
    let report = Scene::of(vec![one(300_000)]).run(8);
    check("told, jobs of 1,000 tokens", &report, 0, 0.99, 0.002);
}

#[test]
fn a_told_quota_is_used_up_by_mixed_sizes() {
    let report = Scene::of(vec![one(300_000)]).sized(MIXED).run(8);
    check("told, jobs of 50 to 8,000 tokens", &report, 0, 0.99, 0.002);
}

#[test]
fn a_told_quota_is_used_up_beside_faults() {
    let service = Service { faults: 0.05, ..one(300_000) };
    let report = Scene::of(vec![service]).sized(MIXED).run(8);
    check("told, mixed, 5 % faults", &report, 0, 0.99, 0.002);
}

#[test]
fn a_told_quota_without_headers_is_used_up() {
    let service = Service { rules: SILENT, ..one(300_000) };
    let report = Scene::of(vec![service]).run(8);
    check("told, no headers", &report, 0, 0.99, 0.002);
}

#[test]
fn a_quota_that_is_not_told_is_read_off_the_headers() {
    let service = Service { told: told(None), ..one(300_000) };
    let report = Scene::of(vec![service]).sized(MIXED).run(6);
    check("not told, headers", &report, 2, 0.95, 0.02);
}

#[test]
fn a_quota_that_nobody_tells_is_found() {
    let service = Service { told: told(None), rules: SILENT, ..one(300_000) };
    let report = Scene::of(vec![service]).run(10);
    check("not told, no headers", &report, 2, 0.95, 0.02);
}

#[test]
fn a_quota_that_changes_is_followed() {
    for (what, factor) in [("halved", 0.5), ("doubled", 2.0)] {
        let tpm = (300_000.0 * factor) as u64;
        let changes = vec![(minutes(4), tpm)];
        let report = Scene::of(vec![Service { changes, ..one(300_000) }]).sized(MIXED).run(10);
        // The window of the change is number 3 of the whole ones; two later it is over.
        check(&format!("{what} half-way"), &report, 5, 0.95, 0.005);
    }
}

#[test]
fn another_charge_than_ours_is_learnt() {
    for factor in [0.6, 1.5] {
        let service = Service { factor, ..one(300_000) };
        let report = Scene::of(vec![service]).sized(MIXED).run(8);
        check(&format!("charged at x{factor}"), &report, 0, 0.95, 0.01);
    }
}

#[test]
fn a_failing_deployment_slows_no_other() {
    let failing = Some((minutes(3), minutes(5)));
    let services = vec![
        Service { latency: Duration::from_secs(1), ..one(300_000) },
        Service { latency: Duration::from_secs(5), phase: minutes(0), ..one(120_000) },
        Service { outage: failing, ..one(600_000) },
    ];
    let report = Scene::of(services).sized(MIXED).run(9);
    let used = &report.services;
    // Windows 3 and 4 of the third are those of the outage, and the ones around it in part.
    let healthy = [&used[0].windows[..], &used[1].windows[..], &used[2].windows[..1]];
    let least = healthy.concat().into_iter().fold(f64::MAX, f64::min);
    println!(
        "one of three fails for two minutes: {used:?}, {:.3} % refused",
        report.refusals() * 100.0
    );
    assert!(least >= 0.97, "{used:?}");
    assert!(used[2].windows[5] >= 0.97, "it is used again: {used:?}");
    assert_eq!(report.lost, 0);
}

#[test]
fn a_reserve_is_left_free_and_others_are_let_pass() {
    let told = DeploymentLimits { reserve: 0.2, ..told(Some(300_000)) };
    let report = Scene::of(vec![Service { told: told.clone(), ..one(300_000) }]).run(6);
    let used = report.services[0].from(0);
    assert!((0.785..=0.80).contains(&used), "{used}");
    // Others take a tenth: what stays free is still a fifth.
    let service = Service { told, others: 500, ..one(300_000) };
    let report = Scene::of(vec![service]).run(6);
    let used = report.services[0].from(1);
    println!("reserve 0.2, others use 10 %: {:.2} % used", used * 100.0);
    assert!((0.68..=0.71).contains(&used), "{:?}", report.services);
    assert_eq!(report.refused, 0);
}

#[test]
fn a_share_is_kept_and_its_change_brings_no_burst() {
    let shares = vec![(Duration::ZERO, 0.25), (minutes(4), 1.0)];
    // The others use the rest, until they go.
    let scene = Scene { shares, ..Scene::of(vec![Service { rules: SILENT, ..one(300_000) }]) };
    let report = scene.run(8);
    let windows = &report.services[0].windows;
    assert!(windows[..3].iter().all(|used| (0.24..=0.26).contains(used)), "{windows:?}");
    assert!(windows[5] >= 0.985 && report.refused == 0, "{windows:?}");
}

#[test]
fn siblings_that_use_their_parts_are_no_reason_to_use_less_or_more() {
    // Three others with a quarter each, booking as evenly as we do.
    let service = Service { others: 3_740, ..one(300_000) };
    let scene = Scene { shares: vec![(Duration::ZERO, 0.25)], ..Scene::of(vec![service]) };
    let report = scene.sized(MIXED).run(8);
    println!("a share of a quarter beside siblings: {:?}", report.services);
    let used = report.services[0].from(0);
    assert!((0.24..=0.255).contains(&used), "{:?}", report.services);
    assert!(report.refusals() <= 0.01, "{}", report.refused);
}

#[test]
fn many_small_jobs_under_many_requests_a_minute() {
    let told = DeploymentLimits { rpm: Some(6_000), ..told(Some(1_000_000)) };
    let service = Service { told, rpm: Some(6_000), tpm: 1_000_000, ..Service::default() };
    let report = Scene::of(vec![service]).sized(Sizes::Even(180)).run(5);
    check("1,000,000 a minute, 6,000 requests, jobs of 180 tokens", &report, 0, 0.99, 0.002);
}

#[test]
fn a_provisioned_deployment_is_used_first_and_the_rest_spills() {
    let limits = DeploymentLimits { service: Provisioned, ..told(None) };
    let ptu = Service { told: limits, ptu: true, ..one(300_000) };
    let report = Scene::of(vec![ptu, Service { tier: 1, ..one(120_000) }]).sized(MIXED).run(8);
    check("provisioned, and what spills over", &report, 0, 0.97, 0.04);
}

#[test]
fn a_flex_tier_is_used_while_it_has_room_and_shares_the_quota() {
    let flex = Flex { room: minutes(2), period: minutes(4), quota_of: 1 };
    let limits = DeploymentLimits { service: FlexTier, ..told(Some(300_000)) };
    let lanes = vec![
        Service { told: limits, flex: Some(flex), ..one(300_000) },
        Service { tier: 1, ..one(300_000) },
    ];
    let report = Scene::of(lanes).sized(MIXED).run(14);
    let [flex, standard] = &report.services[..] else { panic!("two lanes") };
    let both: Vec<_> = flex.windows.iter().zip(&standard.windows).map(|(f, s)| f + s).collect();
    let used = both.iter().sum::<f64>() / both.len() as f64;
    println!(
        "flex room in two of four minutes, one quota: {:.2} % used, by minutes of flex {:?}, {} of \
         {} calls tried for room, {} refused for quota",
        used * 100.0,
        flex.windows,
        report.no_room,
        report.succeeded,
        report.refused,
    );
    assert!(both.iter().all(|used| *used >= 0.98), "{both:?}");
    // Its room lasts for all of these windows, and for none of those.
    assert!([0, 4, 8, 12].iter().all(|n| flex.windows[*n] >= 0.95), "{:?}", flex.windows);
    assert!([2, 6, 10].iter().all(|n| flex.windows[*n] == 0.0), "{:?}", flex.windows);
    assert_eq!((report.lost, report.refused), (0, 0));
    assert!((report.no_room as f64) < 0.05 * report.succeeded as f64, "{}", report.no_room);
}

#[test]
fn a_lower_tier_takes_what_the_upper_can_not_take_soon() {
    let services = vec![one(300_000), Service { tier: 1, ..one(120_000) }];
    let mut scene = Scene::of(services);
    scene.spill_after = Duration::from_secs(30);
    let report = scene.run(6);
    check("two tiers, both full", &report, 1, 0.98, 0.002);
}

#[test]
fn long_calls_use_all_of_a_quota_without_a_concurrency_of_the_users() {
    for (tpm, longest) in [(1_000_000, 60), (10_000_000, 10)] {
        for seconds in [1, 10, 60].into_iter().filter(|seconds| *seconds <= longest) {
            for told in [Some(tpm), None] {
                let latency = Duration::from_secs(seconds);
                let service = Service { told: learnt(told), latency, ..one(tpm) };
                let scene = Scene::of(vec![service]).sized(Sizes::Even(10_000));
                // Where the quota is to be learnt, the first answers come first.
                let from = if told.is_some() { 2 } else { 2 + seconds as usize / 30 };
                let report = scene.run(from as u32 + 3);
                let what =
                    format!("{tpm} a minute, calls of {seconds} s, told: {}", told.is_some());
                check(&what, &report, from, 0.99, 0.01);
            }
        }
    }
}
