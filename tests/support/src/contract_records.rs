//! Part of the store's contract: payloads, heartbeats, key-value records.

use std::sync::Arc;

use bytes::Bytes;
use promptmill::deployment::{BreakerState, DemandSnapshot, DeploymentSnapshot};
use promptmill::heartbeat::{DeploymentReport, Heartbeat, QuotaClaim, WorkerStatus};
use promptmill::inquiry::{InquiryAnswer, WorkerInquiry};
use promptmill::store::{KvRecord, Store};
use uuid::Uuid;

type AnyStore = Arc<dyn Store>;

pub async fn payloads_of_any_size_come_back_until_they_are_deleted(store: AnyStore) {
    let big: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (name, bytes) in [("none", Bytes::new()), ("small", "{}".into()), ("big", big.into())] {
        assert_eq!(store.get_payload(name).await.unwrap(), None, "{name}");
        store.put_payload(name, "another".into()).await.unwrap();
        store.put_payload(name, bytes.clone()).await.unwrap();
        assert!(store.get_payload(name).await.unwrap().unwrap() == bytes, "{name}");
        store.delete_payload(name).await.unwrap();
        assert_eq!(store.get_payload(name).await.unwrap(), None, "{name}");
        store.delete_payload(name).await.unwrap();
    }
}

/// A status in which every part says something.
fn worker_status() -> WorkerStatus {
    let state = DeploymentSnapshot {
        name: "gpt-4.1-mini".into(),
        share: 1.0 / 3.0,
        breaker: BreakerState::HalfOpen,
        ..DeploymentSnapshot::default()
    };
    let deployment = DeploymentReport {
        name: "gpt-4.1-mini".into(),
        quota: "b/#?\\".into(),
        snapshot: DemandSnapshot { demand: 0.1, state },
    };
    let batch = Some("night".parse().unwrap());
    WorkerStatus {
        host: Some("夜".into()),
        pid: Some(7),
        version: Some("0.1.0".into()),
        started: Some("2026-01-01T00:00:00.123456789Z".parse().unwrap()),
        deployments: vec![deployment],
        inquiry: Some(WorkerInquiry { batch, ..WorkerInquiry::default() }),
        answers: [(Uuid::from_u128(9), InquiryAnswer::default())].into(),
    }
}

fn word(instance: u128, beat: u64) -> Heartbeat {
    let parts = [("https://a/北/gpt", 1.0, 0.125), ("b/#?\\", 0.1, 1.0 / 3.0)];
    let part =
        |(name, demand, claim): (&str, f64, f64)| (name.to_owned(), QuotaClaim { demand, claim });
    Heartbeat {
        instance: Uuid::from_u128(instance),
        sequence: beat,
        quota_claims: parts.into_iter().map(part).collect(),
        status: worker_status(),
    }
}

pub async fn words_are_heard_as_they_were_said_until_they_are_taken_back(store: AnyStore) {
    assert_eq!(store.heartbeats().await.unwrap(), []);
    for word in [word(1, 1), word(2, 5), word(1, 2)] {
        store.put_heartbeat(&word).await.unwrap();
    }
    let mut heard = store.heartbeats().await.unwrap();
    heard.sort_by_key(|word| word.instance);
    assert_eq!(heard, [word(1, 2), word(2, 5)], "the last word of each");
    store.delete_heartbeat(Uuid::from_u128(1)).await.unwrap();
    store.delete_heartbeat(Uuid::from_u128(9)).await.unwrap();
    assert_eq!(store.heartbeats().await.unwrap(), [word(2, 5)]);
}

fn note(id: &str, json: &str) -> KvRecord {
    KvRecord { kind: "file".into(), id: id.into(), json: json.into(), ttl: None }
}

pub async fn a_note_is_written_by_who_knew_what_it_was(store: AnyStore) {
    let (first, second) = (note("a-1", r#"{"n": 1.0, "夜":"x"}"#), note("a-1", "{}"));
    assert!(!store.put_kv(&first, Some("{}")).await.unwrap(), "there is none yet");
    assert!(store.put_kv(&first, None).await.unwrap());
    assert!(!store.put_kv(&second, None).await.unwrap());
    assert!(!store.put_kv(&second, Some(r#"{"n":1.0,"夜":"x"}"#)).await.unwrap());
    assert_eq!(store.get_kv("file", "a-1").await.unwrap().as_ref(), Some(&first.json));
    assert!(store.put_kv(&second, Some(&first.json)).await.unwrap());
    assert_eq!(store.get_kv("file", "a-1").await.unwrap().as_deref(), Some("{}"));
    let raced = futures_util::future::join_all((0..8).map(|n| {
        let store = store.clone();
        async move { store.put_kv(&note("a-1", &n.to_string()), Some("{}")).await.unwrap() }
    }));
    assert_eq!(raced.await.into_iter().filter(|won| *won).count(), 1);
}

pub async fn notes_are_listed_by_kind_until_they_are_removed(store: AnyStore) {
    let other = KvRecord { kind: "batch".into(), ..note("a", "1") };
    for note in [note("a", "2"), note("b", "3"), other.clone()] {
        assert!(store.put_kv(&note, None).await.unwrap());
    }
    let mut listed = store.list_kv("file").await.unwrap();
    listed.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(listed, [note("a", "2"), note("b", "3")]);
    for id in ["a", "b", "never there"] {
        store.delete_kv("file", id).await.unwrap();
    }
    assert_eq!(store.list_kv("file").await.unwrap(), []);
    assert_eq!(store.list_kv("batch").await.unwrap(), [other]);
    assert_eq!(store.get_kv("file", "a").await.unwrap(), None);
    assert_eq!(store.heartbeats().await.unwrap(), []);
}

pub async fn of_words_said_at_the_same_time_the_later_reader_hears_both(store: AnyStore) {
    let talk = |instance: u128| {
        let store = store.clone();
        async move {
            store.put_heartbeat(&word(instance, 1)).await.unwrap();
            store.heartbeats().await.unwrap().len()
        }
    };
    let heard = futures_util::future::join_all((0..8).map(talk)).await;
    assert_eq!(heard.into_iter().max(), Some(8));
}
