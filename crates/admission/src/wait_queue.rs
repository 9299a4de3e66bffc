//! Queue of waiting jobs by priority, deadline and age, which can look behind its head.
//!
//! Where the head can't go for a while (too large for the rest of a window, too near its deadline
//! for a slow tier, waiting for another deployment than the one that failed it), a job behind it
//! may. To find that job without a search, the queue is kept as several heaps: by what a job may
//! use, and by its size in powers of two. The best job that fits is the best of their heads: a look
//! at each, whatever the length of the queue, and one heap operation. A job hidden behind a head of
//! its own heap waits for it; there are enough heaps that this costs little.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokio::time::Instant;

use super::booking::{DeploymentSet, JobTag};

/// Order in the queue, greatest first: priority, then the earlier deadline (any before none), then
/// age: a job that comes back after a failed call has its old place.
pub type JobRank = (i32, Reverse<(bool, Option<Instant>)>, Reverse<(Instant, u64)>);

/// Job in the queue.
pub struct WaitingJob<T> {
    pub rank: JobRank,
    pub charge: u64,
    pub deadline: Option<Instant>,
    /// Start of its wait.
    pub since: Instant,
    /// The deployment that failed it, and until when it waits for another one.
    pub avoids: Option<(usize, Instant)>,
    /// Deployments that refused it for good.
    pub excluded: DeploymentSet,
    pub tag: JobTag,
    pub item: T,
}

/// Kinds of jobs by what they may use: any deployment; not the slow ones because of its deadline;
/// any but some.
const KINDS: usize = 3;
const CHOOSY: usize = 2;

/// Size classes: below 128 tokens, then doubling; the last has no upper bound.
const SIZES: usize = 16;
const SMALLEST_BITS: u32 = 7;

/// Index of a heap in the queue.
pub type HeapIndex = usize;

/// Jobs that the same deployments can serve.
pub struct WaitQueue<T> {
    heaps: Vec<BinaryHeap<WaitingJob<T>>>,
    /// Bit set of the heaps that are not empty.
    filled: u64,
    jobs: usize,
    tokens: u64,
}

impl<T> WaitQueue<T> {
    pub fn new() -> Self {
        let heaps = (0..KINDS * SIZES).map(|_| BinaryHeap::new()).collect();
        Self { heaps, filled: 0, jobs: 0, tokens: 0 }
    }

    pub fn push(&mut self, job: WaitingJob<T>) {
        let kind = match (job.avoids.is_some() || !job.excluded.is_empty(), job.deadline) {
            (true, _) => CHOOSY,
            (false, Some(_)) => 1,
            (false, None) => 0,
        };
        let bits = (u64::BITS - job.charge.leading_zeros()).saturating_sub(SMALLEST_BITS);
        let heap = kind * SIZES + (bits as usize).min(SIZES - 1);
        self.jobs += 1;
        self.tokens += job.charge;
        self.filled |= 1 << heap;
        self.heaps[heap].push(job);
    }

    /// Returns the best job that suits, among the heads.
    pub fn best(
        &self,
        mut suits: impl FnMut(&WaitingJob<T>) -> bool,
    ) -> Option<(HeapIndex, &WaitingJob<T>)> {
        let mut best: Option<(HeapIndex, &WaitingJob<T>)> = None;
        let mut left = self.filled;
        while left != 0 {
            let heap = left.trailing_zeros() as usize;
            left &= left - 1;
            let Some(head) = self.heaps[heap].peek() else { continue };
            if best.is_none_or(|(_, best)| head.rank > best.rank) && suits(head) {
                best = Some((heap, head));
            }
        }
        best
    }

    /// Returns the best job of all.
    pub fn head(&self) -> Option<(HeapIndex, &WaitingJob<T>)> {
        self.best(|_| true)
    }

    /// Returns the head of a heap.
    pub fn peek(&self, heap: HeapIndex) -> Option<&WaitingJob<T>> {
        self.heaps[heap].peek()
    }

    /// Iterates over all of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &WaitingJob<T>> {
        self.heaps.iter().flatten()
    }

    /// Returns whether any may have a deadline.
    pub fn has_deadlines(&self) -> bool {
        self.filled >> SIZES != 0
    }

    /// Returns whether any may be unable to go to some deployment.
    pub fn has_choosy(&self) -> bool {
        self.filled >> (CHOOSY * SIZES) != 0
    }

    /// Removes the head of a heap.
    pub fn pop(&mut self, heap: HeapIndex) -> Option<WaitingJob<T>> {
        let job = self.heaps[heap].pop()?;
        if self.heaps[heap].is_empty() {
            self.filled &= !(1 << heap);
        }
        self.jobs -= 1;
        self.tokens -= job.charge;
        Some(job)
    }

    /// Removes every job that suits, wherever it stands.
    pub fn extract(&mut self, mut suits: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut out = Vec::new();
        for (index, heap) in self.heaps.iter_mut().enumerate() {
            let all = std::mem::take(heap).into_iter();
            let (taken, left): (Vec<_>, Vec<_>) = all.partition(|job| suits(&job.item));
            *heap = left.into();
            if heap.is_empty() {
                self.filled &= !(1 << index);
            }
            self.jobs -= taken.len();
            self.tokens -= taken.iter().map(|job| job.charge).sum::<u64>();
            out.extend(taken.into_iter().map(|job| job.item));
        }
        out
    }

    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        (self.filled, self.jobs, self.tokens) = (0, 0, 0);
        self.heaps.iter_mut().flat_map(BinaryHeap::drain).map(|job| job.item)
    }

    pub fn jobs(&self) -> usize {
        self.jobs
    }

    /// Returns the tokens that all of them would book.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
}

impl<T> PartialEq for WaitingJob<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl<T> Eq for WaitingJob<T> {}

impl<T> PartialOrd for WaitingJob<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for WaitingJob<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(age: u64, charge: u64, now: Instant) -> WaitingJob<u64> {
        let rank = (0, Reverse((true, None)), Reverse((now, age)));
        let (excluded, tag) = (DeploymentSet::default(), JobTag::default());
        WaitingJob {
            rank,
            charge,
            deadline: None,
            since: now,
            avoids: None,
            excluded,
            tag,
            item: age,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_best_that_fits_is_found_behind_a_head_that_does_not() {
        let now = Instant::now();
        let mut line = WaitQueue::new();
        for (age, charge) in [(1, 8_000), (2, 7_000), (3, 900), (4, 60), (5, 800)] {
            line.push(job(age, charge, now));
        }
        assert_eq!(line.tokens(), 16_760);
        let mut take = |room: u64| {
            let (heap, _) = line.best(|job| job.charge <= room)?;
            line.pop(heap).map(|job| job.item)
        };
        let taken = [take(1_000), take(1_000), take(100), take(100), take(u64::MAX)];
        assert_eq!(taken, [Some(3), Some(4), None, None, Some(1)]);
        assert_eq!((line.jobs(), line.tokens()), (2, 7_800));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_out_leaves_the_others_in_their_order() {
        let now = Instant::now();
        let mut line = WaitQueue::new();
        for (age, charge) in [(1, 8_000), (2, 7_000), (3, 900), (4, 60), (5, 800)] {
            line.push(job(age, charge, now));
        }
        let mut taken = line.extract(|age| [1, 4, 5].contains(age));
        taken.sort_unstable();
        assert_eq!(taken, [1, 4, 5]);
        assert_eq!((line.jobs(), line.tokens()), (2, 7_900));
        let mut pop = || line.head().map(|(heap, _)| heap).and_then(|heap| line.pop(heap));
        let left: Vec<_> = std::iter::from_fn(|| pop().map(|job| job.item)).collect();
        assert_eq!(left, [2, 3]);
        assert_eq!(line.jobs(), 0);
    }
}
