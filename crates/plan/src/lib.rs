//! Tokens, cost and time of an input, before anything is spent.
//!
//! ```text
//! input ─▶ count ─▶ spool ─▶ simulate ─▶ judge ─▶ cost ─▶ Forecast ─▶ text, JSON
//!       (tokens,           (admission,  (trials,
//!        all cores)         simulated    what binds,
//!                           time)        what would help)
//!                     latency, learn ──▲    service ──▲
//! ```
//!
//! Nobody is called and nothing is written but a temporary file. Jobs are let go by the worker's own
//! `admission`; `service` is what it hears back, and `latency` what calls take, `learn`t from past
//! outcomes, from a benchmark, or assumed, and then said so. `docs/plan.md` has the method and its limits.

mod cost;
mod count;
mod due;
mod judge;
mod latency;
mod learn;
mod service;
mod simulate;
mod spool;
mod text;

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

pub use cost::{Costs, Part};
pub use count::{Asked, Counted, Spread, count};
pub use due::{BadDue, Due, zone};
pub use judge::{Limit, Seconds, WhatIf};
pub use latency::{Answers, Experience, LatencyModel, Length, Line, USUAL, USUAL_SHARE};
pub use learn::learn;
pub use simulate::TurnedAway;
pub use text::duration;

use admission::Member;
use admission::deployment::Service;
use domain::prices::Prices;
use intake::{self, CheckError, Reading, Source, SourceError};
use simulate::{Course, Scene};

/// Why an input can't be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("can't keep what was counted in a temporary file")]
    Temporary(#[source] io::Error),
    #[error(
        "the input changed while it was read: it was checked with {checked} jobs and now has {now}"
    )]
    InputChanged { checked: u64, now: u64 },
    #[error(
        "no deployment to plan with: add [[deployments]] to the configuration, or give --tpm N"
    )]
    NoDeployment,
}

/// What the jobs will meet.
#[derive(Clone, Copy)]
pub struct Circumstances<'a> {
    /// The deployments, with the limits that one worker has.
    pub members: &'a [Member],
    /// How long a job waits for a tier before the one below may take it.
    pub spill_after: Duration,
    /// Deliveries that one worker holds at a time.
    pub max_held: usize,
    pub prices: &'a Prices,
    pub experience: &'a Experience,
    /// Workers on the same queue: each has the configured number of calls in flight.
    pub workers: usize,
    /// When they begin.
    pub begin: Timestamp,
}

/// What is to be expected.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    pub jobs: u64,
    pub models: Vec<Asked>,
    pub tokens: Tokens,
    pub seconds: Seconds,
    pub binding: Limit,
    pub what_if: Vec<WhatIf>,
    /// Calls that are expected to be refused for want of quota.
    pub refused: u64,
    /// Jobs that will end without a call.
    pub turned_away: TurnedAway,
    pub costs: Costs,
    /// What it rests on, one sentence each: what was learnt, and what is assumed.
    pub rests_on: Vec<String>,
}

/// Tokens of all jobs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tokens {
    pub prompt: u64,
    /// Expected, of the jobs that will be called for.
    pub completion: u64,
    /// The most that all may answer.
    pub max_output: u64,
    /// Prompt tokens of each job, and what it is booked with against a quota.
    pub prompt_by_job: Spread,
    pub charge_by_job: Spread,
}

/// Plans an input: checks it, counts it, and lets it run in simulated time. Lines that are no jobs are
/// left out. Blocks for as long as that takes.
///
/// # Errors
/// If the input can't be read, or there is no deployment.
pub fn forecast(
    sources: &[Source],
    reading: &Reading,
    circumstances: &Circumstances<'_>,
) -> Result<Forecast, PlanError> {
    let checked = intake::check(sources, reading, std::env::temp_dir())?;
    let counted = count(sources, reading, &checked, &mut |_| {})?;
    foresee(&counted, circumstances)
}

/// Plans an input that is counted.
///
/// # Errors
/// As [`forecast`].
pub fn foresee(
    counted: &Counted,
    circumstances: &Circumstances<'_>,
) -> Result<Forecast, PlanError> {
    let Circumstances { prices, experience, begin, .. } = *circumstances;
    let workers = circumstances.workers.max(1);
    let mut members = circumstances.members.to_vec();
    if members.is_empty() {
        return Err(PlanError::NoDeployment);
    }
    members.iter_mut().for_each(|member| member.limits.concurrency *= workers);
    let scene = Scene {
        lines: members.iter().map(|member| experience.latency.of(&member.name)).collect(),
        members,
        spill_after: circumstances.spill_after,
        held: circumstances.max_held * workers,
        calls_a_second: experience.calls_a_second.map(|rate| rate * workers as f64),
        counted,
        answers: &experience.answers,
        begin: begin.as_millisecond() as f64 / 1e3,
    };
    let judgement = judge::judge(&scene).map_err(PlanError::Temporary)?;
    let course = &judgement.course;
    Ok(Forecast {
        jobs: counted.jobs,
        models: counted.models.clone(),
        tokens: tokens(counted, course),
        seconds: judgement.seconds,
        binding: judgement.binding,
        refused: course.refused,
        turned_away: course.turned_away,
        costs: cost::costs(&scene.members, counted, course, prices),
        rests_on: rests_on(&scene.members, counted, experience, workers),
        what_if: judgement.what_if,
    })
}

fn tokens(counted: &Counted, course: &Course) -> Tokens {
    Tokens {
        prompt: counted.models.iter().map(|asked| asked.prompt).sum(),
        completion: course.used.iter().flatten().map(|used| used.completion).sum(),
        max_output: counted.models.iter().map(|asked| asked.max_output).sum(),
        prompt_by_job: counted.prompt,
        charge_by_job: counted.charge,
    }
}

/// What was learnt and what is assumed.
fn rests_on(
    members: &[Member],
    counted: &Counted,
    experience: &Experience,
    workers: usize,
) -> Vec<String> {
    let mut said = experience.learnt.clone();
    let LatencyModel { by_deployment, others } = &experience.latency;
    let unknown = members.iter().filter(|member| !by_deployment.contains_key(&member.name));
    let unknown: Vec<&str> = unknown.map(|member| member.name.as_str()).collect();
    if !unknown.is_empty() {
        let what = if *others == USUAL { "assumed" } else { "as elsewhere" };
        said.push(format!("{others} at {} ({what})", unknown.join(", ")));
    }
    let unseen = |asked: &&Asked| {
        asked.max_output > 0 && !experience.answers.by_model.contains_key(&asked.model)
    };
    let unseen: Vec<&str> =
        counted.models.iter().filter(unseen).map(|asked| asked.model.as_str()).collect();
    if !unseen.is_empty() {
        let (of, length) = (unseen.join(", "), experience.answers.others);
        said.push(format!("answers of {of} have {length} (assumed)"));
    }
    for Member { name, limits, .. } in members {
        match limits.service {
            Service::Provisioned => said.push(format!(
                "{name} is provisioned: only its {} calls in flight limit it here (assumed)",
                limits.concurrency
            )),
            _ if limits.tpm.is_none() => said.push(format!(
                "no tpm is set for {name}: only its requests a minute, where set, and its {} calls \
                 in flight limit it here (assumed)",
                limits.concurrency
            )),
            Service::Flex => {
                said.push(format!("{name} has room on the flex tier at any time (assumed)"))
            }
            Service::Standard => {}
        }
    }
    if workers > 1 {
        said.push(format!("{workers} workers share the quotas"));
    }
    said.push("nobody else uses the quotas, and no call fails (assumed)".to_owned());
    said
}
