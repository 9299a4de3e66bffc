//! Four workers on Service Bus and Cosmos DB, and all that may happen to them in a night.
//!
//! Larger by hand, for instance with PROMPTMILL_FLEET_JOBS=2000, PROMPTMILL_FLEET_KILLS=24,
//! PROMPTMILL_FLEET_CUTS=8, PROMPTMILL_FLEET_AWAY_S=20 and `--nocapture`.

#![allow(clippy::unwrap_used, reason = "tests stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "the large runs print what they measured")]

use std::collections::HashMap;
use std::time::Duration;
use test_support::books;
use test_support::fleet;

use cosmos_host::Throttle;
use fleet::{CONCURRENCY, Fleet, WORKERS, size, until};
use promptmill::simulator::FaultRates;

/// Calls that all workers may have in flight.
const IN_FLIGHT: u64 = (WORKERS * CONCURRENCY) as u64;

fn jobs() -> usize {
    size("PROMPTMILL_FLEET_JOBS", 300)
}

/// How long something stays away.
fn away() -> Duration {
    Duration::from_secs(size("PROMPTMILL_FLEET_AWAY_S", 5) as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_under_kills_and_cuts_loses_nothing_and_pays_nothing_known_twice() {
    let fleet = Fleet::start(jobs(), FaultRates::spread(0.05), "").await;
    let kills = size("PROMPTMILL_FLEET_KILLS", 8);
    let cuts = size("PROMPTMILL_FLEET_CUTS", 4);
    let mut workers = fleet.workers();
    let mut known = HashMap::new();
    let events = kills + cuts;
    for event in 0..events {
        // Spread over the night; a little apart from even, so that no event meets a group's edge.
        fleet.until_called((event as f64 + 0.7) / (events as f64 + 1.0)).await;
        // As many cuts as there are, evenly among the kills.
        if (event + 1) * cuts / events > event * cuts / events {
            fleet.broker.drop_connections();
        } else {
            let slot = event % WORKERS;
            workers[slot].signal("KILL");
            workers[slot].wait();
            known.extend(fleet.stored().await);
            workers[slot] = fleet.worker();
        }
    }
    fleet.drain(workers).await;
    fleet.is_complete();
    let arrived = fleet.arrived().await;
    let again: Vec<_> =
        known.iter().filter(|(prompt, times)| arrived[*prompt] != **times).collect();
    let (paid_again, lost) = fleet.paid_again();
    let bound = kills as u64 * CONCURRENCY as u64 + cuts as u64 * IN_FLIGHT + lost;
    println!(
        "{} jobs, {kills} kills, {cuts} cuts: {} outcomes known at a kill, {} of them called again; \
         {paid_again} calls paid again (bound {bound}, of it {lost} by faults after payment)",
        fleet.jobs,
        known.len(),
        again.len(),
    );
    assert!(again.is_empty(), "stored and called again: {again:?}");
    assert!(paid_again <= bound, "{paid_again} were paid again: {bound}");
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_and_report_equal_the_ledger_after_faults_and_kills_of_eight_workers() {
    let fleet = Fleet::start(jobs(), FaultRates::spread(0.1), "").await;
    let mut workers: Vec<_> = (0..2 * WORKERS).map(|_| fleet.worker()).collect();
    let kills = size("PROMPTMILL_FLEET_KILLS", 8) / 2;
    for kill in 0..kills {
        fleet.until_called((kill as f64 + 0.7) / (kills as f64 + 1.0)).await;
        let slot = kill % workers.len();
        workers[slot].signal("KILL");
        workers[slot].wait();
        workers[slot] = fleet.worker();
    }
    fleet.drain(workers).await;
    fleet.is_complete();
    let paid = books::paid(&fleet.ledger().await, &fleet.place.ids("o"));
    println!("{kills} kills of {} workers: {paid:?}", 2 * WORKERS);
    let report = books::agree(&fleet.place, "night", &paid);
    assert_eq!(report["balance"]["ended"], fleet.jobs);
    let billed = fleet.simulator.ledger().billed.usage.total();
    assert_eq!(billed, paid.prompt + paid.completion + paid.lost_tokens);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_end_in_a_run_are_renewed_before() {
    // Long enough a run that the tokens of 3 s end several times.
    let fleet = Fleet::start(3 * jobs(), FaultRates::default(), "sas_lifetime_seconds = 3").await;
    let before = fleet.broker.tokens_taken();
    let workers = fleet.workers();
    fleet.drain(workers).await;
    let (taken, ended) = (fleet.broker.tokens_taken() - before, fleet.broker.tokens_ended());
    fleet.is_complete();
    println!("{taken} tokens, {ended} ended");
    assert!(taken >= 2 * WORKERS as u64, "each worker puts one, the rest are renewals: {taken}");
    assert_eq!(ended, 0, "none ended while it was needed");
    assert_eq!(fleet.paid_again().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_holds_the_workers_up_and_costs_nothing() {
    let fleet = Fleet::start(jobs(), FaultRates::default(), "").await;
    let mut workers = fleet.workers();
    fleet.until_called(0.3).await;
    fleet.host.pause();
    tokio::time::sleep(away()).await;
    assert!(workers.iter_mut().all(|worker| worker.is_running()), "they wait for the store");
    fleet.host.resume();
    fleet.drain(workers).await;
    fleet.is_complete();
    let (again, _) = fleet.paid_again();
    println!("store away: {again} paid again");
    assert_eq!(again, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_throttles_half_of_the_writes_slows_the_workers_only() {
    let fleet = Fleet::start(jobs(), FaultRates::default(), "").await;
    fleet.host.throttle(Throttle::Writes(0.5));
    let workers = fleet.workers();
    fleet.drain(workers).await;
    fleet.is_complete();
    println!("{} writes throttled", fleet.host.throttled());
    assert!(fleet.host.throttled() >= fleet.jobs as u64 / 2);
    assert_eq!(fleet.paid_again().0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_away_is_waited_for() {
    // With less patience than the queue is away, every operation on it fails meanwhile.
    let fleet = Fleet::start(jobs(), FaultRates::default(), "patience_seconds = 1").await;
    let mut workers = fleet.workers();
    fleet.until_called(0.3).await;
    fleet.broker.pause();
    tokio::time::sleep(away()).await;
    assert!(workers.iter_mut().all(|worker| worker.is_running()), "they wait for the queue");
    fleet.broker.resume();
    fleet.drain(workers).await;
    fleet.is_complete();
    let (again, _) = fleet.paid_again();
    println!("queue away: {again} paid again");
    assert!(again <= IN_FLIGHT, "{again} were paid again");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_are_asked_to_stop_pay_nothing_twice_and_are_followed_by_others() {
    let fleet = Fleet::start(jobs(), FaultRates::default(), "").await;
    for part in [0.2, 0.5] {
        let mut workers = fleet.workers();
        fleet.until_called(part).await;
        workers.iter().for_each(|worker| worker.signal("TERM"));
        for worker in &mut workers {
            let asked = tokio::time::Instant::now();
            until("a worker stops", || !worker.is_running()).await;
            let ended = worker.wait();
            assert_eq!(ended.code, Some(0), "{}", ended.err);
            assert!(!ended.err.contains("outlived"), "{}", ended.err);
            assert!(asked.elapsed() < Duration::from_secs(20), "the grace time and some");
        }
    }
    let workers = fleet.workers();
    fleet.drain(workers).await;
    fleet.is_complete();
    assert_eq!(fleet.paid_again().0, 0);
}
