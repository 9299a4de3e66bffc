//! Who may go now: jobs wait here until a deployment can take them.
//!
//! Pure: [`Admission`] decides from what it is told and from `now`; the worker's conductor owns it
//! and turns the wheel. Jobs wait in one lane a model, in order of priority, deadline and age; only
//! the head of a lane is ever offered, so a large job that waits for tokens is not overtaken until
//! it starves.

pub mod charge;
mod demand;
pub mod deployment;
mod pace;
pub mod shares;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

use deployment::{Deployment, Feedback, Limits, Readiness, Standing};

/// A deployment's number in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeploymentIndex(pub usize);

/// One deployment that admission may send jobs to.
#[derive(Debug, Clone)]
pub struct Member {
    /// The model it serves; `None`: whatever is asked for.
    pub model: Option<String>,
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
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<T> {
    /// Send it; the deployment has booked it and must hear of its end by [`Admission::observe`].
    Go(T, DeploymentIndex),
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
    lanes: Vec<Lane<T>>,
    /// Jobs of a model that no lane has; they can only be turned away.
    strays: Vec<T>,
    offered: u64,
    /// Where the next look round starts, so that no lane is always last.
    first_lane: usize,
}

struct Lane<T> {
    model: Option<String>,
    members: Vec<usize>,
    waiting: BinaryHeap<Waiting<T>>,
}

struct Waiting<T> {
    rank: Rank,
    charge: u64,
    deadline: Option<Instant>,
    item: T,
}

/// Greater goes first: priority, then the earlier deadline (any before none), then age.
type Rank = (i32, Reverse<(bool, Option<Instant>)>, Reverse<u64>);

impl<T> Admission<T> {
    pub fn new(members: Vec<Member>, now: Instant) -> Self {
        let mut lanes: Vec<Lane<T>> = Vec::new();
        for (index, member) in members.iter().enumerate() {
            match lanes.iter_mut().find(|lane| lane.model == member.model) {
                Some(lane) => lane.members.push(index),
                None => lanes.push(Lane {
                    model: member.model.clone(),
                    members: vec![index],
                    waiting: BinaryHeap::new(),
                }),
            }
        }
        let deployments = members.into_iter().map(|m| Deployment::new(m.limits, now)).collect();
        Self { deployments, lanes, strays: Vec::new(), offered: 0, first_lane: 0 }
    }

    /// Puts a job in line.
    pub fn offer(&mut self, ticket: &Ticket, item: T) {
        self.offered += 1;
        let serves =
            |model: Option<&str>| self.lanes.iter().position(|lane| lane.model.as_deref() == model);
        let Some(lane) = serves(Some(&ticket.model)).or_else(|| serves(None)) else {
            self.strays.push(item);
            return;
        };
        let deadline = ticket.deadline;
        let rank =
            (ticket.priority, Reverse((deadline.is_none(), deadline)), Reverse(self.offered));
        self.lanes[lane].waiting.push(Waiting { rank, charge: ticket.charge, deadline, item });
    }

    /// Decides about the foremost job of each lane.
    pub fn next(&mut self, now: Instant) -> Next<T> {
        if let Some(stray) = self.strays.pop() {
            return Next::NotServed(stray);
        }
        let mut wake: Option<Instant> = None;
        for turn in 0..self.lanes.len() {
            let at = (self.first_lane + turn) % self.lanes.len();
            match self.lanes[at].next(&mut self.deployments, now) {
                Next::Wait(Some(until)) => wake = Some(wake.map_or(until, |w| w.min(until))),
                Next::Wait(None) => {}
                decided => {
                    self.first_lane = at + 1;
                    return decided;
                }
            }
        }
        Next::Wait(wake)
    }

    /// Hears how a call ended.
    pub fn observe(&mut self, deployment: DeploymentIndex, feedback: Feedback, now: Instant) {
        self.deployments[deployment.0].observe(feedback, now);
    }

    /// Sets the fraction of its quota that may be used of a deployment. Never a burst: what a larger
    /// share allows accrues from now on.
    pub fn set_share(&mut self, deployment: DeploymentIndex, fraction: f64, now: Instant) {
        self.deployments[deployment.0].set_share(fraction, now);
    }

    /// How each deployment stands; the demand is that since this was last asked.
    pub fn standings(&mut self, now: Instant) -> Vec<Standing> {
        self.deployments.iter_mut().map(|deployment| deployment.standing(now)).collect()
    }

    /// Takes all waiting jobs out.
    pub fn drain(&mut self) -> Vec<T> {
        let lanes = self.lanes.iter_mut().flat_map(|lane| lane.waiting.drain());
        lanes.map(|waiting| waiting.item).chain(self.strays.drain(..)).collect()
    }

    /// Why no deployment is left, if none is.
    pub fn all_retired(&self) -> Option<&str> {
        let mut reasons = self.deployments.iter().map(Deployment::retired);
        if reasons.clone().all(|reason| reason.is_some()) { reasons.next().flatten() } else { None }
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

impl<T> Lane<T> {
    fn next(&mut self, deployments: &mut [Deployment], now: Instant) -> Next<T> {
        let Some(head) = self.waiting.peek() else { return Next::Wait(None) };
        if head.deadline.is_some_and(|deadline| deadline <= now) {
            return self.take_head(Next::Expired);
        }
        let mut wake = head.deadline;
        let mut ever_fits = false;
        for &member in &self.members {
            match deployments[member].take(head.charge, now) {
                Readiness::Taken => {
                    return self.take_head(|item| Next::Go(item, DeploymentIndex(member)));
                }
                Readiness::At(at) => {
                    ever_fits = true;
                    wake = Some(wake.map_or(at, |w| w.min(at)));
                }
                Readiness::WhenACallEnds => ever_fits = true,
                Readiness::NeverFits => {}
                // The worker gives everything back once all are retired; until then others decide.
                Readiness::Retired => ever_fits |= self.members.len() == 1,
            }
        }
        if ever_fits { Next::Wait(wake) } else { self.take_head(Next::NeverFits) }
    }

    fn take_head(&mut self, decide: impl FnOnce(T) -> Next<T>) -> Next<T> {
        self.waiting.pop().map_or(Next::Wait(None), |waiting| decide(waiting.item))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.rank == other.rank
    }
}

impl<T> Eq for Waiting<T> {}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank.cmp(&other.rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(model: Option<&str>, tpm: Option<u64>) -> Member {
        let limits = Limits { tpm, rpm: None, concurrency: 2 };
        Member { model: model.map(Into::into), limits }
    }

    fn ticket(model: &str, charge: u64) -> Ticket {
        Ticket { model: model.into(), charge, priority: 0, deadline: None }
    }

    #[tokio::test(start_paused = true)]
    async fn priority_then_deadline_then_age() {
        let now = Instant::now();
        let mut a = Admission::new(vec![member(None, None)], now);
        let soon = Some(now + Duration::from_secs(5));
        a.offer(&ticket("m", 1), "old");
        a.offer(&ticket("m", 1), "young");
        a.offer(&Ticket { deadline: soon, ..ticket("m", 1) }, "due");
        a.offer(&Ticket { priority: 1, ..ticket("m", 1) }, "urgent");
        let order: Vec<_> = std::iter::from_fn(|| match a.next(now) {
            Next::Go(item, d) => {
                a.observe(d, Feedback::Responded, now);
                Some(item)
            }
            _ => None,
        })
        .collect();
        assert_eq!(order, ["urgent", "due", "old", "young"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_ends_without_a_call_even_while_all_is_full() {
        let now = Instant::now();
        let mut a = Admission::new(vec![member(None, Some(60))], now);
        let deadline = now + Duration::from_secs(5);
        a.offer(&Ticket { deadline: Some(deadline), ..ticket("m", 60) }, "late");
        assert!(matches!(a.next(now), Next::Wait(Some(at)) if at <= deadline));
        assert_eq!(a.next(deadline), Next::Expired("late"));
    }

    #[tokio::test(start_paused = true)]
    async fn models_find_their_own_deployments_and_strangers_are_turned_away() {
        let now = Instant::now();
        let mut a = Admission::new(vec![member(Some("x"), None), member(Some("y"), None)], now);
        a.offer(&ticket("y", 1), "y");
        a.offer(&ticket("z", 1), "z");
        assert_eq!(a.next(now), Next::NotServed("z"));
        assert_eq!(a.next(now), Next::Go("y", DeploymentIndex(1)));
        assert_eq!(a.next(now), Next::Wait(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_larger_than_every_quota_is_turned_away() {
        let now = Instant::now();
        let mut a = Admission::new(vec![member(None, Some(10)), member(None, Some(20))], now);
        a.offer(&ticket("m", 21), "huge");
        assert_eq!(a.next(now), Next::NeverFits("huge"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_deployment_takes_what_the_first_can_not() {
        let now = Instant::now();
        let mut a = Admission::new(vec![member(None, None), member(None, None)], now);
        for n in 0..5 {
            a.offer(&ticket("m", 1), n);
        }
        let mut went = Vec::new();
        while let Next::Go(_, d) = a.next(now) {
            went.push(d.0);
        }
        assert_eq!(went, [0, 0, 1, 1], "two calls in flight each");
    }
}
