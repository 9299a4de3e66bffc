//! Admission: jobs wait here until a deployment can take them.
//!
//! Pure: [`Admission`] decides from its inputs and from `now`; the worker's conductor owns it and
//! drives it. Jobs that the same deployments can serve wait in one `wait_queue`, in order of
//! priority, deadline and age. A deployment that has room takes the best job that suits it; the
//! tiers are asked in order, and a lower one only for what those above can't take soon.
//! `docs/admission.md` has the full description.
//!
//! `deployment` joins what is known of each: `pace`, `quota_estimator` (with `window`,
//! `charge_factor` and `sliding_window`), `concurrency_limit`, `breaker` and `demand`, by which
//! instances share it (`shares`). `refusals` tells a job's fault from the deployment's, `throttle` how
//! long a 429 pauses it. `explain` tells people why a job waits.

mod booking;
mod breaker;
mod call_averages;
mod charge_factor;
mod choose;
mod concurrency_limit;
mod demand;
pub mod deployment;
pub mod explain;
mod limits;
mod overload;
mod pace;
mod quota;
mod quota_estimator;
mod refusals;
pub mod shares;
mod silence;
mod sliding_window;
mod throttle;
mod wait_queue;
mod window;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

pub use booking::{Booking, DeploymentIndex, DeploymentSet, JobTag};
use deployment::{CallFeedback, Deployment, DeploymentLimits, ObservedCall};
use domain::deployment::{DemandSnapshot, DeploymentSnapshot, ServiceKind};
use domain::headers::RateHeaders;
use quota::DeploymentQuota;
pub use refusals::RefusalRuling;
use wait_queue::{WaitQueue, WaitingJob};

/// Time that a job which a deployment failed waits for another one.
const AVOID_FOR: Duration = Duration::from_secs(2);

/// One deployment that admission may send jobs to.
#[derive(Debug, Clone, Default)]
pub struct PoolMember {
    /// Name in logs and reports.
    pub name: String,
    /// Models that it serves, by all their names; empty: every model.
    pub models: Vec<String>,
    /// Tier 0 is asked first.
    pub tier: u8,
    /// Weight among the tier's deployments while all have room; absent: by their quotas.
    pub weight: Option<f64>,
    pub limits: DeploymentLimits,
    /// Key of a shared quota: deployments with the same key use it together. Empty: its own quota.
    pub quota: String,
}

/// Index of a routing group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoutingGroupIndex(usize);

/// Attributes by which a waiting job is judged.
#[derive(Debug, Clone, Copy)]
pub struct AdmissionTicket {
    /// Group from [`Admission::group_for`]; `None`: no deployment serves its model.
    pub group: Option<RoutingGroupIndex>,
    /// Tokens that the service will book.
    pub charge: u64,
    pub priority: i32,
    pub deadline: Option<Instant>,
    /// Start of its wait, which decides when it may spill to a lower tier.
    pub since: Instant,
    /// The deployment that failed it last.
    pub avoid: Option<DeploymentIndex>,
    /// Deployments that refused it for good.
    pub excluded: DeploymentSet,
    pub tag: JobTag,
}

/// Decision about the next job.
#[derive(Debug, PartialEq)]
pub enum AdmissionDecision<T> {
    /// Send it, and report its end to [`Admission::observe`].
    Go(T, Booking),
    Expired(T),
    /// Larger than a whole minute's quota of every deployment that serves its model.
    NeverFits(T),
    /// No deployment serves its model.
    NotServed(T),
    /// All deployments that are left have refused it for good.
    Excluded(T),
    /// Nothing can go before this time, or (`None`) before something else happens.
    Wait(Option<Instant>),
}

/// Waiting jobs and the deployments that serve them.
pub struct Admission<T> {
    deployments: Vec<Deployment>,
    pool: Vec<PoolEntry>,
    quotas: Vec<DeploymentQuota>,
    /// Deployments by tier, the first tier first.
    tiers: Vec<Vec<usize>>,
    groups: Vec<RoutingGroup<T>>,
    /// Group of each model that is named; all others go to the default group.
    by_model: HashMap<String, usize>,
    default_group: Option<usize>,
    /// Jobs of a model that no group serves; they can only be turned away.
    unroutable: Vec<T>,
    offered: u64,
    spill_after: Duration,
    /// Turn of the deployment that was chosen last.
    turn: f64,
}

/// Entry of a deployment in the pool.
struct PoolEntry {
    tier: u8,
    weight: Option<f64>,
    /// Index of the quota it uses.
    quota: usize,
    /// Routing groups it serves.
    groups: Vec<usize>,
    /// Work it was given, divided by its weight: the least goes first.
    turn: f64,
}

/// Models that the same deployments serve, and their queue.
struct RoutingGroup<T> {
    members: Vec<usize>,
    queue: WaitQueue<T>,
    /// Scratch of the current `next()`: heap of the queue's head; earliest time any tier asked so
    /// far can take its next job; the same without the tier being asked now.
    head: Option<wait_queue::HeapIndex>,
    earliest: Option<Instant>,
    earliest_above: Option<Instant>,
}

impl<T> Admission<T> {
    /// Creates the pool; `spill_after`: a job's wait for a tier before the one below may take it.
    pub fn new(members: Vec<PoolMember>, spill_after: Duration, now: Instant) -> Self {
        let mut admission = Self {
            deployments: Vec::with_capacity(members.len()),
            pool: Vec::with_capacity(members.len()),
            quotas: Vec::with_capacity(members.len()),
            tiers: Vec::new(),
            groups: Vec::new(),
            by_model: HashMap::new(),
            default_group: None,
            unroutable: Vec::new(),
            offered: 0,
            spill_after,
            turn: 0.0,
        };
        admission.create_groups(&members);
        let mut tiers: Vec<u8> = members.iter().map(|member| member.tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        for tier in tiers {
            let of = (0..members.len()).filter(|n| members[*n].tier == tier);
            admission.tiers.push(of.collect());
        }
        let mut known = HashMap::new();
        for (index, member) in members.iter().enumerate() {
            let serves = |group: &usize| admission.groups[*group].members.contains(&index);
            let groups = (0..admission.groups.len()).filter(serves).collect();
            let quota = admission.quota_of(index, &members, &mut known, now);
            let (tier, weight) = (member.tier, member.weight);
            admission.pool.push(PoolEntry { tier, weight, quota, groups, turn: 0.0 });
            let is_paced = admission.quotas[quota].is_paced();
            let deployment = Deployment::new(&member.name, member.limits.clone(), is_paced, now);
            admission.deployments.push(deployment);
        }
        admission
    }

    /// Returns the quota of a member: one shared with an earlier member, or a new one.
    fn quota_of<'a>(
        &mut self,
        index: usize,
        members: &'a [PoolMember],
        known: &mut HashMap<&'a str, usize>,
        now: Instant,
    ) -> usize {
        let PoolMember { name, limits, quota, .. } = &members[index];
        // A provisioned deployment has no quota a minute that could be shared.
        let is_same = !quota.is_empty() && limits.service != ServiceKind::Provisioned;
        if let Some(same) = known.get(quota.as_str()).filter(|_| is_same) {
            return *same;
        }
        let mut limits = limits.clone();
        if is_same {
            let others = members[index..].iter().filter(|other| other.quota == *quota);
            for other in others.map(|other| &other.limits) {
                limits.tpm = limits.tpm.or(other.tpm);
                limits.rpm = limits.rpm.or(other.rpm);
                limits.reserve = limits.reserve.max(other.reserve);
            }
            known.insert(quota, self.quotas.len());
        }
        self.quotas.push(DeploymentQuota::new(name, &limits, now));
        self.quotas.len() - 1
    }

    /// Creates one group for all models that the same deployments serve.
    fn create_groups(&mut self, members: &[PoolMember]) {
        let serving = |serves: &dyn Fn(&PoolMember) -> bool| -> Vec<usize> {
            (0..members.len()).filter(|n| serves(&members[*n])).collect()
        };
        for model in members.iter().flat_map(|member| &member.models) {
            let serving = serving(&|member| member.models.contains(model));
            let group = self.group_of(serving);
            self.by_model.insert(model.clone(), group);
        }
        let any = serving(&|member| member.models.is_empty());
        if !any.is_empty() {
            self.default_group = Some(self.group_of(any));
        }
    }

    fn group_of(&mut self, members: Vec<usize>) -> usize {
        let known = self.groups.iter().position(|group| group.members == members);
        known.unwrap_or_else(|| {
            self.groups.push(RoutingGroup {
                members,
                queue: WaitQueue::new(),
                head: None,
                earliest: None,
                earliest_above: None,
            });
            self.groups.len() - 1
        })
    }

    /// Returns the group in which jobs of a model wait.
    pub fn group_for(&self, model: &str) -> Option<RoutingGroupIndex> {
        self.by_model.get(model).copied().or(self.default_group).map(RoutingGroupIndex)
    }

    /// Puts a job in its queue.
    pub fn offer(&mut self, ticket: &AdmissionTicket, item: T, now: Instant) {
        self.offered += 1;
        let Some(RoutingGroupIndex(group)) = ticket.group else {
            self.unroutable.push(item);
            return;
        };
        let deadline = ticket.deadline;
        let age = Reverse((ticket.since, self.offered));
        let rank = (ticket.priority, Reverse((deadline.is_none(), deadline)), age);
        let avoids = ticket.avoid.map(|avoided| (avoided.0, now + AVOID_FOR));
        let AdmissionTicket { charge, since, excluded, tag, .. } = *ticket;
        let waiting = WaitingJob { rank, charge, deadline, since, avoids, excluded, tag, item };
        self.groups[group].queue.push(waiting);
    }

    /// Decides about one job.
    pub fn next(&mut self, now: Instant) -> AdmissionDecision<T> {
        if let Some(unroutable) = self.unroutable.pop() {
            return AdmissionDecision::NotServed(unroutable);
        }
        let mut wake = None;
        for group in 0..self.groups.len() {
            if let Some(turned_away) = self.turn_away(group, &mut wake, now) {
                return turned_away;
            }
        }
        for tier in 0..self.tiers.len() {
            let Some((deployment, pick)) = self.choose(tier, &mut wake, now) else { continue };
            if let Some(job) = self.groups[pick.group].queue.pop(pick.heap) {
                self.advance_turn(deployment, pick.charge);
                let index = DeploymentIndex(deployment);
                let quota = &mut self.quotas[self.pool[deployment].quota];
                let booking =
                    self.deployments[deployment].book(quota, (index, job.tag), pick.charge, now);
                return AdmissionDecision::Go(job.item, booking);
            }
        }
        AdmissionDecision::Wait(wake)
    }

    /// Records how a call ended, and the rate limits of its response. Returns the ruling on a
    /// refusal, if it was one.
    pub fn observe(
        &mut self,
        booking: &Booking,
        feedback: CallFeedback,
        rate_limits: &RateHeaders,
        now: Instant,
    ) -> Option<RefusalRuling> {
        let index = booking.deployment.0;
        let stays = |n: usize| {
            let other = &self.deployments[n];
            other.retired().is_none() && !other.is_in_doubt()
        };
        let is_last =
            matches!(feedback, CallFeedback::Denied { .. }) && !self.alternatives(index).any(stays);
        let quota = &mut self.quotas[self.pool[index].quota];
        let end = ObservedCall { booking, feedback, rate_limits, is_last };
        self.deployments[index].observe(quota, end, now)
    }

    /// Closes the deployments that are silent. Returns those whose late calls another one could
    /// answer, with the time since which a call in flight counts as late.
    pub fn close_silent(&mut self, now: Instant) -> Vec<(DeploymentIndex, Instant)> {
        let slowest: Vec<_> = self.deployments.iter().map(Deployment::slowest_call).collect();
        let mut silent = Vec::new();
        for n in 0..self.deployments.len() {
            let others = self.alternatives(n).filter_map(|other| slowest[other]).max();
            if let Some(late) = self.deployments[n].close_if_silent(others, now)
                && self.alternatives(n).any(|other| self.deployments[other].is_healthy(now))
            {
                silent.push((DeploymentIndex(n), now - late));
            }
        }
        silent
    }

    /// Returns the other deployments that serve some of what this one serves.
    fn alternatives(&self, index: usize) -> impl Iterator<Item = usize> {
        let groups = &self.pool[index].groups;
        let serves = move |n: &usize| self.pool[*n].groups.iter().any(|g| groups.contains(g));
        (0..self.pool.len()).filter(move |n| *n != index).filter(serves)
    }

    /// Returns whether a deployment that has not refused the job may still take it.
    pub fn may_serve(&self, group: Option<RoutingGroupIndex>, excluded: DeploymentSet) -> bool {
        let Some(RoutingGroupIndex(group)) = group else { return false };
        let is_left = |n: &usize| {
            !excluded.contains(DeploymentIndex(*n)) && self.deployments[*n].retired().is_none()
        };
        self.groups[group].members.iter().any(is_left)
    }

    /// Returns whether a deployment has answered any job.
    pub fn has_answered(&self, deployment: DeploymentIndex) -> bool {
        self.deployments[deployment.0].has_answered()
    }

    /// Lets this instance use a part of a deployment's quota (from 0 to 1), or of its calls in
    /// flight where it has no quota. It may change at any time; a greater one brings no burst.
    pub fn set_share(&mut self, deployment: DeploymentIndex, share: f64, now: Instant) {
        let share = share.clamp(1e-6, 1.0);
        let quota = &mut self.quotas[self.pool[deployment.0].quota];
        quota.set_share(share, now);
        // Without a quota the calls in flight are shared.
        let of_calls = if quota.is_paced() { 1.0 } else { share };
        self.deployments[deployment.0].set_share(of_calls);
    }

    /// Returns the tokens queued for a deployment: its part of a shared queue, by the deployments'
    /// sizes.
    fn waiting_for(&self, index: usize) -> u64 {
        let size = |n: &usize| match self.deployments[*n].retired() {
            None => self.deployments[*n].capacity(&self.quotas[self.pool[*n].quota]),
            Some(_) => 0.0,
        };
        let part = |group: &usize| {
            let group = &self.groups[*group];
            let all: f64 = group.members.iter().map(size).sum();
            group.queue.tokens() as f64 * size(&index) / all.max(1e-9)
        };
        self.pool[index].groups.iter().map(part).sum::<f64>() as u64
    }

    /// Returns the state of every deployment.
    pub fn snapshot(&mut self, now: Instant) -> Vec<DeploymentSnapshot> {
        let waiting: Vec<_> = (0..self.pool.len()).map(|n| self.waiting_for(n)).collect();
        let each = self.deployments.iter_mut().zip(&self.pool).zip(waiting);
        each.map(|((deployment, place), waiting)| {
            deployment.snapshot(&self.quotas[place.quota], (place.tier, waiting), now)
        })
        .collect()
    }

    /// Returns the state of every deployment, with its demand since the last call.
    pub fn demand_snapshots(&mut self, now: Instant) -> Vec<DemandSnapshot> {
        let demands: Vec<_> = self.quotas.iter_mut().map(|quota| quota.demand(now)).collect();
        let states = self.snapshot(now).into_iter().zip(&self.pool);
        states
            .map(|(state, place)| DemandSnapshot { demand: demands[place.quota], state })
            .collect()
    }

    /// Removes the waiting jobs that suit.
    pub fn extract(&mut self, mut suits: impl FnMut(&T) -> bool) -> Vec<T> {
        let groups = self.groups.iter_mut().flat_map(|group| group.queue.extract(&mut suits));
        groups.collect()
    }

    /// Removes all waiting jobs.
    pub fn drain(&mut self) -> Vec<T> {
        let groups = self.groups.iter_mut().flat_map(|group| group.queue.drain());
        groups.chain(self.unroutable.drain(..)).collect()
    }

    /// Returns why no deployment is left, if none is.
    pub fn all_retired(&self) -> Option<&str> {
        first_if_all(self.deployments.iter().map(Deployment::retired))
    }

    /// Returns why nothing can go on: no call is in flight, and no queued job has a deployment
    /// left.
    pub fn stranded(&self) -> Option<&str> {
        if self.in_flight() > 0 {
            return None;
        }
        let why = |group: &RoutingGroup<T>| {
            first_if_all(group.members.iter().map(|n| self.deployments[*n].retired()))
        };
        let mut waiting = self.groups.iter().filter(|group| group.queue.jobs() > 0).map(why);
        let first = waiting.next()??;
        waiting.all(|why| why.is_some()).then_some(first)
    }

    /// Returns for how long all remaining deployments have been unreachable, and why the first is.
    pub fn all_unreachable(&self, now: Instant) -> Option<(Duration, &str)> {
        let left = self.deployments.iter().filter(|d| d.retired().is_none());
        let outages: Option<Vec<_>> = left.map(Deployment::outage).collect();
        let (since, why) = outages?.into_iter().max_by_key(|(since, _)| *since)?;
        Some((now.saturating_duration_since(since), why))
    }

    pub fn in_flight(&self) -> usize {
        self.deployments.iter().map(Deployment::in_flight).sum()
    }
}

fn first_if_all<'a>(mut reasons: impl Iterator<Item = Option<&'a str>>) -> Option<&'a str> {
    let first = reasons.next()??;
    reasons.all(|reason| reason.is_some()).then_some(first)
}

#[cfg(test)]
mod tests;
