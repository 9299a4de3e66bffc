//! How many jobs to hold: as many as can soon be done, so that siblings get the others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use telemetry::Progress;

/// For how much of a lock's life work is held. So most locks need no renewal, and a worker that
/// dies keeps little from the others.
const OF_A_LOCK: f64 = 1.0 / 3.0;

/// How often the pace of work is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The places for jobs: a worker alone uses all of them, one of several only what it needs.
pub(super) struct Hold {
    places: Arc<Semaphore>,
    most: usize,
    /// What is held at the least, so that no call waits for the queue; `None`: alone.
    least: Option<usize>,
    limit: usize,
    /// Places above the limit.
    kept_back: Option<OwnedSemaphorePermit>,
    progress: Arc<Progress>,
    looked: (Instant, u64),
    /// Jobs a second.
    pace: f64,
}

impl Hold {
    pub(super) fn new(most: usize, least: Option<usize>, progress: Arc<Progress>) -> Self {
        let looked = (Instant::now(), progress.ended());
        let places = Arc::new(Semaphore::new(most));
        let limit = least.map_or(most, |least| least.min(most));
        Self { places, most, least, limit, kept_back: None, progress, looked, pace: 0.0 }
    }

    /// Waits for places for the next jobs: a batch that is worth the round trip, and small enough
    /// that settled jobs make room in time. None when the worker ends.
    pub(super) async fn places(&mut self) -> Option<OwnedSemaphorePermit> {
        self.keep_back();
        let batch = u32::try_from(self.limit.div_ceil(4)).unwrap_or(u32::MAX).max(1);
        self.places.clone().acquire_many_owned(batch).await.ok()
    }

    /// Waits until nothing is held.
    pub(super) async fn nothing(&self) {
        let kept_back = self.kept_back.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let all = u32::try_from(self.most - kept_back).unwrap_or(u32::MAX);
        let _ = self.places.acquire_many(all).await;
    }

    /// Sets the limit by the pace of work and by how long locks last.
    pub(super) fn follow(&mut self, lock: Duration, now: Instant) {
        let Some(least) = self.least else { return };
        let (since, ended_before) = self.looked;
        let passed = now.saturating_duration_since(since);
        if passed >= LOOK {
            let ended = self.progress.ended();
            let recent = (ended - ended_before) as f64 / passed.as_secs_f64();
            self.pace = (self.pace + recent) / 2.0;
            self.looked = (now, ended);
        }
        // The cast saturates.
        let soon = (self.pace * lock.as_secs_f64() * OF_A_LOCK) as usize;
        self.limit = soon.max(least).min(self.most);
    }

    fn keep_back(&mut self) {
        let wanted = self.most - self.limit;
        let kept = self.kept_back.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if kept > wanted {
            // Dropped, they are there again.
            drop(self.kept_back.as_mut().and_then(|places| places.split(kept - wanted)));
            return;
        }
        let more = (wanted - kept).min(self.places.available_permits());
        let Ok(more) = self.places.clone().try_acquire_many_owned(more as u32) else { return };
        match &mut self.kept_back {
            Some(places) => places.merge(more),
            none => *none = Some(more),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::outcome::Ending;

    fn held(hold: &Hold) -> usize {
        let kept_back = hold.kept_back.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        hold.most - kept_back - hold.places.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_follows_the_pace_of_work() {
        let progress = Arc::<Progress>::default();
        let mut hold = Hold::new(1_000, Some(16), progress.clone());
        let lock = Duration::from_secs(60);
        let mut taken = Vec::new();
        while let Ok(places) = tokio::time::timeout(LOOK, hold.places()).await {
            taken.extend(places);
        }
        assert_eq!(held(&hold), 16, "at first, what its calls need");
        for _ in 0..20 {
            progress.count_ended(Ending::Succeeded, 10);
            tokio::time::advance(LOOK).await;
            hold.follow(lock, Instant::now());
        }
        while let Ok(places) = tokio::time::timeout(LOOK, hold.places()).await {
            taken.extend(places);
        }
        assert!((150..=200).contains(&held(&hold)), "10 a second for 20 s: {}", held(&hold));
        for _ in 0..20 {
            tokio::time::advance(LOOK).await;
            hold.follow(lock, Instant::now());
        }
        taken.clear();
        while let Ok(places) = tokio::time::timeout(LOOK, hold.places()).await {
            taken.extend(places);
        }
        assert_eq!(held(&hold), 16);
        taken.clear();
        tokio::time::timeout(LOOK, hold.nothing()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn alone_it_holds_all_it_may() {
        let mut hold = Hold::new(1_000, None, Arc::default());
        let mut taken = Vec::new();
        while let Ok(places) = tokio::time::timeout(LOOK, hold.places()).await {
            taken.extend(places);
        }
        assert_eq!(held(&hold), 1_000);
    }
}
