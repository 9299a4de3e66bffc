//! Cosmos DB items as others see them: Microsoft's SDK for Python reads what was written here, and a
//! server that shares no author with the SDK takes our writes.
//!
//! Set `PROMPTMILL_PEER_PYTHON` to a Python that has `azure-cosmos`, `PROMPTMILL_PEER_NODE_MODULES`
//! to a `node_modules` with `@vercel/cosmosdb-server` 1.0.1. Without them a test says that it did
//! not run.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]
#![allow(clippy::print_stderr, reason = "who runs the tests learns what did not run")]

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
#[allow(dead_code, reason = "the suite itself runs in tests/backends/store.rs")]
use test_support::contract_store;
#[allow(dead_code, reason = "each test binary takes what it needs")]
use test_support::cosmos as support;

use contract_store::{batch_id, outcome, outcomes, record, totals_of};
use promptmill::budget::{BudgetClaim, BudgetLimit};
use promptmill::outcome::Outcome;
use promptmill::store::cosmos::{
    CosmosConsistency, CosmosCredential, CosmosSettings, CosmosStore, init,
};
use promptmill::store::{Batch, BatchSenders, BatchState, Recorded, Store};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const AT_MOST: Duration = Duration::from_secs(120);

fn peer(variable: &str) -> Option<String> {
    let value = std::env::var(variable).ok();
    if value.is_none() {
        eprintln!("did not run: {variable} is not set");
    }
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_users_python_script_reads_what_was_written() {
    let Some(python) = peer("PROMPTMILL_PEER_PYTHON") else { return };
    let host = support::own_host().await;
    let settings = support::settings(&host);
    init(&settings).await.unwrap();
    let store = CosmosStore::connect(&settings).await.unwrap();
    let any: Arc<dyn Store> = Arc::new(store);
    let mut mine = outcomes(&batch_id("夜間"), 200);
    mine[7] = Outcome {
        body: Some(r#"{"answer":"はい"}"#.into()),
        metadata: Some(r#"{"team":"経理"}"#.into()),
        ..mine[7].clone()
    };
    record(&any, &mine).await;
    let mut script = Command::new(python);
    script
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/cosmos_sdk.py"))
        .args([&host.endpoint(), host.key(), &settings.database, "夜間"])
        .arg(mine[7].job_id.to_string())
        .kill_on_drop(true);
    let output = tokio::time::timeout(AT_MOST, script.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let totals = totals_of(&mine);
    assert_eq!(read["endings"], serde_json::to_value(&totals.endings).unwrap());
    assert_eq!(read["tokens"], totals.usage.total());
    assert_eq!(read["running_tokens"], totals.usage.total());
    assert_eq!(read["hours"], serde_json::json!(["2026-11-23T16"]));
    let one = serde_json::json!({
        "customId": "job-7", "position": 7, "answer": "はい", "team": "経理",
    });
    assert_eq!(read["one"], one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_server_takes_points_writes_reads_and_conflicts() {
    let Some(modules) = peer("PROMPTMILL_PEER_NODE_MODULES") else { return };
    let mut server = Command::new("node")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/cosmosdb_server.js"))
        .env("NODE_PATH", modules)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let endpoint = tokio::time::timeout(AT_MOST, lines.next_line()).await.unwrap().unwrap();
    let settings = CosmosSettings {
        endpoint: endpoint.expect("the server prints its endpoint"),
        database: "peers".into(),
        credential: CosmosCredential::Key("c2VjcmV0".into()),
        emulator: true,
        preferred_regions: Vec::new(),
        consistency: CosmosConsistency::Account,
        shards: std::num::NonZeroU32::new(4).unwrap(),
        writes_in_flight: std::num::NonZeroUsize::new(8).unwrap(),
        patience_s: 5,
    };
    tokio::time::timeout(AT_MOST, init(&settings)).await.unwrap().unwrap();
    let store = CosmosStore::connect(&settings).await.unwrap();
    let any: Arc<dyn Store> = Arc::new(store);
    let batch = Batch {
        id: batch_id("night"),
        state: BatchState::Running,
        reason: None,
        jobs: 50,
        prompt_tokens: 1_000,
        inputs: Vec::new(),
        senders: BatchSenders::One,
        created_at: "2026-11-23T16:00:00Z".parse().unwrap(),
    };
    any.put_batch(&batch).await.unwrap();
    assert_eq!(any.batch(&batch.id).await.unwrap(), Some(batch.clone()));
    let from = [BatchState::Running];
    let done = any.change_state(&batch.id, &from, BatchState::Done, None).await.unwrap();
    assert_eq!(done, Some(Batch { state: BatchState::Done, ..batch.clone() }));
    any.limit_budget(&batch.id, &BudgetLimit::tokens(10).unwrap()).await.unwrap();
    for (take, is_granted, committed) in [(8, true, 8), (3, false, 8), (-7, true, 1), (3, true, 4)]
    {
        let claim = BudgetClaim { take, ..BudgetClaim::default() };
        let (granted, after) = any.claim(&batch.id, &claim).await.unwrap().unwrap();
        assert_eq!((granted, after.committed), (is_granted, committed));
    }
    let mine = outcomes(&batch.id, 50);
    assert!(record(&any, &mine).await.iter().all(Recorded::is_first));
    let late = Outcome { digest: 1, ..outcome(&batch.id, 3) };
    let proof = record(&any, &[late]).await[0];
    assert!(!proof.is_first());
    assert_eq!(proof.digest(), mine[3].digest);
    let found = any.look_up(&batch.id, &[&mine[9].custom_id]).await.unwrap();
    assert_eq!(found[0].map(|proof| proof.ending()), Some(mine[9].ending));
}
