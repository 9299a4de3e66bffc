//! What only the Cosmos DB store can meet: throttles, lost answers, a service that is away.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::sync::Arc;
use std::time::Duration;
#[allow(dead_code, reason = "the suite itself runs in tests/backends/store.rs")]
use test_support::contract_store;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as support;

use contract_store::{all, batch_id, outcome, outcomes, record, totals_of};
use cosmos_host::Throttle;
use jiff::Timestamp;
use promptmill::budget::{BudgetClaim, BudgetLimit};
use promptmill::deployment::{DemandSnapshot, DeploymentSnapshot};
use promptmill::heartbeat::{DeploymentReport, Heartbeat, QuotaClaim, WorkerStatus};
use promptmill::identity::Identity;
use promptmill::outcome::{Outcome, OutcomeStatus};
use promptmill::prices::Prices;
use promptmill::report::live::{BatchFilter, LiveInputs, LiveWatcher};
use promptmill::store::cosmos::{
    CosmosConsistency, CosmosCredential, CosmosOperation, CosmosSettings, CosmosStore, init,
};
use promptmill::store::{
    Batch, BatchSenders, BatchState, BatchStore, BudgetStore, OutcomeReader, OutcomeStore,
    Recorded, SortOrder, Store, StoreError, WorkerRegistry,
};
use uuid::Uuid;

/// Far above what the faults below cost, far below what hangs.
const AT_MOST: Duration = Duration::from_secs(120);

async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(AT_MOST, work).await.expect("the store gets there in time")
}

fn any(store: &CosmosStore) -> Arc<dyn Store> {
    Arc::new(store.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_writes_refused_ends_complete_and_exact() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let (batch, mine) = (batch_id("night"), outcomes(&batch_id("night"), 500));
    host.throttle(Throttle::Writes(0.5));
    let proofs = in_time(record(&any(&store), &mine)).await;
    assert!(proofs.iter().all(Recorded::is_first));
    assert!(host.throttled() > 250, "{} were refused", host.throttled());
    assert_eq!(store.throttled_writes(), host.throttled(), "the writer knows of every refusal");
    host.throttle(Throttle::Never);
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&mine));
    assert_eq!(store.worker_totals(&batch).await.unwrap(), totals_of(&mine));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_request_units_slows_writes_and_reads_down() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let (batch, mine) = (batch_id("night"), outcomes(&batch_id("night"), 200));
    host.throttle(Throttle::RequestUnitsPerSecond(600.0));
    in_time(record(&any(&store), &mine)).await;
    assert!(host.throttled() > 0);
    assert!(store.throttled_writes() < mine.len() as u64, "{} refusals", store.throttled_writes());
    assert_eq!(in_time(store.totals(&batch)).await.unwrap(), totals_of(&mine));
    assert!(in_time(all(&any(&store), &batch, SortOrder::ByPosition)).await == mine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_reads_refused_leaves_no_gap_in_a_stream() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let (batch, mine) = (batch_id("night"), outcomes(&batch_id("night"), 1_500));
    record(&any(&store), &mine).await;
    host.throttle(Throttle::Reads(0.5));
    assert!(in_time(all(&any(&store), &batch, SortOrder::ByPosition)).await == mine);
    let mut unordered = in_time(all(&any(&store), &batch, SortOrder::AsStored)).await;
    unordered.sort_by_key(|outcome| outcome.position);
    assert!(unordered == mine);
    assert_eq!(in_time(store.totals(&batch)).await.unwrap(), totals_of(&mine));
    assert!(host.throttled() > 20, "{} were refused", host.throttled());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_away_for_seconds_is_waited_for() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let (batch, mine) = (batch_id("night"), outcomes(&batch_id("night"), 200));
    record(&any(&store), &mine[..1]).await;
    host.pause();
    let resume = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        host.resume();
    };
    let all_of_it = any(&store);
    let (proofs, ()) = in_time(async { tokio::join!(record(&all_of_it, &mine), resume) }).await;
    assert_eq!(proofs.iter().filter(|proof| proof.is_first()).count(), 199);
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&mine));
    assert_eq!(store.worker_totals(&batch).await.unwrap(), totals_of(&mine));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_was_lost_is_still_the_first() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let (batch, mine) = (batch_id("night"), outcomes(&batch_id("night"), 50));
    // The batch is known after this, so that the answers that get lost are those of outcomes.
    record(&any(&store), &mine[..1]).await;
    host.lose_answers(20);
    let proofs = in_time(record(&any(&store), &mine[1..])).await;
    assert!(proofs.iter().all(Recorded::is_first));
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&mine));
    assert_eq!(store.worker_totals(&batch).await.unwrap(), totals_of(&mine));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_was_lost_is_made_once() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let night = batch_id("night");
    host.lose_answers(1);
    let limit = BudgetLimit::tokens(100).unwrap();
    assert_eq!(in_time(store.limit_budget(&night, &limit)).await.unwrap().allowed, 100);
    for (take, spent, committed, in_all) in
        [(60, 0, 60, 0), (-20, 10, 40, 10), (40, 0, 80, 10), (-70, 0, 10, 10)]
    {
        host.lose_answers(1);
        let claim = BudgetClaim { take, spent, is_debt: false };
        let (granted, after) = in_time(store.claim(&night, &claim)).await.unwrap().unwrap();
        assert_eq!((granted, after.committed, after.spent), (true, committed, in_all));
        assert_eq!(store.budget(&night).await.unwrap(), Some(after));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_state_whose_answer_was_lost_is_told_as_it_is() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let batch = Batch {
        id: batch_id("night"),
        state: BatchState::Running,
        reason: None,
        jobs: 1,
        prompt_tokens: 0,
        inputs: Vec::new(),
        senders: BatchSenders::One,
        created_at: "2026-11-23T16:00:00Z".parse().unwrap(),
    };
    store.put_batch(&batch).await.unwrap();
    host.lose_answers(1);
    let from = [batch.state];
    let change = store.change_state(&batch.id, &from, BatchState::Paused, Some("why"));
    let paused = in_time(change).await.unwrap().unwrap();
    assert_eq!((paused.state, paused.reason.as_deref()), (BatchState::Paused, Some("why")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_its_patience_it_says_so_and_the_same_outcomes_can_be_offered_again() {
    let host = support::own_host().await;
    let settings = CosmosSettings { patience_s: 1, ..support::settings(&host) };
    init(&settings).await.unwrap();
    let store = CosmosStore::connect(&settings).await.unwrap();
    let (batch, mine) = (batch_id("night"), Arc::new(outcomes(&batch_id("night"), 40)));
    // Half of them get through, then nothing does.
    record(&any(&store), &[outcome(&batch, 1_000)]).await;
    host.lose_answers(u64::MAX);
    let failed = in_time(store.record(Arc::clone(&mine))).await.unwrap_err();
    assert!(matches!(failed, StoreError::Unavailable(_)), "{failed}");
    host.lose_answers(0);
    let proofs = in_time(store.record(Arc::clone(&mine))).await.unwrap();
    assert!(proofs.iter().all(Recorded::is_first), "what was written before was ours");
    let everything: Vec<Outcome> = mine.iter().cloned().chain([outcome(&batch, 1_000)]).collect();
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&everything));
    assert_eq!(store.worker_totals(&batch).await.unwrap(), totals_of(&everything));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_running_usage_of_several_workers_adds_up() {
    let host = support::own_host().await;
    let settings = support::settings(&host);
    init(&settings).await.unwrap();
    let (batch, mine) = (batch_id("night"), outcomes(&batch_id("night"), 90));
    for worker in mine.chunks(30) {
        let store = CosmosStore::connect(&settings).await.unwrap();
        record(&any(&store), worker).await;
        record(&any(&store), &mine[..5]).await;
    }
    let store = CosmosStore::connect(&settings).await.unwrap();
    assert_eq!(store.worker_totals(&batch).await.unwrap(), totals_of(&mine));
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&mine));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_finds_what_a_killed_worker_recorded_without_counting_it() {
    let host = support::own_host().await;
    let settings = CosmosSettings { patience_s: 1, ..support::settings(&host) };
    init(&settings).await.unwrap();
    let mine = Arc::new(outcomes(&batch_id("night"), 40));
    let announced = contract_store::batch("night", "2026-11-23T16:00:00Z");
    let batch = Batch { jobs: 40, state: BatchState::Running, ..announced };
    let killed = CosmosStore::connect(&settings).await.unwrap();
    killed.put_batch(&batch).await.unwrap();
    record(&any(&killed), &mine[..10]).await;
    host.lose_answers(u64::MAX);
    in_time(killed.record(Arc::clone(&mine))).await.unwrap_err();
    host.lose_answers(0);
    drop(killed);
    let next: Arc<dyn Store> = Arc::new(CosmosStore::connect(&settings).await.unwrap());
    record(&next, &mine).await;
    let running = next.running_totals(&batch.id, Timestamp::MIN).await.unwrap().totals();
    assert!(running.ended() < 40, "{running:?}");
    let prices = Prices::load(None).unwrap();
    let by = LiveInputs { deployments: &[], prices: &prices };
    let mut watch = LiveWatcher::default();
    for _ in 0..2 {
        let seen = watch.snapshot(next.as_ref(), BatchFilter::All, by).await.unwrap();
        let [night] = seen.as_slice() else { panic!("{seen:?}") };
        assert_eq!(night.status.totals, totals_of(mine.iter()));
        assert_eq!((night.status.state, night.status.pending), (BatchState::Done, 0));
        let lacking = totals_of(mine.iter()).usage.total() - running.usage.total();
        assert_eq!(night.cost.unpriced_tokens, lacking, "no model is known of these");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_withdraws_corrects_the_running_usage_of_who_recorded() {
    let host = support::own_host().await;
    let settings = support::settings(&host);
    init(&settings).await.unwrap();
    let one = CosmosStore::connect(&settings).await.unwrap();
    let other = CosmosStore::connect(&settings).await.unwrap();
    let batch = batch_id("night");
    let mut mine = outcomes(&batch, 3);
    mine[1].ending = OutcomeStatus::Dead;
    record(&any(&one), &mine).await;
    assert_eq!(other.reopen_dead(&batch, &[&mine[1].custom_id]).await.unwrap(), [None]);
    let mut expected = totals_of(&mine);
    expected.endings.remove(&OutcomeStatus::Dead);
    assert_eq!(one.worker_totals(&batch).await.unwrap(), expected);
    assert_eq!(other.totals(&batch).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_keeps_its_shards_when_the_setting_changes() {
    let host = support::own_host().await;
    let eight = support::settings(&host);
    init(&eight).await.unwrap();
    let mine = outcomes(&batch_id("night"), 60);
    record(&any(&CosmosStore::connect(&eight).await.unwrap()), &mine[..30]).await;
    let three = CosmosSettings { shards: std::num::NonZeroU32::new(3).unwrap(), ..eight };
    let store = CosmosStore::connect(&three).await.unwrap();
    let proofs = record(&any(&store), &mine).await;
    assert_eq!(proofs.iter().filter(|proof| proof.is_first()).count(), 30);
    assert!(all(&any(&store), &batch_id("night"), SortOrder::ByPosition).await == mine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_consistency_is_served() {
    let host = support::own_host().await;
    use CosmosConsistency::{Account, Eventual, LatestCommitted, Session};
    for consistency in [Account, Eventual, Session, LatestCommitted] {
        let settings = CosmosSettings { consistency, ..support::settings(&host) };
        init(&settings).await.unwrap();
        let store = any(&CosmosStore::connect(&settings).await.unwrap());
        let mine = outcomes(&batch_id("night"), 20);
        record(&store, &mine).await;
        let found = store.look_up(&batch_id("night"), &[&mine[4].custom_id]).await.unwrap();
        assert!(found[0].is_some(), "{consistency:?}");
        assert!(all(&store, &batch_id("night"), SortOrder::ByPosition).await == mine);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_write_the_same_batch_both_get_there() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let batch = |jobs| Batch {
        id: batch_id("night"),
        state: BatchState::Enqueuing,
        reason: None,
        jobs,
        prompt_tokens: 0,
        inputs: Vec::new(),
        senders: BatchSenders::One,
        created_at: "2026-11-23T16:00:00Z".parse().unwrap(),
    };
    let puts = (0..8).map(|jobs| {
        let (store, batch) = (store.clone(), batch(jobs));
        tokio::spawn(async move { store.put_batch(&batch).await })
    });
    for put in puts.collect::<Vec<_>>() {
        put.await.unwrap().unwrap();
    }
    assert_eq!(store.batches().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_units_are_counted_by_operation() {
    let host = support::own_host().await;
    let store = support::store(&host).await;
    let mine = outcomes(&batch_id("night"), 100);
    record(&any(&store), &mine).await;
    let units = store.request_units();
    assert!(units.of(CosmosOperation::Record) > 5.0 * 100.0, "{units:?}");
    assert!(units.of(CosmosOperation::LookUp) == 0.0, "{units:?}");
    store.look_up(&batch_id("night"), &[&mine[0].custom_id]).await.unwrap();
    assert!(units.of(CosmosOperation::LookUp) >= 1.0, "{units:?}");
}

/// As a worker of eight with three deployments says it.
fn word_of_eight(instance: u128) -> Heartbeat {
    let name = |n: u32| format!("my-resource-{n}.azure/gpt-4.1-mini");
    let deployment = |n: u32| {
        let state = DeploymentSnapshot {
            name: "gpt-4.1-mini".into(),
            share: 0.125,
            in_flight: 64,
            paused_ms: Some(0),
            ..DeploymentSnapshot::default()
        };
        let snapshot = DemandSnapshot { demand: 1.0, state };
        DeploymentReport { name: "gpt-4.1-mini".into(), quota: name(n), snapshot }
    };
    Heartbeat {
        instance: Uuid::from_u128(u128::MAX - instance),
        sequence: 1_000,
        quota_claims: (0..3).map(|n| (name(n), QuotaClaim { demand: 1.0, claim: 0.125 })).collect(),
        status: WorkerStatus {
            host: Some("promptmill-worker-7d9c5b8f6-x2x4z".into()),
            pid: Some(1),
            version: Some("0.1.0".into()),
            started: Some("2026-11-23T16:59:59Z".parse().unwrap()),
            deployments: (0..3).map(deployment).collect(),
            ..WorkerStatus::default()
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_of_words_among_eight_is_cheap() {
    let store = support::store(support::shared_host()).await;
    let mut words: Vec<Heartbeat> = (0..8).map(word_of_eight).collect();
    for word in &words {
        store.put_heartbeat(word).await.unwrap();
    }
    let before = store.request_units().of(CosmosOperation::Shares);
    words[0].sequence += 1;
    store.put_heartbeat(&words[0]).await.unwrap();
    let write = store.request_units().of(CosmosOperation::Shares) - before;
    assert_eq!(store.heartbeats().await.unwrap().len(), 8);
    let exchange = store.request_units().of(CosmosOperation::Shares) - before;
    assert!((1.0..25.0).contains(&exchange), "{exchange} RU, {write} of them for the write");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_can_be_repeated_and_needs_a_key() {
    let host = support::own_host().await;
    let settings = support::settings(&host);
    init(&settings).await.unwrap();
    init(&settings).await.unwrap();
    let credential = CosmosCredential::Entra(Identity::DeveloperTools);
    let refused = init(&CosmosSettings { credential, ..settings }).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("account key"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_exist_is_refused_with_the_mend() {
    let host = support::own_host().await;
    let settings = support::settings(&host);
    let refused = CosmosStore::connect(&settings).await.err().unwrap();
    assert!(matches!(refused, StoreError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("promptmill init"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_is_too_large_without_its_body_takes_no_other_along() {
    let store = support::store(support::shared_host()).await;
    let mut group = outcomes(&batch_id("large"), 3);
    group[1].metadata = Some(format!("[\"{}\"]", "m".repeat(2_500_000)).into());
    let proofs = record(&any(&store), &group).await;
    let endings: Vec<_> = proofs.iter().map(Recorded::ending).collect();
    use OutcomeStatus::{Failed, Succeeded};
    assert_eq!(endings, [Succeeded, Failed, Succeeded]);
    let kept = all(&any(&store), &batch_id("large"), SortOrder::ByPosition).await;
    assert_eq!((&kept[0], &kept[2]), (&group[0], &group[2]));
    assert_eq!((kept[1].metadata.as_ref(), &kept[1].body), (None, &group[1].body));
    let failure = kept[1].failure.as_ref().unwrap();
    assert!(failure.message.contains("an item may have 1900000"), "{failure:?}");
    assert_eq!(store.totals(&batch_id("large")).await.unwrap(), totals_of(&kept));
    assert_eq!(store.worker_totals(&batch_id("large")).await.unwrap(), totals_of(&kept));
}
