//! Runs several trials: their result, the limiting factor, and what-ifs.
//!
//! A run's end is not one number: it depends on when in the service's minute it begins and on how
//! long its calls happen to take. So the same jobs go through several trials. The limiting factor
//! is found by repeating a trial with a bit more of one thing at a time: the most helpful one.

use std::io;
use std::thread;

use serde::Serialize;

use super::simulate::{Scenario, SimulatedRun, SimulationTrial, run};
use admission::PoolMember;

/// Trials of a small input, and of a large one, which is longer than chance can change by much.
const TRIALS: usize = 9;
const TRIALS_OF_LARGE_INPUT: usize = 5;
const LARGE_INPUT_JOBS: u64 = 200_000;

/// Stride over the percentiles; has no divisor in common with either number of trials.
const PERCENTILE_STRIDE: usize = 4;

/// Factor by which a what-if increases a limit.
const CHANGE_FACTOR: f64 = 1.1;

/// Least part of the time that a change must save to count as help.
const MIN_SAVING: f64 = 0.01;

/// Limiting factor of the time to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BindingLimit {
    TokensAMinute,
    RequestsAMinute,
    /// Calls in flight, and the time that each takes.
    CallsInFlight,
    /// Throughput of one worker.
    Workers,
    /// None of these: how long the last answers take, or when jobs may begin.
    Answers,
}

/// Seconds from the beginning to the last job's end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TimeForecast {
    pub p50: f64,
    pub p95: f64,
}

/// Effect of one change on the time to the end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhatIf {
    pub change: String,
    pub limit: Option<BindingLimit>,
    pub seconds: f64,
    /// Seconds less than without the change, other things equal.
    pub saved: f64,
}

/// Result of the trials.
pub struct TrialSummary {
    pub seconds: TimeForecast,
    /// Median run.
    pub median_run: SimulatedRun,
    pub binding: BindingLimit,
    pub what_if: Vec<WhatIf>,
}

/// Runs the trials, then the median trial again with each change.
///
/// # Errors
/// If the temporary file with the jobs fails.
pub fn run_trials(scenario: &Scenario<'_>) -> io::Result<TrialSummary> {
    let trials =
        if scenario.counted.jobs < LARGE_INPUT_JOBS { TRIALS } else { TRIALS_OF_LARGE_INPUT };
    let share = |n: usize| (n as f64 + 0.5) / trials as f64;
    // Late beginnings and slow calls must not be correlated.
    let trial = |n: usize| SimulationTrial {
        phase: share(n),
        seed: n as u64,
        percentile: share(n * PERCENTILE_STRIDE % trials),
    };
    let tasks: Vec<_> = (0..trials).map(|n| (scenario.clone(), trial(n))).collect();
    let mut courses: Vec<_> = run_all(&tasks)?.into_iter().enumerate().collect();
    courses.sort_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds));
    let sorted: Vec<f64> = courses.iter().map(|(_, course)| course.seconds).collect();
    let seconds = TimeForecast { p50: quantile(&sorted, 0.5), p95: quantile(&sorted, 0.95) };
    let (middle, course) = courses.swap_remove(trials / 2);

    let changes = changes(scenario);
    let tasks: Vec<_> =
        changes.iter().map(|change| (change.scenario.clone(), trial(middle))).collect();
    let outcomes = changes.into_iter().zip(run_all(&tasks)?);
    let what_if: Vec<WhatIf> = outcomes
        .map(|(change, with)| WhatIf {
            change: change.text,
            limit: change.limit,
            seconds: with.seconds,
            saved: course.seconds - with.seconds,
        })
        .collect();
    let binding = binding(&what_if, course.seconds);
    Ok(TrialSummary { seconds, median_run: course, binding, what_if })
}

fn binding(what_if: &[WhatIf], seconds: f64) -> BindingLimit {
    let of_limits = what_if.iter().filter(|change| change.limit.is_some());
    let best = of_limits.max_by(|a, b| a.saved.total_cmp(&b.saved));
    let best = best.filter(|best| best.saved >= MIN_SAVING * seconds);
    best.and_then(|best| best.limit).unwrap_or(BindingLimit::Answers)
}

/// Returns the quantile of sorted values, interpolated linearly.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Runs all tasks on all cores; returns the runs in the order of the tasks.
fn run_all(tasks: &[(Scenario<'_>, SimulationTrial)]) -> io::Result<Vec<SimulatedRun>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, SimulatedRun)> = thread::scope(|scope| {
        let each = (0..cores.min(tasks.len())).map(|core| {
            scope.spawn(move || {
                let mine = tasks.iter().enumerate().skip(core).step_by(cores);
                mine.map(|(n, (scene, trial))| Ok((n, run(scene, *trial)?)))
                    .collect::<io::Result<Vec<_>>>()
            })
        });
        // All are started before the first is joined.
        let each: Vec<_> = each.collect();
        let joined = each.into_iter().map(|core| core.join().expect("a trial does not panic"));
        joined.collect::<io::Result<Vec<_>>>()
    })?
    .concat();
    done.sort_by_key(|(n, _)| *n);
    Ok(done.into_iter().map(|(_, course)| course).collect())
}

struct WhatIfChange<'a> {
    text: String,
    limit: Option<BindingLimit>,
    scenario: Scenario<'a>,
}

fn changes<'a>(scene: &Scenario<'a>) -> Vec<WhatIfChange<'a>> {
    let more = |n: u64| (n as f64 * CHANGE_FACTOR).ceil() as u64;
    let mut changes = Vec::new();
    let mut change = |text: String, limit, alter: &dyn Fn(&mut Scenario<'a>)| {
        let mut scene = scene.clone();
        alter(&mut scene);
        changes.push(WhatIfChange { text, limit, scenario: scene });
    };
    let limits = || scene.members.iter().map(|member| &member.limits);
    if limits().any(|limits| limits.tpm.is_some()) {
        change("10 % more tokens a minute".into(), Some(BindingLimit::TokensAMinute), &|scene| {
            scene.members.iter_mut().for_each(|m| m.limits.tpm = m.limits.tpm.map(more));
        });
    }
    if limits().any(|limits| limits.rpm.is_some()) {
        change(
            "10 % more requests a minute".into(),
            Some(BindingLimit::RequestsAMinute),
            &|scene| {
                scene.members.iter_mut().for_each(|m| m.limits.rpm = m.limits.rpm.map(more));
            },
        );
    }
    let calls: usize = limits().map(|limits| limits.concurrency).sum();
    let of_more = |concurrency: usize| more(concurrency as u64) as usize;
    let then: usize = limits().map(|limits| of_more(limits.concurrency)).sum();
    let text = format!("{then} calls in flight instead of {calls}");
    change(text, Some(BindingLimit::CallsInFlight), &|scene| {
        scene.max_held += 2 * (then - calls);
        let limits = scene.members.iter_mut().map(|member| &mut member.limits);
        limits.for_each(|limits| {
            limits.concurrency = of_more(limits.concurrency);
            limits.unpaced_concurrency = of_more(limits.unpaced_concurrency);
        });
    });
    if scene.calls_a_second.is_some() {
        change("workers that are 10 % faster".into(), Some(BindingLimit::Workers), &|scene| {
            scene.calls_a_second = scene.calls_a_second.map(|rate| rate * CHANGE_FACTOR);
        });
    }
    let each = scene.members.iter().zip(&scene.latencies);
    let largest = each.max_by_key(|(m, _)| (m.limits.tpm, m.limits.concurrency));
    if let Some((largest, line)) = largest {
        change(format!("another deployment like {}", largest.name), None, &|scene| {
            let twin = format!("{}-2", largest.name);
            let (name, quota) = (twin.clone(), twin);
            scene.max_held += 2 * largest.limits.concurrency;
            scene.members.push(PoolMember { name, quota, ..largest.clone() });
            scene.latencies.push(*line);
        });
    }
    changes
}
