//! Part of the store's contract: no bytes of a reply can make it refuse, and no outcome takes its
//! group along.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use promptmill::outcome::{JobFailure, Outcome, OutcomeStatus, TokenUsage};
use promptmill::store::{Recorded, SortOrder, Store, UNSTORABLE_CODE};

use crate::contract_store::{all, batch_id, outcome, outcomes, record, totals_of};

type AnyStore = Arc<dyn Store>;

fn endings(proofs: &[Recorded]) -> Vec<OutcomeStatus> {
    proofs.iter().map(Recorded::ending).collect()
}

pub async fn an_answer_with_a_bad_byte_is_recorded_alone_as_failed(store: AnyStore) {
    use OutcomeStatus::{Dead, Failed, Succeeded};
    let batch = batch_id("night");
    let mut group = outcomes(&batch, 3);
    group[1].body = Some(Bytes::from_static(b"{\"content\":\"caf\xe9\"}"));
    let page = Some(Bytes::from_static(b"<html>\x83G\x81[</html>"));
    let failure = Some(JobFailure { code: "502".into(), message: "bad gateway".into() });
    group.push(Outcome { ending: Dead, body: page, failure, ..outcome(&batch, 4) });
    group.push(outcome(&batch, 5));
    let proofs = record(&store, &group).await;
    assert_eq!(endings(&proofs), [Succeeded, Failed, Succeeded, Dead, Succeeded]);
    assert!(proofs.iter().all(Recorded::is_first));
    let again = record(&store, &group).await;
    assert_eq!(endings(&again), endings(&proofs));
    assert!(!again.iter().any(Recorded::is_first), "who comes again learns that it has ended");

    let kept = all(&store, &batch, SortOrder::ByPosition).await;
    assert_eq!(kept[0], group[0]);
    let failure = kept[1].failure.as_ref().unwrap();
    assert_eq!(failure.code, UNSTORABLE_CODE);
    assert!(failure.message.contains("not UTF-8 text from byte 15"), "{failure:?}");
    assert_eq!(kept[1].body.as_deref(), Some("{\"content\":\"caf\u{fffd}\"}".as_bytes()));
    assert_eq!(kept[1].usage, group[1].usage, "it was paid");
    assert_eq!(kept[3].failure.as_ref().unwrap().code, "502");
    let page: String = serde_json::from_slice(kept[3].body.as_ref().unwrap()).unwrap();
    assert_eq!(page, "<html>\u{fffd}G\u{fffd}[</html>");
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&kept));
}

pub async fn counts_beyond_belief_spoil_no_sum(store: AnyStore) {
    let batch = batch_id("night");
    let mut group = outcomes(&batch, 4);
    group[1].usage = TokenUsage { prompt: u64::MAX, ..group[1].usage };
    group[2].usage = TokenUsage { reasoning: i64::MAX as u64 + 1, ..TokenUsage::default() };
    group[2].latency_ms = u64::MAX;
    let mut late = outcome(&batch, 4);
    late.position = u64::MAX;
    group.push(late);
    let proofs = record(&store, &group).await;
    use OutcomeStatus::{Failed, Succeeded};
    assert_eq!(endings(&proofs)[..3], [Succeeded, Failed, Failed]);
    assert_eq!(proofs[4].ending(), Succeeded, "a job's place is no fault of its answer");
    let kept = all(&store, &batch, SortOrder::ByPosition).await;
    assert_eq!(kept.len(), 5);
    assert_eq!((kept[1].usage.prompt, kept[1].usage.cached), (0, 1));
    assert_eq!(kept[1].body, group[1].body, "the answer stays");
    let totals = totals_of(&kept);
    assert_eq!(store.totals(&batch).await.unwrap(), totals);
    let running = store.running_totals(&batch, jiff::Timestamp::MIN).await.unwrap();
    assert_eq!(running.totals(), totals);
    let paid: Vec<_> = store.outcome_summaries(&batch).await.unwrap().try_collect().await.unwrap();
    assert_eq!(paid.len(), 5);
}

pub async fn every_byte_may_come_in_a_body(store: AnyStore) {
    let batch = batch_id("bytes");
    let one = |byte: u8| {
        let body = Bytes::from(vec![b'"', byte, b'"']);
        Outcome { body: Some(body), ..outcome(&batch, byte.into()) }
    };
    let group: Vec<_> = (0..=u8::MAX).map(one).collect();
    let proofs = record(&store, &group).await;
    assert!(proofs.iter().all(Recorded::is_first));
    let kept = all(&store, &batch, SortOrder::ByPosition).await;
    assert_eq!(kept.len(), 256);
    assert!(kept[..128] == group[..128], "text is kept as it came");
    for bad in &kept[128..] {
        assert_eq!(bad.body.as_deref(), Some("\"\u{fffd}\"".as_bytes()));
        assert_eq!(bad.ending, OutcomeStatus::Failed);
    }
}

pub async fn a_reply_with_texts_of_any_length_is_recorded(store: AnyStore) {
    let batch = batch_id("night");
    let long = "長い".repeat(500_000);
    let mut group = outcomes(&batch, 4);
    group[0].service_tier = Some(long.clone().into());
    group[1].request_id = Some(long.clone());
    group[2].ending = OutcomeStatus::Failed;
    group[2].failure = Some(JobFailure { code: long.clone(), message: long });
    let proofs = record(&store, &group).await;
    use OutcomeStatus::Failed;
    assert_eq!(endings(&proofs), [Failed, Failed, Failed, Failed]);
    let kept = all(&store, &batch, SortOrder::ByPosition).await;
    assert_eq!(kept.len(), 4);
    assert_eq!(kept[3], group[3]);
    assert_eq!(kept[1].body, group[1].body);
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&kept));
    let running = store.running_totals(&batch, jiff::Timestamp::MIN).await.unwrap();
    assert_eq!(running.totals(), totals_of(&kept));
}
