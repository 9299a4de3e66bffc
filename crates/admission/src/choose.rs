//! Which job goes to which deployment: the question that [`Admission::next`] asks.
//!
//! It is asked from the deployments' side: each that has room looks for the best job that suits it.
//! So a head of the line that suits one deployment only does not keep the others idle. Of the
//! deployments of a tier that could take their job now, the one with the best job goes first, and
//! among equals the one whose turn it is by weight.

use std::time::Duration;

use tokio::time::Instant;

use super::deployment::Gate;
use super::line::{Heap, Rank, Waiting};
use super::quota::Quota;
use super::{Admission, Lane, Next};

/// What a job must have left until its deadline to be tried on the flex tier: a slow call there
/// takes up to 15 minutes (Azure docs: "flex processing"), and then it has to be made elsewhere.
pub(super) const FLEX_TAKES: Duration = Duration::from_secs(20 * 60);

/// When to look again.
pub(super) type Wake = Option<Instant>;

/// What a deployment would take.
pub(super) struct Pick {
    pub(super) lane: usize,
    pub(super) heap: Heap,
    pub(super) charge: u64,
    rank: Rank,
}

impl<T> Admission<T> {
    /// What the head of a lane has no call to wait for.
    pub(super) fn turn_away(
        &mut self,
        lane: usize,
        wake: &mut Wake,
        now: Instant,
    ) -> Option<Next<T>> {
        let Lane { members, line, soonest, head: best, .. } = &mut self.lanes[lane];
        (*best, *soonest) = (None, None);
        let is_over = |job: &Waiting<T>| job.deadline.is_some_and(|deadline| deadline <= now);
        if line.has_deadlines()
            && let Some((heap, _)) = line.best(is_over)
        {
            return line.pop(heap).map(|job| Next::Expired(job.item));
        }
        let (heap, head) = line.head()?;
        *best = Some(heap);
        if let Some(deadline) = head.deadline {
            sooner(wake, deadline);
        }
        let left = members.iter().filter(|n| self.deployments[**n].retired().is_none());
        // With none left nothing is said about the job: it is given back.
        let largest = left.map(|n| self.quotas[self.places[*n].quota].largest()).max()?;
        if head.charge <= largest {
            return None;
        }
        line.pop(heap).map(|job| Next::NeverFits(job.item))
    }

    /// The deployment of a tier that takes a job now, if any does, and the job.
    pub(super) fn choose(
        &mut self,
        tier: usize,
        wake: &mut Wake,
        now: Instant,
    ) -> Option<(usize, Pick)> {
        let mut choice: Option<(usize, Pick)> = None;
        self.lanes.iter_mut().for_each(|lane| lane.above = lane.soonest);
        for n in 0..self.tiers[tier].len() {
            let index = self.tiers[tier][n];
            let Some(pick) = self.look(index, wake, now) else { continue };
            match self.quota(index).gather(pick.charge, now) {
                Ok(()) => {
                    let turn = self.places[index].turn;
                    let is_better = choice.as_ref().is_none_or(|(other, best)| {
                        let other_turn = self.places[*other].turn;
                        pick.rank > best.rank || (pick.rank == best.rank && turn < other_turn)
                    });
                    if is_better {
                        choice = Some((index, pick));
                    }
                }
                Err(later) => {
                    sooner(wake, later.ask_at);
                    sooner(&mut self.lanes[pick.lane].soonest, later.expected);
                }
            }
        }
        choice
    }

    fn gate(&mut self, index: usize, now: Instant) -> Gate {
        self.deployments[index].gate(&mut self.quotas[self.places[index].quota], now)
    }

    fn quota(&mut self, index: usize) -> &mut Quota {
        &mut self.quotas[self.places[index].quota]
    }

    /// What a deployment would take if it has the tokens.
    fn look(&mut self, index: usize, wake: &mut Wake, now: Instant) -> Option<Pick> {
        let closed_until = match self.gate(index, now) {
            Gate::Open { room, until } => {
                let pick = self.pick(index, room, wake, now);
                if let Some(until) = until {
                    sooner(wake, until);
                    if pick.is_none() {
                        self.expect(index, until);
                        let is_waited_for = |lane: &usize| self.lanes[*lane].head.is_some();
                        if self.places[index].lanes.iter().any(is_waited_for) {
                            self.quota(index).wait(now, until);
                        }
                    }
                }
                return pick;
            }
            Gate::Retired => return None,
            Gate::Until(at) => {
                sooner(wake, at);
                at
            }
            Gate::WhenACallEnds => self.deployments[index].next_end(now),
        };
        // Nobody waits for a flex tier that has no room.
        if !self.deployments[index].is_flex() {
            self.expect(index, closed_until);
        }
        None
    }

    /// Tells the lanes of a deployment when it could take their next.
    fn expect(&mut self, index: usize, at: Instant) {
        for lane in &self.places[index].lanes {
            sooner(&mut self.lanes[*lane].soonest, at);
        }
    }

    /// The best job for a deployment among its lanes.
    fn pick(&self, index: usize, room: u64, wake: &mut Wake, now: Instant) -> Option<Pick> {
        let mut best: Option<Pick> = None;
        for &lane in &self.places[index].lanes {
            let Lane { members, line, above, head, .. } = &self.lanes[lane];
            let mut suits = |job: &Waiting<T>| {
                job.charge <= room
                    && self.is_in_time(index, job, now)
                    && self.may_spill(job, *above, wake, now)
                    && self.is_no_return(index, job, members, wake, now)
            };
            // The head suits most of the time, and was found before.
            let Some(heap) = *head else { continue };
            let found = match line.peek(heap) {
                Some(job) if suits(job) => Some((heap, job)),
                _ => line.best(suits),
            };
            let Some((heap, job)) = found else { continue };
            if best.as_ref().is_none_or(|best| job.rank > best.rank) {
                best = Some(Pick { lane, heap, charge: job.charge, rank: job.rank });
            }
        }
        best
    }

    fn is_in_time(&self, index: usize, job: &Waiting<T>, now: Instant) -> bool {
        !self.deployments[index].is_flex() || job.deadline.is_none_or(|d| d > now + FLEX_TAKES)
    }

    /// Whether no tier above can take the job soon. The tiers above were asked just before.
    fn may_spill(
        &self,
        job: &Waiting<T>,
        above: Option<Instant>,
        wake: &mut Wake,
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

    /// Whether the job was not failed here, or there is no better place for it.
    fn is_no_return(
        &self,
        index: usize,
        job: &Waiting<T>,
        members: &[usize],
        wake: &mut Wake,
        now: Instant,
    ) -> bool {
        let Some((_, until)) =
            job.avoids.filter(|(avoided, until)| *avoided == index && *until > now)
        else {
            return true;
        };
        if !members.iter().any(|other| *other != index && self.deployments[*other].is_well(now)) {
            return true;
        }
        sooner(wake, until);
        false
    }

    /// The chosen deployment had its turn. One that was idle takes none of its past with it.
    pub(super) fn advance_turn(&mut self, index: usize, charge: u64) {
        let place = &self.places[index];
        let began = place.turn.max(self.turn);
        self.turn = began;
        let size = || self.deployments[index].size(&self.quotas[place.quota]);
        let weight = place.weight.unwrap_or_else(size);
        self.places[index].turn = began + charge as f64 / weight.max(1e-9);
    }
}

fn sooner(wake: &mut Wake, at: Instant) {
    *wake = Some(wake.map_or(at, |wake| wake.min(at)));
}
