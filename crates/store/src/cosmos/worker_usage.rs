//! Sums of what this process recorded, for running totals: by batch, deployment, model, service tier
//! and hour. `usage` writes them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard};

use uuid::Uuid;

use super::items::{OutcomeItem, UsageItem};
use crate::{FinishCounts, MinuteTotals};
use domain::job::BatchId;
use domain::mutex::lock;
use domain::outcome::Outcome;

/// Batch, deployment, model, service tier, hour.
pub(super) type WorkerSumKey = (BatchId, String, String, Option<Box<str>>, String);

struct WorkerSum {
    item: UsageItem,
    /// Number of changes, and how many of them are in the database.
    changes: u64,
    written: u64,
}

/// This process's own sums.
pub(super) struct WorkerUsage {
    worker: String,
    rows: Mutex<HashMap<WorkerSumKey, WorkerSum>>,
    /// One writes at a time: an older sum must never overtake a newer one.
    pub(super) flushing: tokio::sync::Mutex<()>,
}

impl WorkerUsage {
    pub(super) fn new() -> Self {
        let worker = Uuid::new_v4().simple().to_string();
        Self { worker, rows: Mutex::default(), flushing: tokio::sync::Mutex::default() }
    }

    /// Adds outcomes that were recorded, each of them once.
    pub(super) fn add<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) {
        let mut rows = self.rows();
        for o in outcomes {
            // "2026-11-23T16" of an RFC 3339 time.
            let hour = o.finished_at.to_string()[..13].to_owned();
            let (deployment, model) = (o.deployment.clone(), o.model.clone());
            let key = (o.batch_id.clone(), deployment, model, o.service_tier.clone(), hour);
            let row = self.touch(&mut rows, key);
            let (minute, ended) = MinuteTotals::of(o);
            let minute_of_hour = u8::try_from(minute.rem_euclid(60)).unwrap_or_default();
            *row.item.minutes.entry(minute_of_hour).or_default() += ended;
            *row.item.endings.entry(o.ending).or_default() += 1;
            row.item.attempts += u64::from(o.attempts);
            row.item.usage += o.usage;
            row.item.finishes += FinishCounts::of(Some(o.ending), o.finish);
        }
    }

    /// Counts an outcome as withdrawn. Its cost was paid, and stays.
    pub(super) fn count_withdrawn(&self, batch: &BatchId, item: &OutcomeItem<'_>) {
        let hour = item.finished_at.chars().take(13).collect();
        let (deployment, model) = (item.deployment.to_string(), item.model.to_string());
        let tier = item.service_tier.as_deref().map(Box::from);
        let key = (batch.clone(), deployment, model, tier, hour);
        self.touch(&mut self.rows(), key).item.withdrawn += 1;
    }

    fn touch<'r>(
        &self,
        rows: &'r mut HashMap<WorkerSumKey, WorkerSum>,
        key: WorkerSumKey,
    ) -> &'r mut WorkerSum {
        let row = match rows.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(empty) => {
                let item = self.empty_item(empty.key());
                empty.insert(WorkerSum { item, changes: 0, written: 0 })
            }
        };
        row.changes += 1;
        row
    }

    fn empty_item(
        &self,
        (batch, deployment, model, service_tier, hour): &WorkerSumKey,
    ) -> UsageItem {
        UsageItem {
            // Deployment names may hold what an id may not; nobody looks items up by this.
            id: Uuid::new_v4().simple().to_string(),
            batch_id: batch.clone(),
            worker: self.worker.clone(),
            deployment: deployment.clone(),
            model: model.clone(),
            service_tier: service_tier.clone(),
            hour: hour.clone(),
            minutes: Default::default(),
            endings: Default::default(),
            withdrawn: 0,
            attempts: 0,
            usage: Default::default(),
            finishes: Default::default(),
        }
    }

    /// Returns the sums to write, each with its number of changes.
    pub(super) fn changed(&self) -> Vec<(WorkerSumKey, UsageItem, u64)> {
        let rows = self.rows();
        let changed = rows.iter().filter(|(_, row)| row.written < row.changes);
        changed.map(|(key, row)| (key.clone(), row.item.clone(), row.changes)).collect()
    }

    pub(super) fn mark_written(&self, key: &WorkerSumKey, changes: u64) {
        if let Some(row) = self.rows().get_mut(key) {
            row.written = changes;
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<WorkerSumKey, WorkerSum>> {
        lock(&self.rows)
    }
}
