//! Who may go now: jobs wait here until a deployment can take them.
//!
//! Pure: [`Admission`] decides from what it is told and from `now`; the worker's conductor owns it
//! and turns the wheel. Jobs that the same deployments can serve wait in one [`line`], in order of
//! priority, deadline and age. A deployment that has room takes the best job that suits it; the tiers
//! are asked in order, and a lower one only for what those above can't take soon. `docs/admission.md`
//! tells the whole.
//!
//! [`deployment`] joins what is known of each: [`pace`], [`learn`] (with [`window`], [`factor`] and
//! [`recent`]), [`calls`] and [`breaker`].

mod breaker;
mod calls;
pub mod charge;
pub mod deployment;
mod factor;
mod learn;
mod line;
mod pace;
mod recent;
pub mod snapshot;
mod window;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::headers::RateHeaders;
use deployment::{Deployment, Feedback, Gate, Limits};
use line::{Heap, Line, Rank, Waiting};
use snapshot::Snapshot;

/// How long a job that a deployment failed waits for another one.
const AVOID_FOR: Duration = Duration::from_secs(2);

/// What a job must have left until its deadline to be tried on the flex tier: a slow call there
/// takes up to 15 minutes (Azure docs: "flex processing"), and then it has to be made elsewhere.
const FLEX_TAKES: Duration = Duration::from_secs(20 * 60);

/// A deployment's number in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeploymentIndex(pub usize);

/// One deployment that admission may send jobs to.
#[derive(Debug, Clone, Default)]
pub struct Member {
    /// What logs and reports call it.
    pub name: String,
    /// The models, by all their names, that it serves; empty: whatever is asked for.
    pub models: Vec<String>,
    /// 0 is asked first.
    pub tier: u8,
    /// Its part among the tier's deployments while all have room; absent: by their quotas.
    pub weight: Option<f64>,
    pub limits: Limits,
}

/// What a job is judged by while it waits.
#[derive(Debug, Clone)]
pub struct Ticket {
    pub model: String,
    /// Tokens that the service will book.
    pub charge: u64,
    pub priority: i32,
    pub deadline: Option<Instant>,
    /// Since when it wants to go: what a lower tier is opened by.
    pub since: Instant,
    /// The deployment that failed it last.
    pub avoid: Option<DeploymentIndex>,
}

/// A call that admission let go, to be given back to [`Admission::observe`] at its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Booking {
    pub deployment: DeploymentIndex,
    pub charge: u64,
    pub at: Instant,
    /// All that had been booked there with it.
    pub(crate) total: f64,
    /// It finds out for a breaker.
    pub(crate) is_probe: bool,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Next<T> {
    /// Send it; the deployment must hear of its end by [`Admission::observe`].
    Go(T, Booking),
    Expired(T),
    /// Larger than a whole minute's quota of every deployment that serves its model.
    NeverFits(T),
    /// No deployment serves its model.
    NotServed(T),
    /// Nothing can go before this time, or (`None`) before something else happens.
    Wait(Option<Instant>),
}

/// What a deployment could be used for: tokens of a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Tokens of the jobs in line that it may take, its part where others may take them too.
    pub waiting: u64,
    /// Tokens booked in the last minute.
    pub used: u64,
}

impl Demand {
    /// Tokens a minute that are wanted.
    pub fn per_minute(self) -> u64 {
        self.waiting + self.used
    }
}

/// The waiting jobs and the deployments.
pub struct Admission<T> {
    deployments: Vec<Deployment>,
    places: Vec<Place>,
    /// Deployments by tier, the first tier first.
    tiers: Vec<Vec<usize>>,
    lanes: Vec<Lane<T>>,
    /// The lane of each model that is named; all others go to the lane of any.
    by_model: HashMap<String, usize>,
    any: Option<usize>,
    /// Jobs of a model that no lane has; they can only be turned away.
    strays: Vec<T>,
    offered: u64,
    spill_after: Duration,
    /// The turn of the deployment that was chosen last.
    turn: f64,
}

/// A deployment's place in the pool.
struct Place {
    tier: u8,
    weight: Option<f64>,
    /// The lanes it serves.
    lanes: Vec<usize>,
    /// Work it was given, by its weight: the least goes first.
    turn: f64,
}

/// Models that the same deployments serve.
struct Lane<T> {
    members: Vec<usize>,
    line: Line<T>,
    /// Of the question under way: when a tier that was asked could take its next job, and the same
    /// without the tier that is being asked.
    soonest: Option<Instant>,
    above: Option<Instant>,
}

/// What a deployment would take.
struct Pick {
    lane: usize,
    heap: Heap,
    charge: u64,
    rank: Rank,
}

impl<T> Admission<T> {
    /// `spill_after`: how long a job waits for a tier before the one below may take it.
    pub fn new(members: Vec<Member>, spill_after: Duration, now: Instant) -> Self {
        let mut admission = Self {
            deployments: Vec::with_capacity(members.len()),
            places: Vec::with_capacity(members.len()),
            tiers: Vec::new(),
            lanes: Vec::new(),
            by_model: HashMap::new(),
            any: None,
            strays: Vec::new(),
            offered: 0,
            spill_after,
            turn: 0.0,
        };
        admission.open_lanes(&members);
        let mut tiers: Vec<u8> = members.iter().map(|member| member.tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        for tier in tiers {
            let of = (0..members.len()).filter(|n| members[*n].tier == tier);
            admission.tiers.push(of.collect());
        }
        for (index, member) in members.iter().enumerate() {
            let serves = |lane: &usize| admission.lanes[*lane].members.contains(&index);
            let lanes = (0..admission.lanes.len()).filter(serves).collect();
            let (tier, weight) = (member.tier, member.weight);
            admission.places.push(Place { tier, weight, lanes, turn: 0.0 });
            let deployment = Deployment::new(&member.name, member.limits.clone(), now);
            admission.deployments.push(deployment);
        }
        admission
    }

    /// One lane for all models that the same deployments serve.
    fn open_lanes(&mut self, members: &[Member]) {
        let serving = |serves: &dyn Fn(&Member) -> bool| -> Vec<usize> {
            (0..members.len()).filter(|n| serves(&members[*n])).collect()
        };
        for model in members.iter().flat_map(|member| &member.models) {
            let serving = serving(&|member| member.models.contains(model));
            let lane = self.lane_of(serving);
            self.by_model.insert(model.clone(), lane);
        }
        let any = serving(&|member| member.models.is_empty());
        if !any.is_empty() {
            self.any = Some(self.lane_of(any));
        }
    }

    fn lane_of(&mut self, members: Vec<usize>) -> usize {
        let known = self.lanes.iter().position(|lane| lane.members == members);
        known.unwrap_or_else(|| {
            self.lanes.push(Lane { members, line: Line::new(), soonest: None, above: None });
            self.lanes.len() - 1
        })
    }

    /// Puts a job in line.
    pub fn offer(&mut self, ticket: &Ticket, item: T, now: Instant) {
        self.offered += 1;
        let Some(lane) = self.by_model.get(&ticket.model).copied().or(self.any) else {
            self.strays.push(item);
            return;
        };
        let deadline = ticket.deadline;
        let rank =
            (ticket.priority, Reverse((deadline.is_none(), deadline)), Reverse(self.offered));
        let avoids = ticket.avoid.map(|avoided| (avoided.0, now + AVOID_FOR));
        let (charge, since) = (ticket.charge, ticket.since);
        let waiting = Waiting { rank, charge, deadline, since, avoids, item };
        self.lanes[lane].line.push(waiting);
    }

    /// Decides about one job.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        if let Some(stray) = self.strays.pop() {
            return Next::NotServed(stray);
        }
        let mut wake = None;
        for lane in 0..self.lanes.len() {
            if let Some(turned_away) = self.turn_away(lane, &mut wake, now) {
                return turned_away;
            }
        }
        for tier in 0..self.tiers.len() {
            let Some((deployment, pick)) = self.choose(tier, &mut wake, now) else { continue };
            if let Some(job) = self.lanes[pick.lane].line.pop(pick.heap) {
                self.advance_turn(deployment, pick.charge);
                let index = DeploymentIndex(deployment);
                let booking = self.deployments[deployment].book(index, pick.charge, now);
                return Next::Go(job.item, booking);
            }
        }
        Next::Wait(wake)
    }

    /// What the head of a lane has no call to wait for.
    fn turn_away(&mut self, lane: usize, wake: &mut Wake, now: Instant) -> Option<Next<T>> {
        let Lane { members, line, soonest, .. } = &mut self.lanes[lane];
        *soonest = None;
        let is_over = |job: &Waiting<T>| job.deadline.is_some_and(|deadline| deadline <= now);
        if let Some((heap, _)) = line.best(is_over) {
            return line.pop(heap).map(|job| Next::Expired(job.item));
        }
        let (heap, head) = line.best(|_| true)?;
        if let Some(deadline) = head.deadline {
            sooner(wake, deadline);
        }
        let left = members.iter().map(|n| &self.deployments[*n]).filter(|d| d.retired().is_none());
        // With none left nothing is said about the job: it is given back.
        let largest = left.map(Deployment::largest).max()?;
        if head.charge <= largest {
            return None;
        }
        line.pop(heap).map(|job| Next::NeverFits(job.item))
    }

    /// The deployment of a tier that takes a job now, if any does, and the job.
    fn choose(&mut self, tier: usize, wake: &mut Wake, now: Instant) -> Option<(usize, Pick)> {
        let mut choice: Option<(usize, Pick)> = None;
        self.lanes.iter_mut().for_each(|lane| lane.above = lane.soonest);
        for n in 0..self.tiers[tier].len() {
            let index = self.tiers[tier][n];
            let Some(pick) = self.look(index, wake, now) else { continue };
            match self.deployments[index].gather(pick.charge, now) {
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

    /// What a deployment would take if it has the tokens.
    fn look(&mut self, index: usize, wake: &mut Wake, now: Instant) -> Option<Pick> {
        let closed_until = match self.deployments[index].gate(now) {
            Gate::Open { room, until } => {
                let pick = self.pick(index, room, wake, now);
                if let Some(until) = until {
                    sooner(wake, until);
                    if pick.is_none() {
                        self.expect(index, until);
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
            let Lane { members, line, above, .. } = &self.lanes[lane];
            let suits = |job: &Waiting<T>| {
                job.charge <= room
                    && self.is_in_time(index, job, now)
                    && self.may_spill(job, *above, wake, now)
                    && self.is_no_return(index, job, members, wake, now)
            };
            let Some((heap, job)) = line.best(suits) else { continue };
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
        let Some((_, until)) = job.avoids.filter(|(avoided, until)| *avoided == index && *until > now)
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
    fn advance_turn(&mut self, index: usize, charge: u64) {
        let place = &mut self.places[index];
        let began = place.turn.max(self.turn);
        self.turn = began;
        let weight = place.weight.unwrap_or_else(|| self.deployments[index].size());
        place.turn = began + charge as f64 / weight.max(1e-9);
    }
}

impl<T> Admission<T> {
    /// Hears how a call ended, and what the response told of the limits.
    pub fn observe(
        &mut self,
        booking: &Booking,
        feedback: Feedback,
        told: &RateHeaders,
        now: Instant,
    ) {
        let index = booking.deployment.0;
        let serves = |n: usize| self.places[n].lanes.iter().any(|l| self.places[index].lanes.contains(l));
        let stays = |n: usize| {
            let other = &self.deployments[n];
            n != index && serves(n) && other.retired().is_none() && !other.is_missing()
        };
        let is_last = matches!(feedback, Feedback::Missing { .. })
            && !(0..self.deployments.len()).any(stays);
        self.deployments[index].observe(booking, feedback, told, is_last, now);
    }

    /// Lets this instance use a part of a deployment's quota (from 0 to 1), or of its calls in flight
    /// where it has no quota. It can change at any time; a greater one brings no burst.
    pub fn set_share(&mut self, deployment: DeploymentIndex, share: f64, now: Instant) {
        self.deployments[deployment.0].set_share(share, now);
    }

    /// What this instance could use of a deployment.
    pub fn demand(&mut self, deployment: DeploymentIndex, now: Instant) -> Demand {
        let waiting = self.waiting_for(deployment.0);
        Demand { waiting, used: self.deployments[deployment.0].used(now) }
    }

    /// Tokens in line for a deployment: its part of what others may take too, by their sizes.
    fn waiting_for(&self, index: usize) -> u64 {
        let size = |n: &usize| match self.deployments[*n].retired() {
            None => self.deployments[*n].size(),
            Some(_) => 0.0,
        };
        let part = |lane: &usize| {
            let lane = &self.lanes[*lane];
            let all: f64 = lane.members.iter().map(size).sum();
            lane.line.tokens() as f64 * size(&index) / all.max(1e-9)
        };
        self.places[index].lanes.iter().map(part).sum::<f64>() as u64
    }

    /// Every deployment's state.
    pub fn snapshot(&mut self, now: Instant) -> Vec<Snapshot> {
        let waiting: Vec<_> = (0..self.places.len()).map(|n| self.waiting_for(n)).collect();
        let each = self.deployments.iter_mut().zip(&self.places).zip(waiting);
        each.map(|((deployment, place), waiting)| deployment.snapshot(place.tier, waiting, now))
            .collect()
    }

    /// Takes all waiting jobs out.
    pub fn drain(&mut self) -> Vec<T> {
        let lanes = self.lanes.iter_mut().flat_map(|lane| lane.line.drain());
        lanes.chain(self.strays.drain(..)).collect()
    }

    /// Why nothing can go on: no call is under way, and no job in line has a deployment left.
    pub fn stranded(&self) -> Option<&str> {
        let mut reasons = self.deployments.iter().map(Deployment::retired);
        if reasons.clone().all(|reason| reason.is_some()) {
            return reasons.next().flatten();
        }
        if self.in_flight() > 0 {
            return None;
        }
        let why = |lane: &Lane<T>| {
            let mut reasons = lane.members.iter().map(|n| self.deployments[*n].retired());
            if reasons.clone().all(|r| r.is_some()) { reasons.next().flatten() } else { None }
        };
        let mut waiting = self.lanes.iter().filter(|lane| lane.line.jobs() > 0).map(why);
        let first = waiting.next()??;
        waiting.all(|why| why.is_some()).then_some(first)
    }

    /// For how long every deployment that is left has been out of reach, and why the first is.
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

/// When to look again.
type Wake = Option<Instant>;

fn sooner(wake: &mut Wake, at: Instant) {
    *wake = Some(wake.map_or(at, |wake| wake.min(at)));
}
