//! The contract of every store on budgets: claims are atomic, and no more is granted than allowed.

use std::sync::Arc;

use promptmill::budget::{BudgetClaim, BudgetLimit};
use promptmill::store::{BatchTotals, SortOrder, Store};

use crate::contract_store::{all, batch_id};

type AnyStore = Arc<dyn Store>;

pub async fn a_budget_is_claimed_and_given_back(store: AnyStore) {
    let (night, day) = (batch_id("night"), batch_id("day"));
    let claim = |take, spent| BudgetClaim { take, spent, is_debt: false };
    assert_eq!(store.budget(&night).await.unwrap(), None);
    assert_eq!(store.claim(&night, &claim(1, 0)).await.unwrap(), None);
    let limit = BudgetLimit::money(50.0, "円").unwrap();
    let first = store.limit_budget(&night, &limit).await.unwrap();
    assert_eq!((first.allowed, first.committed, first.spent), (50_000_000_000, 0, 0));
    let tokens = store.limit_budget(&day, &BudgetLimit::tokens(1 << 53).unwrap()).await.unwrap();
    assert_eq!(store.budget(&day).await.unwrap(), Some(tokens));
    let (granted, taken) = store.claim(&night, &claim(50_000_000_000, 0)).await.unwrap().unwrap();
    assert_eq!((granted, taken.unclaimed()), (true, 0));
    let refused = store.claim(&night, &claim(1, 9)).await.unwrap();
    assert_eq!(refused, Some((false, taken)), "a refused claim changes nothing");
    let (granted, after) = store.claim(&night, &claim(-49_999_999_999, 1)).await.unwrap().unwrap();
    assert_eq!((granted, after.committed, after.spent), (true, 1, 1));
    let more = store.limit_budget(&night, &BudgetLimit::money(80.0, "円").unwrap()).await.unwrap();
    assert_eq!((more.allowed, more.committed, more.spent), (80_000_000_000, 1, 1));
    assert_eq!(store.limit_budget(&night, &BudgetLimit::tokens(9).unwrap()).await.unwrap(), more);
    assert_eq!(store.budget(&night).await.unwrap(), Some(more));
    assert_eq!(store.batches().await.unwrap(), [], "a budget announces no batch");
    assert_eq!(all(&store, &night, SortOrder::AsStored).await, []);
    assert_eq!(store.totals(&night).await.unwrap(), BatchTotals::default());
}

pub async fn of_claims_at_the_same_time_no_more_are_granted_than_allowed(store: AnyStore) {
    let night = batch_id("night");
    store.limit_budget(&night, &BudgetLimit::tokens(100).unwrap()).await.unwrap();
    let work = |n: u64| {
        let (store, night) = (store.clone(), night.clone());
        async move {
            let take = BudgetClaim { take: 10, ..BudgetClaim::default() };
            let mut spent = 0;
            for _ in 0..3 {
                let (granted, now) = store.claim(&night, &take).await.unwrap().unwrap();
                assert!(now.committed <= 100 && now.spent <= now.committed, "{now:?}");
                if granted {
                    let back = BudgetClaim { take: -(n as i64), spent: 10 - n, is_debt: false };
                    store.claim(&night, &back).await.unwrap();
                    spent += 10 - n;
                }
            }
            spent
        }
    };
    let tasks = (0..8).map(|n| tokio::spawn(work(n)));
    let spent: u64 =
        futures_util::future::join_all(tasks).await.into_iter().map(|spent| spent.unwrap()).sum();
    let after = store.budget(&night).await.unwrap().unwrap();
    assert_eq!((after.committed, after.spent), (spent, spent));
}
