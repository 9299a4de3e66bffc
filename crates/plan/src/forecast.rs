//! The forecast as a whole: what it takes, what it says, and what that rests on.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::cost::{self, CostForecast};
use super::count::{CountedInput, ModelDemand, TokenSpread, count};
use super::error::PlanError;
use super::latency::{ASSUMED_LATENCY, CallProfile, LatencyModel};
use super::simulate::{Scenario, SimulatedRun, UncalledJobs};
use super::trials::{self, BindingLimit, TimeForecast, WhatIf};
use admission::PoolMember;
use domain::deployment::ServiceKind;
use domain::prices::Prices;
use intake::{self, InputSource, LineOptions};

/// Inputs of a forecast beside the jobs.
#[derive(Clone, Copy)]
pub struct PlanInputs<'a> {
    /// The deployments, with the limits that one worker has.
    pub members: &'a [PoolMember],
    /// How long a job waits for a tier before the one below may take it.
    pub spill_after: Duration,
    /// Deliveries that one worker holds at a time.
    pub max_held: usize,
    pub prices: &'a Prices,
    pub profile: &'a CallProfile,
    /// Workers on the same queue: each has the configured number of calls in flight.
    pub workers: usize,
    /// Start of the workers.
    pub begin: Timestamp,
}

/// Expected tokens, time and cost of an input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanForecast {
    pub jobs: u64,
    pub models: Vec<ModelDemand>,
    pub tokens: TokenForecast,
    pub seconds: TimeForecast,
    pub binding: BindingLimit,
    pub what_if: Vec<WhatIf>,
    /// Expected number of throttled calls (429).
    pub refused: u64,
    /// Jobs that will end without a call.
    pub turned_away: UncalledJobs,
    pub costs: CostForecast,
    /// Learnt facts and assumptions behind the forecast, one sentence each.
    pub rests_on: Vec<String>,
}

/// Tokens of all jobs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenForecast {
    pub prompt: u64,
    /// Expected, of the jobs that will be called for.
    pub completion: u64,
    /// Most that all may answer.
    pub max_output: u64,
    /// Prompt tokens of each job, and the tokens it is booked with against a quota.
    pub prompt_by_job: TokenSpread,
    pub charge_by_job: TokenSpread,
}

/// Plans an input: checks it, counts it, and runs it in simulated time. Lines that are no jobs are
/// left out. Blocks for as long as that takes.
///
/// # Errors
/// If the input can't be read, or there is no deployment.
pub fn forecast(
    sources: &[InputSource],
    reading: &LineOptions,
    circumstances: &PlanInputs<'_>,
) -> Result<PlanForecast, PlanError> {
    let checked = intake::check(sources, reading, std::env::temp_dir())?;
    let counted = count(sources, reading, &checked, &mut |_| {})?;
    forecast_counted(&counted, circumstances)
}

/// Plans an input that is already counted.
///
/// # Errors
/// Same as [`forecast`].
pub fn forecast_counted(
    counted: &CountedInput,
    circumstances: &PlanInputs<'_>,
) -> Result<PlanForecast, PlanError> {
    let PlanInputs { prices, profile: experience, begin, .. } = *circumstances;
    let workers = circumstances.workers.max(1);
    let mut members = circumstances.members.to_vec();
    if members.is_empty() {
        return Err(PlanError::NoDeployment);
    }
    for limits in members.iter_mut().map(|member| &mut member.limits) {
        limits.concurrency *= workers;
        limits.unpaced_concurrency *= workers;
    }
    let scenario = Scenario {
        latencies: members.iter().map(|member| experience.latency.of(&member.name)).collect(),
        members,
        spill_after: circumstances.spill_after,
        max_held: circumstances.max_held * workers,
        calls_a_second: experience.calls_a_second.map(|rate| rate * workers as f64),
        counted,
        answers: &experience.answers,
        begin: begin.as_millisecond() as f64 / 1e3,
    };
    let summary = trials::run_trials(&scenario).map_err(PlanError::Temporary)?;
    let run = &summary.median_run;
    Ok(PlanForecast {
        jobs: counted.jobs,
        models: counted.models.clone(),
        tokens: tokens(counted, run),
        seconds: summary.seconds,
        binding: summary.binding,
        refused: run.throttled,
        turned_away: run.turned_away,
        costs: cost::costs(&scenario.members, counted, run, prices),
        rests_on: assumptions(&scenario.members, counted, experience, workers),
        what_if: summary.what_if,
    })
}

fn tokens(counted: &CountedInput, run: &SimulatedRun) -> TokenForecast {
    TokenForecast {
        prompt: counted.models.iter().map(|asked| asked.prompt).sum(),
        completion: run.used.iter().flatten().map(|used| used.completion).sum(),
        max_output: counted.models.iter().map(|asked| asked.max_output).sum(),
        prompt_by_job: counted.prompt,
        charge_by_job: counted.charge,
    }
}

/// Returns the learnt facts and the assumptions.
fn assumptions(
    members: &[PoolMember],
    counted: &CountedInput,
    profile: &CallProfile,
    workers: usize,
) -> Vec<String> {
    let mut sentences = profile.learnt.clone();
    let LatencyModel { by_deployment, others } = &profile.latency;
    let unknown = members.iter().filter(|member| !by_deployment.contains_key(&member.name));
    let unknown: Vec<&str> = unknown.map(|member| member.name.as_str()).collect();
    if !unknown.is_empty() {
        let what =
            if *others == ASSUMED_LATENCY { "assumed" } else { "as at the other deployments" };
        sentences.push(format!("{others} at {} ({what})", unknown.join(", ")));
    }
    let unseen = |asked: &&ModelDemand| {
        asked.max_output > 0 && !profile.answers.by_model.contains_key(&asked.model)
    };
    let unseen: Vec<&str> =
        counted.models.iter().filter(unseen).map(|asked| asked.model.as_str()).collect();
    if !unseen.is_empty() {
        let (of, length) = (unseen.join(", "), profile.answers.others);
        sentences.push(format!("answers of {of} have {length} (assumed)"));
    }
    for PoolMember { name, limits, .. } in members {
        match limits.service {
            ServiceKind::Provisioned => sentences.push(format!(
                "{name} is provisioned: only its {} calls in flight limit it here (assumed)",
                limits.concurrency
            )),
            _ if limits.tpm.is_none() => sentences.push(format!(
                "no tpm is set for {name}: only its requests a minute, where set, and its {} calls \
                 in flight limit it here (assumed)",
                limits.concurrency
            )),
            ServiceKind::Flex => {
                sentences.push(format!("{name} has room on the flex tier at any time (assumed)"))
            }
            ServiceKind::Standard => {}
        }
    }
    if workers > 1 {
        sentences.push(format!("{workers} workers share the quotas"));
    }
    sentences.push("nobody else uses the quotas, and no call fails (assumed)".to_owned());
    sentences
}
