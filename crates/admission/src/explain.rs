//! Explanation of why a queued job does not go now, for people, from what admission knows.
//!
//! Pure, and it changes nothing: no quota accrues, no breaker hands out its probe. It checks in the
//! same order as `choose`, so the reason it names is the one that holds the job back. Times are
//! estimates: jobs that come later with a higher priority are not foreseen.

use std::time::Duration;

use tokio::time::Instant;

use super::breaker::BreakerDecision;
use super::choose::FLEX_TIME_NEEDED;
use super::deployment::Deployment;
use super::quota::{DeploymentQuota, ExhaustedLimit};
use super::wait_queue::WaitingJob;
use super::{Admission, DeploymentIndex, RoutingGroup};
use domain::inquiry::{BlockReason, BlockedDeployment, JobWait, WaitSummary};

impl<T> Admission<T> {
    /// Explains why the chosen jobs wait.
    pub fn explain_waits(&self, chosen: impl Fn(&T) -> bool, now: Instant) -> Vec<(&T, JobWait)> {
        let mut waits = Vec::new();
        for group in &self.groups {
            for job in group.queue.iter().filter(|job| chosen(&job.item)) {
                waits.push((&job.item, self.explain_wait(group, job, now)));
            }
        }
        waits
    }

    /// Counts the chosen jobs in each queue and explains the wait of the first one. Queues without
    /// any are left out.
    pub fn summarize_waits(&self, chosen: impl Fn(&T) -> bool, now: Instant) -> Vec<WaitSummary> {
        let of_group = |group: &RoutingGroup<T>| {
            let mut first: Option<&WaitingJob<T>> = None;
            let mut waiters = WaitSummary::default();
            for job in group.queue.iter().filter(|job| chosen(&job.item)) {
                waiters.jobs += 1;
                waiters.tokens += job.charge;
                if first.is_none_or(|first| job.rank > first.rank) {
                    first = Some(job);
                }
            }
            waiters.first = self.explain_wait(group, first?, now);
            Some(waiters)
        };
        self.groups.iter().filter_map(of_group).collect()
    }

    fn explain_wait(&self, group: &RoutingGroup<T>, job: &WaitingJob<T>, now: Instant) -> JobWait {
        let before = group.queue.iter().filter(|other| other.rank > job.rank);
        let (ahead, ahead_tokens) =
            before.fold((0, 0), |(jobs, tokens), other| (jobs + 1, tokens + other.charge));
        let mut members = group.members.clone();
        members.sort_by_key(|n| self.pool[*n].tier);
        let mut blocks: Vec<BlockedDeployment> = Vec::with_capacity(members.len());
        for n in &members {
            let tier = self.pool[*n].tier;
            let above = blocks.iter().filter(|block| block.tier < tier && block.is_temporary());
            let above = above.filter_map(|block| block.over_in_ms).min();
            let (hindrance, over) = self.block_reason(group, *n, job, above, now);
            let over_in_ms = over.map(|over| over.as_millis() as u64);
            let deployment = self.deployments[*n].name().to_owned();
            blocks.push(BlockedDeployment { deployment, tier, reason: hindrance, over_in_ms });
        }
        let goes_in_ms = self.estimate_start(&members, &blocks, (ahead, ahead_tokens));
        JobWait { charge: job.charge, ahead, ahead_tokens, blocks, goes_in_ms }
    }

    /// Returns what keeps a job from one deployment, and for how long. `above`: milliseconds until
    /// a higher tier may take it.
    fn block_reason(
        &self,
        group: &RoutingGroup<T>,
        n: usize,
        job: &WaitingJob<T>,
        above: Option<u64>,
        now: Instant,
    ) -> (BlockReason, Option<Duration>) {
        let (deployment, quota) = (&self.deployments[n], &self.quotas[self.pool[n].quota]);
        if let Some(closed) = deployment.closed_reason(now) {
            return closed;
        }
        let most = quota.largest();
        if job.charge > most {
            return (BlockReason::TooLarge { most }, None);
        }
        if job.excluded.contains(DeploymentIndex(n)) {
            return (BlockReason::RefusedJob, None);
        }
        if deployment.is_flex() && job.deadline.is_some_and(|at| at <= now + FLEX_TIME_NEEDED) {
            return (BlockReason::Deadline, None);
        }
        let patience = (job.since + self.spill_after).saturating_duration_since(now);
        if above.is_some_and(|ms| Duration::from_millis(ms) <= patience) && !patience.is_zero() {
            return (BlockReason::TierAbove, Some(patience));
        }
        let avoided = job.avoids.filter(|(avoided, until)| *avoided == n && *until > now);
        let is_better = |other: &usize| *other != n && self.deployments[*other].is_healthy(now);
        if let Some((_, until)) = avoided.filter(|_| group.members.iter().any(is_better)) {
            return (BlockReason::FailedHere, Some(until - now));
        }
        let Some((lack, over)) = quota.shortage(job.charge, now) else {
            return (BlockReason::Line, None);
        };
        let share = quota.share();
        let why = match lack {
            ExhaustedLimit::Tokens => {
                BlockReason::Tokens { tpm: quota.limit().map(|l| l as u64), share }
            }
            ExhaustedLimit::Requests => BlockReason::Requests { rpm: quota.rpm(), share },
        };
        (why, Some(over))
    }

    /// Estimates when a job behind so many others goes: once the first deployment takes jobs, at
    /// the rate of all of them.
    fn estimate_start(
        &self,
        members: &[usize],
        blocks: &[BlockedDeployment],
        ahead: (u64, u64),
    ) -> Option<u64> {
        let usable = members.iter().zip(blocks).filter(|(_, block)| block.is_temporary());
        let first = usable.clone().filter_map(|(_, block)| block.over_in_ms).min();
        if ahead.0 == 0 {
            return first;
        }
        // A quota that two deployments share counts once.
        let mut quotas: Vec<_> = usable.map(|(n, _)| self.pool[*n].quota).collect();
        quotas.sort_unstable();
        quotas.dedup();
        let takes = |amount: u64, rate: fn(&DeploymentQuota) -> Option<f64>| {
            let rates = quotas.iter().map(|n| rate(&self.quotas[*n]));
            let per_minute = rates.sum::<Option<f64>>()?;
            Some((amount as f64 / per_minute.max(1e-9) * 60_000.0) as u64)
        };
        let tokens = takes(ahead.1, DeploymentQuota::tokens_a_minute);
        let requests = takes(ahead.0, DeploymentQuota::requests_a_minute);
        let slower = tokens.max(requests)?;
        Some(first.unwrap_or(0).max(slower))
    }
}

impl Deployment {
    /// Returns why it takes no calls at all, and for how long.
    fn closed_reason(&self, now: Instant) -> Option<(BlockReason, Option<Duration>)> {
        if let Some(error) = self.retired() {
            return Some((BlockReason::Retired { error: error.to_owned() }, None));
        }
        if let Some(until) = self.closed_until().filter(|until| *until > now) {
            let error = self.last_refusal().map(Into::into);
            return Some((BlockReason::Paused { error }, Some(until - now)));
        }
        let broken =
            || BlockReason::Breaker { error: self.breaker_error().unwrap_or_default().to_owned() };
        match self.breaker_decision(now) {
            BreakerDecision::Until(at) => Some((broken(), Some(at - now))),
            BreakerDecision::AfterProbe => Some((broken(), None)),
            BreakerDecision::All if !self.may_start_call() => {
                let ends = self.next_end(now) - now;
                let (in_flight, concurrency) = (self.in_flight(), self.configured_calls());
                Some((BlockReason::Calls { in_flight, concurrency }, Some(ends)))
            }
            BreakerDecision::All | BreakerDecision::Probe => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::{CallFeedback, DeploymentLimits};
    use crate::{AdmissionDecision, AdmissionTicket, PoolMember};
    use domain::headers::RateHeaders;

    const SPILL: Duration = Duration::from_secs(30);

    fn member(tier: u8, tpm: u64) -> PoolMember {
        let limits = DeploymentLimits { tpm: Some(tpm), ..DeploymentLimits::default() };
        PoolMember { name: format!("tier{tier}"), tier, limits, ..PoolMember::default() }
    }

    fn offer(admission: &mut Admission<u32>, charge: u64, item: u32, now: Instant) {
        let lane = admission.group_for("m");
        let ticket = AdmissionTicket {
            group: lane,
            charge,
            priority: 0,
            deadline: None,
            since: now,
            avoid: None,
            excluded: Default::default(),
            tag: Default::default(),
        };
        admission.offer(&ticket, item, now);
    }

    fn only(admission: &Admission<u32>, now: Instant) -> JobWait {
        let mut waits = admission.explain_waits(|_| true, now);
        assert_eq!(waits.len(), 1);
        waits.remove(0).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_for_tokens_until_they_are_gathered() {
        let now = Instant::now();
        let mut admission = Admission::new(vec![member(0, 6_000)], SPILL, now);
        offer(&mut admission, 1_000, 1, now);
        assert!(matches!(admission.next(now), AdmissionDecision::Wait(_)), "100 tokens a second");
        let wait = only(&admission, now);
        let [block] = &wait.blocks[..] else { panic!("{wait:?}") };
        assert_eq!(block.reason, BlockReason::Tokens { tpm: Some(6_000), share: 1.0 });
        let over = block.over_in_ms.unwrap();
        assert!((9_000..=11_000).contains(&over), "{over}");
        assert_eq!((wait.ahead, wait.goes_in_ms), (0, Some(over)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_and_a_job_too_large_are_told() {
        let now = Instant::now();
        let mut admission = Admission::new(vec![member(0, 6_000)], SPILL, now);
        offer(&mut admission, 10, 1, now);
        let later = now + Duration::from_secs(1);
        let AdmissionDecision::Go(_, booking) = admission.next(later) else { panic!("it goes") };
        let (until, asked) = (later + Duration::from_secs(20), Some(Duration::from_secs(20)));
        let refused = CallFeedback::Throttled { asked, why: "429: full".into() };
        admission.observe(&booking, refused, &RateHeaders::default(), later);
        offer(&mut admission, 10, 2, later);
        let wait = only(&admission, later);
        let error = Some("429: full".into());
        assert_eq!(wait.blocks[0].reason, BlockReason::Paused { error });
        assert_eq!(wait.blocks[0].over_in_ms, Some(20_000));
        admission.drain();
        offer(&mut admission, 7_000, 3, until);
        let wait = only(&admission, until);
        assert_eq!(wait.blocks[0].reason, BlockReason::TooLarge { most: 6_000 });
        assert_eq!(wait.goes_in_ms, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_tier_waits_for_the_one_above() {
        let now = Instant::now();
        let mut admission = Admission::new(vec![member(0, 6_000), member(1, 6_000)], SPILL, now);
        offer(&mut admission, 1_000, 1, now);
        let wait = only(&admission, now);
        let names: Vec<_> = wait.blocks.iter().map(|block| block.deployment.as_str()).collect();
        assert_eq!(names, ["tier0", "tier1"]);
        assert_eq!(wait.blocks[1].reason, BlockReason::TierAbove);
    }
}
