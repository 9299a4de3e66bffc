//! Matching of jobs to deployments, one step of [`Admission::next`].
//!
//! The search starts from the deployments: each one with room looks for the best job that suits it,
//! so a queue head that suits only one deployment does not keep the others idle. Of the deployments
//! of a tier that could take their job now, the one with the best job goes first, and among equals
//! the one whose turn it is by weight.

use std::time::Duration;

use tokio::time::Instant;

use super::deployment::DeploymentGate;
use super::quota::DeploymentQuota;
use super::wait_queue::{HeapIndex, JobRank, WaitingJob};
use super::{Admission, AdmissionDecision, DeploymentIndex, RoutingGroup};

/// Time a job must have until its deadline to be tried on the flex tier: a slow call there takes
/// up to 15 minutes (Azure docs: "flex processing"), and then it has to be made elsewhere.
pub(super) const FLEX_TIME_NEEDED: Duration = Duration::from_secs(20 * 60);

/// Time of the next look, if one is needed.
pub(super) type WakeTime = Option<Instant>;

/// Job that a deployment would take.
pub(super) struct JobPick {
    pub(super) group: usize,
    pub(super) heap: HeapIndex,
    pub(super) charge: u64,
    rank: JobRank,
}

impl<T> Admission<T> {
    /// Removes a job of the group that no call can serve: past its deadline, or larger than any
    /// quota.
    pub(super) fn turn_away(
        &mut self,
        group: usize,
        wake: &mut WakeTime,
        now: Instant,
    ) -> Option<AdmissionDecision<T>> {
        let RoutingGroup { members, queue, earliest, head: best, .. } = &mut self.groups[group];
        (*best, *earliest) = (None, None);
        let is_over = |job: &WaitingJob<T>| job.deadline.is_some_and(|deadline| deadline <= now);
        if queue.has_deadlines()
            && let Some((heap, _)) = queue.best(is_over)
        {
            return queue.pop(heap).map(|job| AdmissionDecision::Expired(job.item));
        }
        let deployments = &self.deployments;
        let is_closed = |job: &WaitingJob<T>, n: &usize| {
            job.excluded.contains(DeploymentIndex(*n)) || deployments[*n].retired().is_some()
        };
        let is_excluded = |job: &WaitingJob<T>| {
            !job.excluded.is_empty() && members.iter().all(|n| is_closed(job, n))
        };
        if queue.has_choosy()
            && let Some((heap, _)) = queue.best(is_excluded)
        {
            return queue.pop(heap).map(|job| AdmissionDecision::Excluded(job.item));
        }
        let (heap, head) = queue.head()?;
        *best = Some(heap);
        if let Some(deadline) = head.deadline {
            sooner(wake, deadline);
        }
        let left = members.iter().filter(|n| self.deployments[**n].retired().is_none());
        // With no deployment left the job is not judged: it goes back to the queue.
        let largest = left.map(|n| self.quotas[self.pool[*n].quota].largest()).max()?;
        if head.charge <= largest {
            return None;
        }
        queue.pop(heap).map(|job| AdmissionDecision::NeverFits(job.item))
    }

    /// Returns the deployment of a tier that takes a job now, and the job.
    pub(super) fn choose(
        &mut self,
        tier: usize,
        wake: &mut WakeTime,
        now: Instant,
    ) -> Option<(usize, JobPick)> {
        let mut choice: Option<(usize, JobPick)> = None;
        self.groups.iter_mut().for_each(|group| group.earliest_above = group.earliest);
        for n in 0..self.tiers[tier].len() {
            let index = self.tiers[tier][n];
            let Some(pick) = self.pick_if_open(index, wake, now) else { continue };
            match self.quota(index).accrue(pick.charge, now) {
                Ok(()) => {
                    let turn = self.pool[index].turn;
                    let is_better = choice.as_ref().is_none_or(|(other, best)| {
                        let other_turn = self.pool[*other].turn;
                        pick.rank > best.rank || (pick.rank == best.rank && turn < other_turn)
                    });
                    if is_better {
                        choice = Some((index, pick));
                    }
                }
                Err(later) => {
                    sooner(wake, later.retry_at);
                    sooner(&mut self.groups[pick.group].earliest, later.expected);
                }
            }
        }
        choice
    }

    fn gate(&mut self, index: usize, now: Instant) -> DeploymentGate {
        self.deployments[index].gate(&mut self.quotas[self.pool[index].quota], now)
    }

    fn quota(&mut self, index: usize) -> &mut DeploymentQuota {
        &mut self.quotas[self.pool[index].quota]
    }

    /// Returns the job that a deployment would take if it has the tokens.
    fn pick_if_open(&mut self, index: usize, wake: &mut WakeTime, now: Instant) -> Option<JobPick> {
        let closed_until = match self.gate(index, now) {
            DeploymentGate::Open { room, until } => {
                let pick = self.pick(index, room, wake, now);
                if let Some(until) = until {
                    sooner(wake, until);
                    if pick.is_none() {
                        self.note_availability(index, until);
                        let is_waited_for = |group: &usize| self.groups[*group].head.is_some();
                        if self.pool[index].groups.iter().any(is_waited_for) {
                            self.quota(index).start_waiting(now, until);
                        }
                    }
                }
                return pick;
            }
            DeploymentGate::Retired => return None,
            DeploymentGate::Until(at) => {
                sooner(wake, at);
                at
            }
            DeploymentGate::WhenACallEnds => self.deployments[index].next_end(now),
        };
        // Nobody waits for a flex tier that has no room.
        if !self.deployments[index].is_flex() {
            self.note_availability(index, closed_until);
        }
        None
    }

    /// Notes in a deployment's groups when it could take their next job.
    fn note_availability(&mut self, index: usize, at: Instant) {
        for group in &self.pool[index].groups {
            sooner(&mut self.groups[*group].earliest, at);
        }
    }

    /// Returns the best job for a deployment among its groups.
    fn pick(&self, index: usize, room: u64, wake: &mut WakeTime, now: Instant) -> Option<JobPick> {
        let mut best: Option<JobPick> = None;
        for &group in &self.pool[index].groups {
            let RoutingGroup { members, queue, earliest_above: above, head, .. } =
                &self.groups[group];
            let mut suits = |job: &WaitingJob<T>| {
                job.charge <= room
                    && !job.excluded.contains(DeploymentIndex(index))
                    && self.is_in_time(index, job, now)
                    && self.may_spill(job, *above, wake, now)
                    && self.is_not_avoided(index, job, members, wake, now)
            };
            // The head suits most of the time and was found before.
            let Some(heap) = *head else { continue };
            let found = match queue.peek(heap) {
                Some(job) if suits(job) => Some((heap, job)),
                _ => queue.best(suits),
            };
            let Some((heap, job)) = found else { continue };
            if best.as_ref().is_none_or(|best| job.rank > best.rank) {
                best = Some(JobPick { group, heap, charge: job.charge, rank: job.rank });
            }
        }
        best
    }

    fn is_in_time(&self, index: usize, job: &WaitingJob<T>, now: Instant) -> bool {
        !self.deployments[index].is_flex()
            || job.deadline.is_none_or(|d| d > now + FLEX_TIME_NEEDED)
    }

    /// Returns whether no higher tier can take the job soon. The higher tiers were asked just
    /// before.
    fn may_spill(
        &self,
        job: &WaitingJob<T>,
        above: Option<Instant>,
        wake: &mut WakeTime,
        now: Instant,
    ) -> bool {
        let Some(above) = above.map(|at| at.max(now)) else { return true };
        let patience_ends = job.since + self.spill_after;
        if above > patience_ends {
            return true;
        }
        sooner(wake, patience_ends);
        false
    }

    /// Returns whether the job did not fail here before, or no healthy alternative is left.
    fn is_not_avoided(
        &self,
        index: usize,
        job: &WaitingJob<T>,
        members: &[usize],
        wake: &mut WakeTime,
        now: Instant,
    ) -> bool {
        let Some((_, until)) =
            job.avoids.filter(|(avoided, until)| *avoided == index && *until > now)
        else {
            return true;
        };
        if !members.iter().any(|other| *other != index && self.deployments[*other].is_healthy(now))
        {
            return true;
        }
        sooner(wake, until);
        false
    }

    /// Charges the chosen deployment for its turn. One that was idle gets no credit for the past.
    pub(super) fn advance_turn(&mut self, index: usize, charge: u64) {
        let entry = &self.pool[index];
        let began = entry.turn.max(self.turn);
        self.turn = began;
        let size = || self.deployments[index].capacity(&self.quotas[entry.quota]);
        let weight = entry.weight.unwrap_or_else(size);
        self.pool[index].turn = began + charge as f64 / weight.max(1e-9);
    }
}

fn sooner(wake: &mut WakeTime, at: Instant) {
    *wake = Some(wake.map_or(at, |wake| wake.min(at)));
}
