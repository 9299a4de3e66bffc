//! The contract of every store, whatever it stands on. `tests/backends/store.rs` runs it on each
//! backend, with `contract_budget`, `contract_records` and
//! `contract_unstorable`.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use promptmill::job::{BatchId, JobId};
use promptmill::outcome::{
    AnswerFinish, AnswerFlaw, JobFailure, Outcome, OutcomeStatus, TokenUsage,
};
use promptmill::store::{
    Batch, BatchSenders, BatchState, BatchTotals, FinishCounts, MinuteTotals, OutcomeSummary,
    Recorded, RunningTotals, SortOrder, Store,
};

type AnyStore = Arc<dyn Store>;

pub fn batch_id(name: &str) -> BatchId {
    name.parse().unwrap()
}

/// The outcome of a batch's n-th job; no two are alike.
pub fn outcome(batch: &BatchId, n: u64) -> Outcome {
    let custom_id = format!("job-{n}");
    Outcome {
        job_id: JobId::new(batch, &custom_id),
        batch_id: batch.clone(),
        custom_id,
        position: n,
        // Above 2^53, so that a store that keeps it as a floating point number is found out.
        digest: u64::MAX - n,
        ending: if n % 10 == 3 { OutcomeStatus::Failed } else { OutcomeStatus::Succeeded },
        status_code: Some(200),
        request_id: Some(format!("request-{n}")),
        body: Some(format!(r#"{{"id":"{n}","choices":[]}}"#).into()),
        failure: None,
        usage: TokenUsage {
            prompt: 100 + n,
            cached: n,
            completion: 10,
            reasoning: 2,
            unreported: u64::from(n % 6 == 1),
        },
        finish: match n % 5 {
            0 => Some(AnswerFinish::Stop),
            1 => Some(AnswerFinish::Length),
            2 => Some(AnswerFinish::ContentFilter),
            3 => Some(AnswerFinish::Incomplete),
            _ => None,
        },
        flaw: (n % 7 == 3).then_some(AnswerFlaw::NotUtf8),
        service_tier: n.is_multiple_of(2).then(|| "flex".into()),
        attempts: 1 + (n % 3) as u32,
        throttled: (n % 4) as u32,
        deployment: format!("deployment-{}", n % 2),
        model: "gpt-4.1".into(),
        latency_ms: 700 + n,
        finished_at: "2026-11-23T16:59:59.123456789Z".parse().unwrap(),
        deadline: n.is_multiple_of(5).then(|| "2026-11-24T08:00:00Z".parse().unwrap()),
        metadata: None,
    }
}

pub fn outcomes(batch: &BatchId, count: u64) -> Vec<Outcome> {
    (0..count).map(|n| outcome(batch, n)).collect()
}

/// What the store must say of these outcomes, computed without it.
pub fn totals_of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> BatchTotals {
    let mut totals = BatchTotals::default();
    for o in outcomes {
        *totals.endings.entry(o.ending).or_default() += 1;
        totals.usage += o.usage;
        totals.attempts += u64::from(o.attempts);
        totals.finishes += FinishCounts::of(Some(o.ending), o.finish);
    }
    totals
}

pub async fn record(store: &AnyStore, outcomes: &[Outcome]) -> Vec<Recorded> {
    store.record(Arc::new(outcomes.to_vec())).await.unwrap()
}

pub async fn all(store: &AnyStore, batch: &BatchId, order: SortOrder) -> Vec<Outcome> {
    store.outcomes(batch, order).await.unwrap().try_collect().await.unwrap()
}

pub fn batch(name: &str, created_at: &str) -> Batch {
    Batch {
        id: batch_id(name),
        state: BatchState::Enqueuing,
        reason: None,
        jobs: 3,
        prompt_tokens: 1_000,
        inputs: Vec::new(),
        senders: BatchSenders::One,
        created_at: created_at.parse().unwrap(),
    }
}

fn by_job(outcomes: Vec<Outcome>) -> BTreeMap<JobId, Outcome> {
    outcomes.into_iter().map(|outcome| (outcome.job_id, outcome)).collect()
}

pub async fn the_first_outcome_of_a_job_wins(store: AnyStore) {
    let batch = batch_id("night");
    let first = outcome(&batch, 1);
    let late = Outcome { ending: OutcomeStatus::Dead, digest: 5, body: None, ..first.clone() };
    assert!(record(&store, std::slice::from_ref(&first)).await[0].is_first());
    let proof = record(&store, &[late]).await[0];
    assert!(!proof.is_first());
    assert_eq!((proof.job_id(), proof.ending(), proof.digest()), {
        (first.job_id, first.ending, first.digest)
    });
    assert_eq!(all(&store, &batch, SortOrder::AsStored).await, std::slice::from_ref(&first));
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of([&first]));
}

pub async fn the_same_outcome_recorded_again_is_not_the_first(store: AnyStore) {
    let outcome = [outcome(&batch_id("night"), 1)];
    assert!(record(&store, &outcome).await[0].is_first());
    assert!(!record(&store, &outcome).await[0].is_first());
}

pub async fn a_job_that_is_there_twice_in_one_call_is_recorded_once(store: AnyStore) {
    let batch = batch_id("night");
    let (first, other) = (outcome(&batch, 1), outcome(&batch, 2));
    let late = Outcome { ending: OutcomeStatus::Expired, ..first.clone() };
    let proofs = record(&store, &[first.clone(), other.clone(), late]).await;
    let firsts: Vec<bool> = proofs.iter().map(Recorded::is_first).collect();
    assert_eq!(firsts, [true, true, false]);
    assert_eq!(proofs[2].ending(), first.ending);
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of([&first, &other]));
}

pub async fn proofs_come_in_the_order_of_the_outcomes(store: AnyStore) {
    let outcomes = outcomes(&batch_id("night"), 100);
    record(&store, &outcomes[40..60]).await;
    let proofs = record(&store, &outcomes).await;
    for (n, (proof, outcome)) in proofs.iter().zip(&outcomes).enumerate() {
        assert_eq!((proof.job_id(), proof.digest()), (outcome.job_id, outcome.digest));
        assert_eq!(proof.is_first(), !(40..60).contains(&n), "outcome {n}");
    }
}

pub async fn concurrent_duplicates_are_counted_once(store: AnyStore) {
    const WORKERS: u64 = 4;
    let batch = batch_id("night");
    let calls = (0..WORKERS).map(|worker| {
        let (store, batch) = (Arc::clone(&store), batch.clone());
        tokio::spawn(async move {
            let mut mine = outcomes(&batch, 100);
            // Each worker was answered differently, as two calls of a model are.
            mine.iter_mut().for_each(|o| o.usage.completion += worker);
            (mine.clone(), record(&store, &mine).await)
        })
    });
    let mut winners = BTreeMap::new();
    for call in calls.collect::<Vec<_>>() {
        let (mine, proofs) = call.await.unwrap();
        for (outcome, _) in mine.into_iter().zip(proofs).filter(|(_, proof)| proof.is_first()) {
            assert!(winners.insert(outcome.job_id, outcome).is_none(), "two were the first");
        }
    }
    assert_eq!(winners.len(), 100, "every job has a first outcome");
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(winners.values()));
    assert_eq!(by_job(all(&store, &batch, SortOrder::AsStored).await), winners);
}

pub async fn look_ups_are_answered_in_the_order_asked(store: AnyStore) {
    let batch = batch_id("night");
    let known = outcomes(&batch, 20);
    record(&store, &known).await;
    let name = |n: usize| known[n].custom_id.as_str();
    let asked = [name(7), "never enqueued", name(0), name(13)];
    let found = store.look_up(&batch, &asked).await.unwrap();
    let found: Vec<Option<(JobId, OutcomeStatus, u64, bool)>> = found
        .iter()
        .map(|r| r.map(|r| (r.job_id(), r.ending(), r.digest(), r.is_first())))
        .collect();
    let expected = |n: usize| Some((known[n].job_id, known[n].ending, known[n].digest, false));
    assert_eq!(found, [expected(7), None, expected(0), expected(13)]);
}

pub async fn an_outcome_comes_back_as_it_was(store: AnyStore) {
    let batch = batch_id("夜間-2026.11");
    let full = Outcome {
        custom_id: "請求書 №1/\"引用\"?#\\".into(),
        job_id: JobId::new(&batch, "請求書 №1/\"引用\"?#\\"),
        body: Some(
            "{\"z\":\"日本語の答え 🍣\",  \"a\":[1e400, 12345678901234567890, null]}".into(),
        ),
        metadata: Some("{\"team\": \"経理\",\"a\" :1}".into()),
        failure: Some(JobFailure { code: "content_filter".into(), message: "方針".into() }),
        ending: OutcomeStatus::Failed,
        ..outcome(&batch, 0)
    };
    let bare = Outcome {
        status_code: None,
        request_id: None,
        body: None,
        failure: None,
        usage: TokenUsage::default(),
        attempts: 0,
        deployment: String::new(),
        ending: OutcomeStatus::Cancelled,
        ..outcome(&batch, 1)
    };
    record(&store, &[full.clone(), bare.clone()]).await;
    for one in [&full, &bare] {
        let found = store.outcome(&batch, &one.custom_id).await.unwrap();
        assert_eq!(found.as_ref(), Some(one));
        assert_eq!(store.outcome_by_id(&batch, one.job_id).await.unwrap(), found);
    }
    assert_eq!(store.outcome(&batch, "never enqueued").await.unwrap(), None);
    let stranger = JobId::new(&batch, "never enqueued");
    assert_eq!(store.outcome_by_id(&batch, stranger).await.unwrap(), None);
    assert_eq!(all(&store, &batch, SortOrder::ByPosition).await, [full, bare]);
}

pub async fn a_body_of_three_megabytes_is_kept(store: AnyStore) {
    let batch = batch_id("night");
    let text = r#"「大きな答え」\n \"quoted\" "#.repeat(90_000);
    let big = Outcome { body: Some(format!("[\"{text}\"]").into()), ..outcome(&batch, 0) };
    assert!(big.body.as_ref().unwrap().len() > 3_000_000);
    assert!(record(&store, std::slice::from_ref(&big)).await[0].is_first());
    let late = Outcome { latency_ms: 1, ..big.clone() };
    assert!(!record(&store, &[late]).await[0].is_first());
    for order in [SortOrder::AsStored, SortOrder::ByPosition] {
        assert!(all(&store, &batch, order).await == std::slice::from_ref(&big), "{order:?}");
    }
}

pub async fn five_thousand_outcomes_stream_completely(store: AnyStore) {
    let batch = batch_id("night");
    let outcomes = outcomes(&batch, 5_000);
    record(&store, &outcomes).await;
    record(&store, &[outcome(&batch_id("another"), 1)]).await;
    let streamed = all(&store, &batch, SortOrder::AsStored).await;
    assert_eq!(streamed.len(), 5_000);
    assert!(by_job(streamed) == by_job(outcomes.clone()));
    assert_eq!(store.totals(&batch).await.unwrap(), totals_of(&outcomes));
}

pub async fn outcomes_stream_by_position_when_asked(store: AnyStore) {
    let batch = batch_id("night");
    let outcomes = outcomes(&batch, 1_000);
    let mut shuffled = outcomes.clone();
    shuffled.sort_by_key(|outcome| outcome.job_id);
    record(&store, &shuffled).await;
    assert!(all(&store, &batch, SortOrder::ByPosition).await == outcomes);
}

pub async fn briefs_say_the_same_as_the_outcomes(store: AnyStore) {
    let batch = batch_id("briefs");
    let mut given = outcomes(&batch, 300);
    for outcome in given.iter_mut().step_by(7) {
        outcome.metadata = Some(r#"{"team":"東京"}"#.into());
        outcome.failure = Some(JobFailure { code: "content_filter".into(), message: "no".into() });
    }
    record(&store, &given).await;
    let key = |b: &OutcomeSummary| (b.latency_ms, format!("{b:?}"));
    let brief = |o: Outcome| OutcomeSummary {
        ending: Some(o.ending),
        failure: o.failure,
        usage: o.usage,
        finish: o.finish,
        service_tier: o.service_tier,
        attempts: o.attempts,
        throttled: o.throttled,
        deployment: o.deployment,
        model: o.model,
        latency_ms: o.latency_ms,
        finished_at: o.finished_at,
        deadline: o.deadline,
        metadata: o.metadata,
    };
    let mut briefs: Vec<_> =
        store.outcome_summaries(&batch).await.unwrap().try_collect().await.unwrap();
    briefs.sort_by_key(key);
    let mut expected: Vec<_> = given.into_iter().map(brief).collect();
    expected.sort_by_key(key);
    assert_eq!(briefs, expected);
    let nobody = store.outcome_summaries(&batch_id("nobody")).await.unwrap();
    assert_eq!(nobody.try_collect::<Vec<_>>().await.unwrap(), []);
}

pub async fn running_sums_tell_deployments_models_tiers_and_minutes_apart(store: AnyStore) {
    let batch = batch_id("night");
    let mut mine = outcomes(&batch, 40);
    for (n, outcome) in mine.iter_mut().enumerate() {
        let at = format!("2026-11-23T16:{}:{:02}Z", 50 + n / 8, 10 + n % 8);
        outcome.finished_at = at.parse().unwrap();
    }
    for some in mine.chunks(7) {
        record(&store, some).await;
    }
    // What is there already is not counted again.
    record(&store, &mine[..9]).await;
    let since: Timestamp = "2026-11-23T16:51:30Z".parse().unwrap();
    let running = store.running_totals(&batch, since).await.unwrap();
    assert_eq!(running.totals(), totals_of(&mine));
    let by_key = |o: &Outcome| (o.deployment.clone(), o.model.clone(), o.service_tier.clone());
    for sum in &running.sums {
        let key = (sum.deployment.clone(), sum.model.clone(), sum.service_tier.clone());
        let of_key = mine.iter().filter(|o| by_key(o) == key);
        assert_eq!(sum.totals, totals_of(of_key), "{key:?}");
    }
    assert_eq!(running.sums.len(), 2, "each deployment has one tier here");
    let minute = |n: usize| {
        let tokens = mine[8 * n..8 * (n + 1)].iter().map(|o| o.usage.total()).sum();
        let at: Timestamp = format!("2026-11-23T16:{}:00Z", 50 + n).parse().unwrap();
        (at.as_second() / 60, MinuteTotals { jobs: 8, tokens, from_second: 10 })
    };
    assert_eq!(running.minutes, (1..5).map(minute).collect(), "the first minute was before");
    let nobody = store.running_totals(&batch_id("nobody"), since).await.unwrap();
    assert_eq!(nobody, RunningTotals::default());
}

pub async fn batches_are_listed_newest_first(store: AnyStore) {
    let [old, new, middle] = [
        batch("old", "2026-11-01T00:00:00Z"),
        batch("new", "2026-11-23T16:00:00.5Z"),
        batch("middle", "2026-11-23T16:00:00Z"),
    ];
    for batch in [&old, &new, &middle] {
        store.put_batch(batch).await.unwrap();
    }
    assert_eq!(store.batches().await.unwrap(), [new, middle, old]);
}

pub async fn a_batch_is_written_over(store: AnyStore) {
    let first = batch("night", "2026-11-23T16:00:00Z");
    assert_eq!(store.batch(&first.id).await.unwrap(), None);
    store.put_batch(&first).await.unwrap();
    let changed = Batch { jobs: 4, ..first };
    store.put_batch(&changed).await.unwrap();
    assert_eq!(store.batch(&changed.id).await.unwrap(), Some(changed.clone()));
    assert_eq!(store.batches().await.unwrap(), [changed]);
}

pub async fn a_batchs_state_changes_only_from_where_it_may(store: AnyStore) {
    use BatchState::{Cancelled, Done, Enqueuing, Paused, Running};
    let first = batch("night", "2026-11-23T16:00:00Z");
    let id = &first.id;
    assert_eq!(store.change_state(id, &[Running], Paused, None).await.unwrap(), None);
    store.put_batch(&first).await.unwrap();
    let paused = store.change_state(id, &[Enqueuing], Paused, Some("it is 夜")).await.unwrap();
    let expected = Batch { state: Paused, reason: Some("it is 夜".into()), ..first.clone() };
    assert_eq!(paused, Some(expected.clone()));
    assert_eq!(store.batch(id).await.unwrap(), Some(expected.clone()));
    assert_eq!(store.change_state(id, &[Running], Done, None).await.unwrap(), Some(expected));
    let counted = Batch { state: Running, jobs: 9, ..first.clone() };
    store.put_batch(&counted).await.unwrap();
    let after = store.batch(id).await.unwrap().unwrap();
    assert_eq!((after.state, after.jobs), (Paused, 9), "whoever counts does not undo a pause");
    assert_eq!(after.reason.as_deref(), Some("it is 夜"));
    let cancelled = store.change_state(id, &[Running, Paused], Cancelled, None).await.unwrap();
    let expected = Batch { state: Cancelled, reason: None, jobs: 9, ..first };
    assert_eq!(cancelled, Some(expected.clone()));
    assert_eq!(store.batches().await.unwrap(), [expected]);
}

pub async fn of_many_who_create_a_batch_one_does(store: AnyStore) {
    let night = batch("night", "2026-11-23T16:00:00Z");
    let create = |jobs: u64| {
        let (store, night) = (store.clone(), Batch { jobs, ..night.clone() });
        async move { store.create_batch(&night).await.unwrap() }
    };
    let created = futures_util::future::join_all((0..8).map(create)).await;
    assert_eq!(created.iter().filter(|first| **first).count(), 1);
    let kept = store.batch(&night.id).await.unwrap().unwrap();
    let first = created.iter().position(|first| *first).unwrap() as u64;
    assert_eq!(kept, Batch { jobs: first, ..night }, "the others changed nothing");
}

pub async fn a_batchs_senders_only_become_more_doubtful(store: AnyStore) {
    use BatchSenders::{One, Several, Unknown};
    let night = batch("night", "2026-11-23T16:00:00Z");
    store.add_senders(&night.id, Several).await.unwrap();
    assert_eq!(store.batch(&night.id).await.unwrap(), None, "there is none");
    store.create_batch(&night).await.unwrap();
    for (added, senders) in [(One, One), (Unknown, Unknown), (Several, Several), (One, Several)] {
        store.add_senders(&night.id, added).await.unwrap();
        store.put_batch(&night).await.unwrap();
        let kept = store.batch(&night.id).await.unwrap().unwrap();
        assert_eq!(kept, Batch { senders, ..night.clone() }, "counting changes no senders");
    }
}

pub async fn of_state_changes_at_the_same_time_one_wins(store: AnyStore) {
    use BatchState::{Cancelled, Done, Enqueuing, Paused, Running};
    let first = batch("night", "2026-11-23T16:00:00Z");
    store.put_batch(&first).await.unwrap();
    let change = |to: BatchState| {
        let (store, first) = (store.clone(), first.clone());
        async move {
            let counted = Batch { jobs: 7, ..first.clone() };
            let put = store.put_batch(&counted);
            let changed = store.change_state(&first.id, &[Enqueuing], to, None);
            let (put, changed) = tokio::join!(put, changed);
            put.unwrap();
            changed.unwrap().unwrap().state
        }
    };
    let ends = futures_util::future::join_all([Paused, Cancelled, Running, Done].map(change)).await;
    let after = store.batch(&first.id).await.unwrap().unwrap();
    assert_ne!(after.state, Enqueuing);
    assert!(ends.iter().all(|end| *end == after.state), "{ends:?}");
    assert_eq!(after.jobs, 7);
}

pub async fn a_batch_can_be_announced_after_its_first_outcomes(store: AnyStore) {
    let announced = batch("night", "2026-11-23T16:00:00Z");
    let outcomes = outcomes(&announced.id, 20);
    record(&store, &outcomes[..10]).await;
    assert_eq!(store.batch(&announced.id).await.unwrap(), None);
    assert_eq!(store.batches().await.unwrap(), []);
    store.put_batch(&announced).await.unwrap();
    record(&store, &outcomes[10..]).await;
    assert_eq!(store.totals(&announced.id).await.unwrap(), totals_of(&outcomes));
    assert_eq!(store.batch(&announced.id).await.unwrap(), Some(announced));
}

pub async fn of_an_unknown_batch_nothing_is_known(store: AnyStore) {
    let batch = batch_id("never-seen");
    assert_eq!(store.totals(&batch).await.unwrap(), BatchTotals::default());
    assert_eq!(store.look_up(&batch, &["1"]).await.unwrap(), [None]);
    for order in [SortOrder::AsStored, SortOrder::ByPosition] {
        assert_eq!(all(&store, &batch, order).await, []);
    }
    assert_eq!(store.batches().await.unwrap(), []);
}

pub async fn a_dead_outcome_is_withdrawn_and_what_it_cost_stays(store: AnyStore) {
    let batch = batch_id("night");
    let mut mine = outcomes(&batch, 6);
    mine[2].ending = OutcomeStatus::Dead;
    mine[4].ending = OutcomeStatus::Dead;
    record(&store, &mine).await;
    let mut totals = totals_of(&mine);
    let names: Vec<_> = mine.iter().map(|outcome| outcome.custom_id.clone()).collect();
    let asked = [names[4].as_str(), &names[1], "never enqueued"];
    for _ in 0..2 {
        let stand = store.reopen_dead(&batch, &asked).await.unwrap();
        let endings: Vec<_> = stand.iter().map(|proof| proof.map(|p| p.ending())).collect();
        assert_eq!(endings, [None, Some(OutcomeStatus::Succeeded), None]);
        totals.endings.insert(OutcomeStatus::Dead, 1);
        assert_eq!(store.totals(&batch).await.unwrap(), totals);
        for order in [SortOrder::AsStored, SortOrder::ByPosition] {
            let left = by_job(all(&store, &batch, order).await);
            assert_eq!((left.len(), left.contains_key(&mine[4].job_id)), (5, false));
        }
    }
    assert_eq!(store.look_up(&batch, &asked).await.unwrap()[0], None);
    // Twice dead: both times are paid for.
    for ending in [OutcomeStatus::Dead, OutcomeStatus::Succeeded] {
        let again = Outcome { ending, latency_ms: 1, ..mine[4].clone() };
        assert!(record(&store, std::slice::from_ref(&again)).await[0].is_first());
        store.reopen_dead(&batch, &[&names[2], &names[4]]).await.unwrap();
        totals.usage += again.usage;
        totals.attempts += u64::from(again.attempts);
    }
    totals.endings = [(OutcomeStatus::Succeeded, 4), (OutcomeStatus::Failed, 1)].into();
    assert_eq!(store.totals(&batch).await.unwrap(), totals);
    let briefs = store.outcome_summaries(&batch).await.unwrap();
    let mut summed = BatchTotals::default();
    let sum = |brief: OutcomeSummary| {
        summed.usage += brief.usage;
        summed.attempts += u64::from(brief.attempts);
        summed.finishes += FinishCounts::of(brief.ending, brief.finish);
        brief.ending.inspect(|ending| *summed.endings.entry(*ending).or_default() += 1);
        futures_util::future::ready(Ok(()))
    };
    briefs.try_for_each(sum).await.unwrap();
    assert_eq!(summed, totals, "the briefs say the same");
    assert_eq!(store.look_up(&batch, &asked).await.unwrap()[0].unwrap().ending(), {
        OutcomeStatus::Succeeded
    });
}

pub async fn empty_calls_do_nothing(store: AnyStore) {
    assert_eq!(store.reopen_dead(&batch_id("night"), &[]).await.unwrap(), []);
    assert_eq!(record(&store, &[]).await, []);
    assert_eq!(store.look_up(&batch_id("night"), &[]).await.unwrap(), []);
}
