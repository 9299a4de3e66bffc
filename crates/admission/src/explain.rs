//! Why a job in line does not go now: the question of people, answered from what admission knows.
//!
//! Pure, and it changes nothing: no quota is gathered, no breaker is asked for its probe. It judges
//! by the order in which `choose` does, so what it names is what keeps the job. Times are estimates:
//! who comes later with a higher priority is not foreseen.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::breaker::Passage;
use super::choose::FLEX_TAKES;
use super::deployment::Deployment;
use super::line::Waiting;
use super::quota::{Lack, Quota};
use super::{Admission, Lane};

/// What keeps a job from a deployment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Hindrance {
    /// The tokens a minute that this instance may use there are used.
    Tokens { tpm: Option<u64>, share: f64 },
    /// The requests a minute that this instance may use there are used.
    Requests { rpm: Option<u64>, share: f64 },
    /// It has as many calls in flight as it may.
    Calls { in_flight: usize },
    /// Its 429 asked for a pause.
    Paused,
    /// It is not there, or not yet, and is asked again from time to time.
    Missing,
    /// It keeps failing; single calls find out when it is back.
    Breaker { error: String },
    /// It is out of the pool for good.
    Retired { error: String },
    /// The job may take more tokens than it ever gives in a minute.
    TooLarge { most: u64 },
    /// The job's deadline is too near for the slow tier.
    Deadline,
    /// It failed the job just now, and another one may do better.
    FailedHere,
    /// A tier above it can take the job soon.
    TierAbove,
    /// Nothing but the jobs before it.
    Line,
}

/// One deployment that does not take a job now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Block {
    pub deployment: String,
    pub tier: u8,
    #[serde(flatten)]
    pub hindrance: Hindrance,
    /// About when that is over, from now; absent where only an event ends it.
    pub over_in_ms: Option<u64>,
}

/// Why a job waits in line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Wait {
    /// Tokens that its call would book.
    pub charge: u64,
    /// Jobs that go before it, and their tokens.
    pub ahead: u64,
    pub ahead_tokens: u64,
    /// Every deployment that serves its model, the first tier first.
    pub blocks: Vec<Block>,
    /// About when it goes, from now, where that can be told.
    pub goes_in_ms: Option<u64>,
}

/// Jobs that wait in one line.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Waiters {
    pub jobs: u64,
    pub tokens: u64,
    /// Why the first of them waits.
    pub first: Wait,
}

impl<T> Admission<T> {
    /// Why the chosen jobs wait.
    pub fn waits(&self, chosen: impl Fn(&T) -> bool, now: Instant) -> Vec<(&T, Wait)> {
        let mut waits = Vec::new();
        for lane in &self.lanes {
            for job in lane.line.iter().filter(|job| chosen(&job.item)) {
                waits.push((&job.item, self.wait(lane, job, now)));
            }
        }
        waits
    }

    /// How many of the chosen jobs wait in each line, and why the first of them does. Lines that
    /// hold none are left out.
    pub fn waiters(&self, chosen: impl Fn(&T) -> bool, now: Instant) -> Vec<Waiters> {
        let of_lane = |lane: &Lane<T>| {
            let mut first: Option<&Waiting<T>> = None;
            let mut waiters = Waiters::default();
            for job in lane.line.iter().filter(|job| chosen(&job.item)) {
                waiters.jobs += 1;
                waiters.tokens += job.charge;
                if first.is_none_or(|first| job.rank > first.rank) {
                    first = Some(job);
                }
            }
            waiters.first = self.wait(lane, first?, now);
            Some(waiters)
        };
        self.lanes.iter().filter_map(of_lane).collect()
    }

    fn wait(&self, lane: &Lane<T>, job: &Waiting<T>, now: Instant) -> Wait {
        let before = lane.line.iter().filter(|other| other.rank > job.rank);
        let (ahead, ahead_tokens) =
            before.fold((0, 0), |(jobs, tokens), other| (jobs + 1, tokens + other.charge));
        let mut members = lane.members.clone();
        members.sort_by_key(|n| self.places[*n].tier);
        let mut blocks: Vec<Block> = Vec::with_capacity(members.len());
        for n in &members {
            let tier = self.places[*n].tier;
            let above = blocks.iter().filter(|block| block.tier < tier && block.is_passing());
            let above = above.filter_map(|block| block.over_in_ms).min();
            let (hindrance, over) = self.hindrance(lane, *n, job, above, now);
            let over_in_ms = over.map(|over| over.as_millis() as u64);
            let deployment = self.deployments[*n].name().to_owned();
            blocks.push(Block { deployment, tier, hindrance, over_in_ms });
        }
        let goes_in_ms = self.goes_in(&members, &blocks, (ahead, ahead_tokens));
        Wait { charge: job.charge, ahead, ahead_tokens, blocks, goes_in_ms }
    }

    /// What keeps a job from one deployment, and for how long. `above`: how soon, in milliseconds,
    /// a tier above may take it.
    fn hindrance(
        &self,
        lane: &Lane<T>,
        n: usize,
        job: &Waiting<T>,
        above: Option<u64>,
        now: Instant,
    ) -> (Hindrance, Option<Duration>) {
        let (deployment, quota) = (&self.deployments[n], &self.quotas[self.places[n].quota]);
        if let Some(closed) = deployment.closed(now) {
            return closed;
        }
        let most = quota.largest();
        if job.charge > most {
            return (Hindrance::TooLarge { most }, None);
        }
        if deployment.is_flex() && job.deadline.is_some_and(|at| at <= now + FLEX_TAKES) {
            return (Hindrance::Deadline, None);
        }
        let patience = (job.since + self.spill_after).saturating_duration_since(now);
        if above.is_some_and(|ms| Duration::from_millis(ms) <= patience) && !patience.is_zero() {
            return (Hindrance::TierAbove, Some(patience));
        }
        let avoided = job.avoids.filter(|(avoided, until)| *avoided == n && *until > now);
        let is_better = |other: &usize| *other != n && self.deployments[*other].is_well(now);
        if let Some((_, until)) = avoided.filter(|_| lane.members.iter().any(is_better)) {
            return (Hindrance::FailedHere, Some(until - now));
        }
        let Some((lack, over)) = quota.lack(job.charge, now) else {
            return (Hindrance::Line, None);
        };
        let share = quota.share();
        let why = match lack {
            Lack::Tokens => Hindrance::Tokens { tpm: quota.limit().map(|l| l as u64), share },
            Lack::Requests => Hindrance::Requests { rpm: quota.rpm(), share },
        };
        (why, Some(over))
    }

    /// When a job behind so many others goes: as soon as the first deployment takes jobs, and after
    /// them at the rate of all.
    fn goes_in(&self, members: &[usize], blocks: &[Block], ahead: (u64, u64)) -> Option<u64> {
        let usable = members.iter().zip(blocks).filter(|(_, block)| block.is_passing());
        let first = usable.clone().filter_map(|(_, block)| block.over_in_ms).min();
        if ahead.0 == 0 {
            return first;
        }
        // A quota that two lanes use is there once.
        let mut quotas: Vec<_> = usable.map(|(n, _)| self.places[*n].quota).collect();
        quotas.sort_unstable();
        quotas.dedup();
        let takes = |amount: u64, rate: fn(&Quota) -> Option<f64>| {
            let rates = quotas.iter().map(|n| rate(&self.quotas[*n]));
            let per_minute = rates.sum::<Option<f64>>()?;
            Some((amount as f64 / per_minute.max(1e-9) * 60_000.0) as u64)
        };
        let tokens = takes(ahead.1, Quota::tokens_a_minute);
        let requests = takes(ahead.0, Quota::requests_a_minute);
        let slower = tokens.max(requests)?;
        Some(first.unwrap_or(0).max(slower))
    }
}

impl Block {
    /// Whether the job may come to go there.
    fn is_passing(&self) -> bool {
        use Hindrance::{Deadline, Retired, TooLarge};
        !matches!(self.hindrance, Retired { .. } | TooLarge { .. } | Deadline)
    }
}

impl Deployment {
    /// Why it takes no calls at all, and for how long.
    fn closed(&self, now: Instant) -> Option<(Hindrance, Option<Duration>)> {
        if let Some(error) = self.retired() {
            return Some((Hindrance::Retired { error: error.to_owned() }, None));
        }
        if let Some(until) = self.paused_until().filter(|until| *until > now) {
            let why = if self.is_missing() { Hindrance::Missing } else { Hindrance::Paused };
            return Some((why, Some(until - now)));
        }
        let broken = || Hindrance::Breaker { error: self.trouble().unwrap_or_default().to_owned() };
        match self.passage(now) {
            Passage::Until(at) => Some((broken(), Some(at - now))),
            Passage::AfterProbe => Some((broken(), None)),
            Passage::All if !self.has_call_left() => {
                let ends = self.next_end(now) - now;
                Some((Hindrance::Calls { in_flight: self.in_flight() }, Some(ends)))
            }
            Passage::All | Passage::Probe => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::{Feedback, Limits};
    use crate::{Member, Next, Ticket};
    use domain::headers::RateHeaders;

    const SPILL: Duration = Duration::from_secs(30);

    fn member(tier: u8, tpm: u64) -> Member {
        let limits = Limits { tpm: Some(tpm), ..Limits::default() };
        Member { name: format!("tier{tier}"), tier, limits, ..Member::default() }
    }

    fn offer(admission: &mut Admission<u32>, charge: u64, item: u32, now: Instant) {
        let lane = admission.lane_for("m");
        let ticket = Ticket { lane, charge, priority: 0, deadline: None, since: now, avoid: None };
        admission.offer(&ticket, item, now);
    }

    fn only(admission: &Admission<u32>, now: Instant) -> Wait {
        let mut waits = admission.waits(|_| true, now);
        assert_eq!(waits.len(), 1);
        waits.remove(0).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_for_tokens_until_they_are_gathered() {
        let now = Instant::now();
        let mut admission = Admission::new(vec![member(0, 6_000)], SPILL, now);
        offer(&mut admission, 1_000, 1, now);
        assert!(matches!(admission.next(now), Next::Wait(_)), "100 tokens a second");
        let wait = only(&admission, now);
        let [block] = &wait.blocks[..] else { panic!("{wait:?}") };
        assert_eq!(block.hindrance, Hindrance::Tokens { tpm: Some(6_000), share: 1.0 });
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
        let Next::Go(_, booking) = admission.next(later) else { panic!("it goes") };
        let until = later + Duration::from_secs(20);
        let refused = Feedback::Throttled { until };
        admission.observe(&booking, refused, &RateHeaders::default(), later);
        offer(&mut admission, 10, 2, later);
        let wait = only(&admission, later);
        assert_eq!(wait.blocks[0].hindrance, Hindrance::Paused);
        assert_eq!(wait.blocks[0].over_in_ms, Some(20_000));
        admission.drain();
        offer(&mut admission, 7_000, 3, until);
        let wait = only(&admission, until);
        assert_eq!(wait.blocks[0].hindrance, Hindrance::TooLarge { most: 6_000 });
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
        assert_eq!(wait.blocks[1].hindrance, Hindrance::TierAbove);
    }
}
