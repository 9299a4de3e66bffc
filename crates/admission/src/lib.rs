//! Who may go now: jobs wait here until a deployment can take them.
//!
//! Pure: [`Admission`] decides from what it is told and from `now`; the worker's conductor owns it
//! and turns the wheel. Jobs that the same deployments can serve wait in one `line`, in order of
//! priority, deadline and age. A deployment that has room takes the best job that suits it; the tiers
//! are asked in order, and a lower one only for what those above can't take soon. `docs/admission.md`
//! tells the whole.
//!
//! `deployment` joins what is known of each: `pace`, `learn` (with `window`, `factor` and
//! `recent`), `calls`, `breaker` and `demand`, by which instances share it (`shares`). `explain` tells
//! people why a job waits.

mod breaker;
mod calls;
mod choose;
mod demand;
pub mod deployment;
pub mod explain;
mod factor;
mod learn;
mod limits;
mod line;
mod pace;
mod quota;
mod recent;
pub mod shares;
pub mod snapshot;
mod usual;
mod window;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use deployment::{Deployment, End, Feedback, Limits, Service};
use domain::headers::RateHeaders;
use line::{Line, Waiting};
use quota::Quota;
use snapshot::{Snapshot, Standing};

/// How long a job that a deployment failed waits for another one.
const AVOID_FOR: Duration = Duration::from_secs(2);

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
    /// What makes a quota one: deployments of the same name here use it together. Empty: its own.
    pub quota: String,
}

/// The line of the jobs that the same deployments can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneIndex(usize);

/// What a job is judged by while it waits.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    /// By [`Admission::lane_for`]; `None`: no deployment serves its model.
    pub lane: Option<LaneIndex>,
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
    pub total: f64,
    /// It finds out for a breaker.
    pub is_probe: bool,
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

/// The waiting jobs and the deployments.
pub struct Admission<T> {
    deployments: Vec<Deployment>,
    places: Vec<Place>,
    quotas: Vec<Quota>,
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
    /// Which of the quotas it uses.
    quota: usize,
    /// The lanes it serves.
    lanes: Vec<usize>,
    /// Work it was given, by its weight: the least goes first.
    turn: f64,
}

/// Models that the same deployments serve.
struct Lane<T> {
    members: Vec<usize>,
    line: Line<T>,
    /// Of the question under way: the heap of the head, when a tier that was asked could take its next
    /// job, and the same without the tier that is being asked.
    head: Option<line::Heap>,
    soonest: Option<Instant>,
    above: Option<Instant>,
}

impl<T> Admission<T> {
    /// `spill_after`: how long a job waits for a tier before the one below may take it.
    pub fn new(members: Vec<Member>, spill_after: Duration, now: Instant) -> Self {
        let mut admission = Self {
            deployments: Vec::with_capacity(members.len()),
            places: Vec::with_capacity(members.len()),
            quotas: Vec::with_capacity(members.len()),
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
        let mut known = HashMap::new();
        for (index, member) in members.iter().enumerate() {
            let serves = |lane: &usize| admission.lanes[*lane].members.contains(&index);
            let lanes = (0..admission.lanes.len()).filter(serves).collect();
            let quota = admission.quota_of(index, &members, &mut known, now);
            let (tier, weight) = (member.tier, member.weight);
            admission.places.push(Place { tier, weight, quota, lanes, turn: 0.0 });
            let is_paced = admission.quotas[quota].is_paced();
            let deployment = Deployment::new(&member.name, member.limits.clone(), is_paced, now);
            admission.deployments.push(deployment);
        }
        admission
    }

    /// The quota of a member: one that an earlier member uses too, or another.
    fn quota_of<'a>(
        &mut self,
        index: usize,
        members: &'a [Member],
        known: &mut HashMap<&'a str, usize>,
        now: Instant,
    ) -> usize {
        let Member { name, limits, quota, .. } = &members[index];
        // What is provisioned has no quota a minute that could be the same.
        let is_same = !quota.is_empty() && limits.service != Service::Provisioned;
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
        self.quotas.push(Quota::new(name, &limits, now));
        self.quotas.len() - 1
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
            self.lanes.push(Lane {
                members,
                line: Line::new(),
                head: None,
                soonest: None,
                above: None,
            });
            self.lanes.len() - 1
        })
    }

    /// Where jobs of a model wait.
    pub fn lane_for(&self, model: &str) -> Option<LaneIndex> {
        self.by_model.get(model).copied().or(self.any).map(LaneIndex)
    }

    /// Puts a job in line.
    pub fn offer(&mut self, ticket: &Ticket, item: T, now: Instant) {
        self.offered += 1;
        let Some(LaneIndex(lane)) = ticket.lane else {
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
                let quota = &mut self.quotas[self.places[deployment].quota];
                let booking = self.deployments[deployment].book(quota, index, pick.charge, now);
                return Next::Go(job.item, booking);
            }
        }
        Next::Wait(wake)
    }

    /// Hears how a call ended, and what the response told of the limits.
    pub fn observe(
        &mut self,
        booking: &Booking,
        feedback: Feedback,
        told: &RateHeaders,
        now: Instant,
    ) {
        let index = booking.deployment.0;
        let serves =
            |n: usize| self.places[n].lanes.iter().any(|l| self.places[index].lanes.contains(l));
        let stays = |n: usize| {
            let other = &self.deployments[n];
            n != index && serves(n) && other.retired().is_none() && !other.is_missing()
        };
        let is_last =
            matches!(feedback, Feedback::Missing { .. }) && !(0..self.deployments.len()).any(stays);
        let quota = &mut self.quotas[self.places[index].quota];
        let end = End { booking, feedback, told, is_last };
        self.deployments[index].observe(quota, end, now);
    }

    /// Lets this instance use a part of a deployment's quota (from 0 to 1), or of its calls in flight
    /// where it has no quota. It can change at any time; a greater one brings no burst.
    pub fn set_share(&mut self, deployment: DeploymentIndex, share: f64, now: Instant) {
        let share = share.clamp(1e-6, 1.0);
        let quota = &mut self.quotas[self.places[deployment.0].quota];
        quota.set_share(share, now);
        // Where there is no quota, the calls in flight are shared.
        let of_calls = if quota.is_paced() { 1.0 } else { share };
        self.deployments[deployment.0].set_share(of_calls);
    }

    /// Tokens in line for a deployment: its part of what others may take too, by their sizes.
    fn waiting_for(&self, index: usize) -> u64 {
        let size = |n: &usize| match self.deployments[*n].retired() {
            None => self.deployments[*n].size(&self.quotas[self.places[*n].quota]),
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
        each.map(|((deployment, place), waiting)| {
            deployment.snapshot(&self.quotas[place.quota], (place.tier, waiting), now)
        })
        .collect()
    }

    /// Every deployment's state, with what could have been used of it since this was last asked.
    pub fn standings(&mut self, now: Instant) -> Vec<Standing> {
        let demands: Vec<_> = self.quotas.iter_mut().map(|quota| quota.demand(now)).collect();
        let states = self.snapshot(now).into_iter().zip(&self.places);
        states.map(|(state, place)| Standing { demand: demands[place.quota], state }).collect()
    }

    /// Takes the waiting jobs out that suit.
    pub fn extract(&mut self, mut suits: impl FnMut(&T) -> bool) -> Vec<T> {
        let lanes = self.lanes.iter_mut().flat_map(|lane| lane.line.extract(&mut suits));
        lanes.collect()
    }

    /// Takes all waiting jobs out.
    pub fn drain(&mut self) -> Vec<T> {
        let lanes = self.lanes.iter_mut().flat_map(|lane| lane.line.drain());
        lanes.chain(self.strays.drain(..)).collect()
    }

    /// Why no deployment is left, if none is.
    pub fn all_retired(&self) -> Option<&str> {
        first_if_all(self.deployments.iter().map(Deployment::retired))
    }

    /// Why nothing can go on: no call is under way, and no job in line has a deployment left.
    pub fn stranded(&self) -> Option<&str> {
        if self.in_flight() > 0 {
            return None;
        }
        let why = |lane: &Lane<T>| {
            first_if_all(lane.members.iter().map(|n| self.deployments[*n].retired()))
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

fn first_if_all<'a>(mut reasons: impl Iterator<Item = Option<&'a str>>) -> Option<&'a str> {
    let first = reasons.next()??;
    reasons.all(|reason| reason.is_some()).then_some(first)
}

#[cfg(test)]
mod tests;
