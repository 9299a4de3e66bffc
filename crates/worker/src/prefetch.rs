//! Limit on jobs held: as many as can soon be done, so that siblings get the others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use telemetry::WorkerProgress;

/// Part of a lock's life for which work is held. So most locks need no renewal, and a worker that
/// dies keeps little from the others.
const LOCK_FRACTION: f64 = 1.0 / 3.0;

/// Jobs held for each call in flight, so that no call waits for the queue.
pub(super) const CALLS_AHEAD: usize = 2;

/// Interval at which the rate of work is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// Slots for jobs: a worker alone uses all of them, one of several only as many as it needs.
pub(super) struct PrefetchLimit {
    slots: Arc<Semaphore>,
    max: usize,
    /// Lower bound, so that no call waits for the queue; `None`: the only worker.
    min: Option<usize>,
    limit: usize,
    /// Slots above the limit.
    withheld: Option<OwnedSemaphorePermit>,
    progress: Arc<WorkerProgress>,
    last_measured: (Instant, u64),
    /// Jobs a second.
    jobs_per_second: f64,
}

impl PrefetchLimit {
    pub(super) fn new(max: usize, min: Option<usize>, progress: Arc<WorkerProgress>) -> Self {
        let last_measured = (Instant::now(), progress.ended());
        let slots = Arc::new(Semaphore::new(max));
        let limit = min.map_or(max, |least| least.min(max));
        Self {
            slots,
            max,
            min,
            limit,
            withheld: None,
            progress,
            last_measured,
            jobs_per_second: 0.0,
        }
    }

    /// Waits for slots for the next jobs: a batch that is worth the round trip, and small enough
    /// that settled jobs free slots in time. `None` when the worker ends.
    pub(super) async fn acquire(&mut self) -> Option<OwnedSemaphorePermit> {
        self.withhold();
        let batch = u32::try_from(self.limit.div_ceil(4)).unwrap_or(u32::MAX).max(1);
        self.slots.clone().acquire_many_owned(batch).await.ok()
    }

    /// Waits until no job is held: until all slots are free but those of this permit.
    pub(super) async fn wait_until_idle(&self, acquired: &OwnedSemaphorePermit) {
        let withheld = self.withheld.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let others = self.max - withheld - acquired.num_permits();
        let _ = self.slots.acquire_many(u32::try_from(others).unwrap_or(u32::MAX)).await;
    }

    /// Sets the limit by the rate of work and the locks' life.
    pub(super) fn adjust(&mut self, lock: Duration, now: Instant) {
        let Some(least) = self.min else { return };
        let (since, ended_before) = self.last_measured;
        let passed = now.saturating_duration_since(since);
        if passed >= MEASURE_INTERVAL {
            let ended = self.progress.ended();
            let recent = (ended - ended_before) as f64 / passed.as_secs_f64();
            self.jobs_per_second = (self.jobs_per_second + recent) / 2.0;
            self.last_measured = (now, ended);
        }
        // The cast saturates.
        let soon = (self.jobs_per_second * lock.as_secs_f64() * LOCK_FRACTION) as usize;
        // Long calls are many at a time, and slow to show in the rate of work.
        let in_flight =
            self.progress.deployments.borrow().iter().map(|d| d.in_flight).sum::<usize>();
        self.limit = soon.max(least).max(CALLS_AHEAD * in_flight).min(self.max);
    }

    fn withhold(&mut self) {
        let wanted = self.max - self.limit;
        let kept = self.withheld.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if kept > wanted {
            // Dropped, they are available again.
            drop(self.withheld.as_mut().and_then(|places| places.split(kept - wanted)));
            return;
        }
        let more = (wanted - kept).min(self.slots.available_permits());
        let Ok(more) = self.slots.clone().try_acquire_many_owned(more as u32) else { return };
        match &mut self.withheld {
            Some(places) => places.merge(more),
            none => *none = Some(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::outcome::OutcomeStatus;

    fn held(hold: &PrefetchLimit) -> usize {
        let kept_back = hold.withheld.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        hold.max - kept_back - hold.slots.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_follows_the_pace_of_work() {
        let progress = Arc::<WorkerProgress>::default();
        let mut hold = PrefetchLimit::new(1_000, Some(16), progress.clone());
        let lock = Duration::from_secs(60);
        let mut taken = Vec::new();
        while let Ok(places) = tokio::time::timeout(MEASURE_INTERVAL, hold.acquire()).await {
            taken.extend(places);
        }
        assert_eq!(held(&hold), 16, "at first, what its calls need");
        for _ in 0..20 {
            progress.count_ended(OutcomeStatus::Succeeded, 10);
            tokio::time::advance(MEASURE_INTERVAL).await;
            hold.adjust(lock, Instant::now());
        }
        while let Ok(places) = tokio::time::timeout(MEASURE_INTERVAL, hold.acquire()).await {
            taken.extend(places);
        }
        assert!((150..=200).contains(&held(&hold)), "10 a second for 20 s: {}", held(&hold));
        for _ in 0..20 {
            tokio::time::advance(MEASURE_INTERVAL).await;
            hold.adjust(lock, Instant::now());
        }
        taken.clear();
        while let Ok(places) = tokio::time::timeout(MEASURE_INTERVAL, hold.acquire()).await {
            taken.extend(places);
        }
        assert_eq!(held(&hold), 16);
        taken.clear();
        let acquired = hold.acquire().await.unwrap();
        tokio::time::timeout(MEASURE_INTERVAL, hold.wait_until_idle(&acquired)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn alone_it_holds_all_it_may() {
        let mut hold = PrefetchLimit::new(1_000, None, Arc::default());
        let mut taken = Vec::new();
        while let Ok(places) = tokio::time::timeout(MEASURE_INTERVAL, hold.acquire()).await {
            taken.extend(places);
        }
        assert_eq!(held(&hold), 1_000);
    }
}
