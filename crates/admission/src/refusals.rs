//! Ledger of a deployment's refusals: whether the job or the deployment is at fault.
//!
//! A 404, a 403 or an unknown parameter may be one job's mistake or the end of the deployment. The
//! service does not say, so it is judged by what the deployment answers to others: a job that is
//! refused while others pass is at fault; a deployment that refuses several jobs and answers none is.
//! A wrong key alone is never the job's fault, whatever passes. In doubt the deployment waits and
//! probes, and only a few jobs are ever given up on by doubt, so that no mistake of a whole queue
//! costs the queue.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::booking::JobTag;
use domain::suspect::Suspect;

/// Refusals that make a job the one at fault, if others pass: 401s come in passing.
const STRIKES_OF_JOB: u32 = 2;
const STRIKES_OF_DEPLOYMENT: u32 = 3;
const STRIKES_OF_IDENTITY: u32 = 8;

/// 429s after which a job that is larger than all that pass counts as too large.
const STRIKES_OF_SIZE: u32 = 6;

/// Refusals of one job that make it the one at fault where no other job is refused, or too few to
/// tell.
const STRIKES_ALONE: u32 = 4;

/// Jobs in a row that may be given up on where nothing passes to tell by.
const MOST_BY_DOUBT: u32 = 20;

/// Jobs refused in a row, with no answer between, that speak against the deployment.
const SEVERAL: usize = 3;

/// Wait of a refused job before it asks again: doubles up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Time for which a deployment may refuse everything before it leaves the pool: one that never
/// answered is likely misspelt, one that did may come back, and a new one takes some minutes.
const PATIENCE_AT_START: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(300);

/// Refusals that it takes at the least, however long they take.
const LEAST_REFUSALS: u32 = 3;

/// Bounds of what is remembered.
const MOST_JOBS: usize = 4_096;
const MOST_KINDS: usize = 256;

/// Judgement on a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalRuling {
    /// The job must not come here again.
    JobAtFault,
    /// It may ask again, at the earliest after this wait.
    AskAgain { after: Duration },
}

/// Effect of a refusal on its deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeploymentDoubt {
    None,
    /// One call at a time finds out whether it answers.
    Probe,
    /// It is at fault for good.
    Retire,
}

/// Refusals and answers of one deployment.
#[derive(Default)]
pub struct RefusalLedger {
    answers: u64,
    /// Kinds of jobs that were answered.
    answered_kinds: Vec<u64>,
    largest_answered: u64,
    jobs: HashMap<u64, JobStrikes>,
    run: Option<RefusalRun>,
}

/// Refusals of one job here.
#[derive(Clone, Copy)]
struct JobStrikes {
    refusals: u32,
    throttles: u32,
    /// Answers to others when it was first refused.
    answers_then: u64,
}

/// Refusals since the last answer.
struct RefusalRun {
    since: Instant,
    refusals: u32,
    /// The first few jobs that were refused.
    jobs: Vec<u64>,
    /// A job of a kind that had been answered was refused.
    known_kind_refused: bool,
    by_doubt: u32,
}

/// Refusal to be judged.
#[derive(Debug, Clone, Copy)]
pub struct SuspectCall {
    pub tag: JobTag,
    pub suspect: Suspect,
    /// No other deployment can do its work.
    pub is_last: bool,
}

impl RefusalLedger {
    /// Records an answer.
    pub fn answered(&mut self, tag: JobTag, charge: u64) {
        self.answers += 1;
        self.largest_answered = self.largest_answered.max(charge);
        self.run = None;
        if !self.jobs.is_empty() {
            self.jobs.remove(&tag.job);
        }
        if self.answered_kinds.len() < MOST_KINDS && !self.answered_kinds.contains(&tag.kind) {
            self.answered_kinds.push(tag.kind);
        }
    }

    /// Records that a job was refused for good, which only a working deployment does.
    pub fn alive(&mut self) {
        self.run = None;
    }

    /// Judges a refusal that may be the job's or the deployment's fault.
    pub fn refused(&mut self, call: SuspectCall, now: Instant) -> (RefusalRuling, DeploymentDoubt) {
        let SuspectCall { tag, suspect, is_last } = call;
        let has_answered = self.answers > 0;
        let is_known_kind = self.answered_kinds.contains(&tag.kind);
        let strikes = self.strike(tag.job, |strikes| strikes.refusals += 1);
        let run = self.run.get_or_insert_with(|| RefusalRun::begin(now));
        run.add(tag.job, is_known_kind);
        let others_pass = self.answers > strikes.answers_then;
        // Jobs of other kinds are answered, and none of this one ever was: its name is wrong.
        let is_odd_kind = has_answered && !is_known_kind && !run.known_kind_refused;
        let is_at_fault = match suspect {
            Suspect::Identity => others_pass && strikes.refusals >= STRIKES_OF_IDENTITY,
            _ if is_odd_kind => strikes.refusals >= STRIKES_OF_JOB,
            Suspect::Deployment => {
                others_pass && strikes.refusals >= STRIKES_OF_DEPLOYMENT
                    || has_answered && run.is_alone(&strikes)
            }
            Suspect::Job => {
                others_pass && strikes.refusals >= STRIKES_OF_JOB
                    || has_answered && (run.is_alone(&strikes) || run.may_doubt(&strikes))
            }
        };
        if is_at_fault {
            run.by_doubt += u32::from(!others_pass && !is_odd_kind);
            run.jobs.retain(|job| *job != tag.job);
            self.jobs.remove(&tag.job);
            return (RefusalRuling::JobAtFault, DeploymentDoubt::None);
        }
        let ruling = RefusalRuling::AskAgain { after: wait_after(strikes.refusals) };
        let is_of_jobs = is_odd_kind && suspect != Suspect::Identity;
        let doubt = match is_of_jobs {
            true => DeploymentDoubt::None,
            false => run.doubt(has_answered, is_last, now),
        };
        (ruling, doubt)
    }

    /// Returns whether it has refused everything since its last answer.
    pub fn is_in_doubt(&self) -> bool {
        self.run.as_ref().is_some_and(|run| self.answers == 0 || run.jobs.len() >= SEVERAL)
    }

    /// Returns whether it has answered any job.
    pub fn has_answered(&self) -> bool {
        self.answers > 0
    }

    /// Judges a 429: true if the job is too large for the deployment, as far as others tell.
    pub fn throttled(&mut self, tag: JobTag, charge: u64) -> bool {
        // Nothing passed, or nothing smaller than it: a wait may help.
        if self.answers == 0 || charge <= self.largest_answered {
            return false;
        }
        let strikes = self.strike(tag.job, |strikes| strikes.throttles += 1);
        strikes.throttles >= STRIKES_OF_SIZE && self.answers > strikes.answers_then
    }

    fn strike(&mut self, job: u64, add: impl FnOnce(&mut JobStrikes)) -> JobStrikes {
        let new = JobStrikes { refusals: 0, throttles: 0, answers_then: self.answers };
        // A job without a tag is like no other, and beyond the bound each is judged as new.
        if job == 0 || self.jobs.len() >= MOST_JOBS && !self.jobs.contains_key(&job) {
            let mut strikes = new;
            add(&mut strikes);
            return strikes;
        }
        let strikes = self.jobs.entry(job).or_insert(new);
        add(strikes);
        *strikes
    }
}

impl RefusalRun {
    fn begin(now: Instant) -> Self {
        Self { since: now, refusals: 0, jobs: Vec::new(), known_kind_refused: false, by_doubt: 0 }
    }

    fn add(&mut self, job: u64, is_known_kind: bool) {
        self.refusals += 1;
        self.known_kind_refused |= is_known_kind;
        if self.jobs.len() < SEVERAL && !self.jobs.contains(&job) {
            self.jobs.push(job);
        }
    }

    /// Returns whether the job alone was refused, often enough.
    fn is_alone(&self, strikes: &JobStrikes) -> bool {
        self.jobs.len() < SEVERAL && strikes.refusals >= STRIKES_ALONE
    }

    fn may_doubt(&self, strikes: &JobStrikes) -> bool {
        self.by_doubt < MOST_BY_DOUBT && strikes.refusals >= STRIKES_ALONE
    }

    fn doubt(&self, has_answered: bool, is_last: bool, now: Instant) -> DeploymentDoubt {
        let patience = match has_answered || !is_last {
            true => PATIENCE,
            false => PATIENCE_AT_START,
        };
        let is_over = now.saturating_duration_since(self.since) >= patience;
        if is_over && self.refusals >= LEAST_REFUSALS {
            return DeploymentDoubt::Retire;
        }
        match !has_answered || self.jobs.len() >= SEVERAL {
            true => DeploymentDoubt::Probe,
            false => DeploymentDoubt::None,
        }
    }
}

fn wait_after(refusals: u32) -> Duration {
    let doublings = refusals.saturating_sub(1).min(8);
    (FIRST_WAIT * 2_u32.pow(doublings)).min(LONGEST_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Night {
        ledger: RefusalLedger,
        now: Instant,
    }

    impl Night {
        fn new() -> Self {
            Self { ledger: RefusalLedger::default(), now: Instant::now() }
        }

        fn answer(&mut self, job: u64, kind: u64) {
            self.ledger.answered(JobTag { job, kind }, 100);
        }

        fn refuse(&mut self, job: u64, kind: u64, suspect: Suspect) -> (bool, DeploymentDoubt) {
            self.now += Duration::from_secs(1);
            let call = SuspectCall { tag: JobTag { job, kind }, suspect, is_last: true };
            let (ruling, doubt) = self.ledger.refused(call, self.now);
            (ruling == RefusalRuling::JobAtFault, doubt)
        }
    }

    #[test]
    fn a_mistyped_model_among_good_ones_is_its_jobs_fault() {
        for suspect in [Suspect::Job, Suspect::Deployment] {
            let mut night = Night::new();
            night.answer(1, 1);
            assert_eq!(night.refuse(2, 2, suspect), (false, DeploymentDoubt::None));
            assert_eq!(night.refuse(2, 2, suspect), (true, DeploymentDoubt::None));
            for job in 3..1_000 {
                night.refuse(job, 2, suspect);
                assert!(night.refuse(job, 2, suspect).0, "all jobs of that model");
            }
        }
    }

    #[test]
    fn a_job_that_is_refused_while_its_like_pass_is_at_fault() {
        let mut night = Night::new();
        night.answer(1, 1);
        for refusals in 1..STRIKES_OF_DEPLOYMENT {
            assert!(!night.refuse(2, 1, Suspect::Deployment).0, "{refusals}");
            night.answer(3, 1);
        }
        assert!(night.refuse(2, 1, Suspect::Deployment).0);
    }

    #[test]
    fn a_passing_401_is_nobodys_fault_and_pauses_nothing() {
        let mut night = Night::new();
        night.answer(1, 1);
        for job in 2..100 {
            let judged = night.refuse(job, 1, Suspect::Identity);
            assert_eq!(judged, (false, DeploymentDoubt::None));
            night.answer(job, 1);
        }
    }

    #[test]
    fn a_key_that_ends_in_the_night_costs_no_job() {
        let mut night = Night::new();
        night.answer(1, 1);
        let mut retired = false;
        for call in 0..1_000 {
            let (at_fault, doubt) = night.refuse(2 + call % 5, 1, Suspect::Identity);
            assert!(!at_fault);
            retired |= doubt == DeploymentDoubt::Retire;
        }
        assert!(retired);
    }

    #[test]
    fn a_retired_model_costs_no_job_and_an_upgraded_one_a_few_at_the_most() {
        for (suspect, most) in [(Suspect::Deployment, 0), (Suspect::Job, MOST_BY_DOUBT)] {
            let mut night = Night::new();
            night.answer(1, 1);
            let mut lost = 0;
            for call in 0..100_000 {
                let (at_fault, doubt) = night.refuse(10 + call % 500, 1, suspect);
                lost += u32::from(at_fault);
                if doubt == DeploymentDoubt::Retire {
                    break;
                }
            }
            assert_eq!(lost.min(most), lost, "{suspect:?}");
        }
    }

    #[test]
    fn a_deployment_that_never_answered_is_probed_and_given_up_on_after_seconds() {
        for suspect in [Suspect::Identity, Suspect::Deployment, Suspect::Job] {
            let mut night = Night::new();
            let first: Vec<_> = (0..3).map(|_| night.refuse(1, 1, suspect)).collect();
            assert!(first.iter().all(|judged| *judged == (false, DeploymentDoubt::Probe)));
            assert_eq!(night.refuse(1, 1, suspect), (false, DeploymentDoubt::Retire));
        }
    }

    #[test]
    fn the_last_job_of_a_night_is_given_up_on_alone() {
        let mut night = Night::new();
        night.answer(1, 1);
        let judged = (0..STRIKES_ALONE).map(|_| night.refuse(2, 1, Suspect::Deployment).0);
        assert_eq!(judged.collect::<Vec<_>>(), [false, false, false, true]);
    }

    #[test]
    fn a_job_larger_than_all_that_pass_is_too_large_in_the_end() {
        let mut night = Night::new();
        let (large, small) = (JobTag { job: 2, kind: 1 }, JobTag { job: 3, kind: 1 });
        assert!(!night.ledger.throttled(large, 900), "nothing passed yet");
        night.answer(1, 1);
        for _ in 1..STRIKES_OF_SIZE {
            assert!(!night.ledger.throttled(large, 900));
            night.answer(4, 1);
        }
        assert!(night.ledger.throttled(large, 900));
        assert!((0..100).all(|_| !night.ledger.throttled(small, 100)), "its like pass");
    }
}
