//! Several trials, what they have in common, and what would change it.
//!
//! A run's end is not one number: it depends on when in the service's minute it begins and on how long
//! its calls happen to take. So the same jobs go through several trials. What binds is found by asking
//! the same trial again with a little more of one thing at a time: whatever helps most was short.

use std::io;
use std::thread;

use serde::Serialize;

use super::simulate::{Course, Scene, Trial, run};
use admission::Member;

/// Trials of a small input, and of a large one, which is longer than chance can change by much.
const TRIALS: usize = 9;
const TRIALS_OF_MANY: usize = 5;
const MANY: u64 = 200_000;

/// Has no divisor in common with either.
const SCATTER: usize = 4;

/// How much more of a thing is tried.
const MORE: f64 = 1.1;

/// A change that saves less than this part of the time does not help.
const HELPS: f64 = 0.01;

/// What the time to the end depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    TokensAMinute,
    RequestsAMinute,
    /// How many calls may be in flight, and how long each takes.
    CallsInFlight,
    /// What one worker can do.
    Workers,
    /// None of these: how long the last answers take, or when jobs may begin.
    Answers,
}

/// Seconds from the beginning to the last job's end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Seconds {
    pub p50: f64,
    pub p95: f64,
}

/// A change, and when all would be done with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WhatIf {
    pub change: String,
    pub limit: Option<Limit>,
    pub seconds: f64,
    /// Less than now, in the same circumstances.
    pub saved: f64,
}

/// What the trials came to.
pub struct Judgement {
    pub seconds: Seconds,
    /// The one in the middle.
    pub course: Course,
    pub binding: Limit,
    pub what_if: Vec<WhatIf>,
}

/// Tries it several times, and what would change it.
///
/// # Errors
/// If the temporary file with the jobs fails.
pub fn judge(scene: &Scene<'_>) -> io::Result<Judgement> {
    let trials = if scene.counted.jobs < MANY { TRIALS } else { TRIALS_OF_MANY };
    let share = |n: usize| (n as f64 + 0.5) / trials as f64;
    // Late beginnings and slow calls do not go together.
    let trial =
        |n: usize| Trial { phase: share(n), seed: n as u64, luck: share(n * SCATTER % trials) };
    let tasks: Vec<_> = (0..trials).map(|n| (scene.clone(), trial(n))).collect();
    let mut courses: Vec<_> = all(&tasks)?.into_iter().enumerate().collect();
    courses.sort_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds));
    let sorted: Vec<f64> = courses.iter().map(|(_, course)| course.seconds).collect();
    let seconds = Seconds { p50: quantile(&sorted, 0.5), p95: quantile(&sorted, 0.95) };
    let (middle, course) = courses.swap_remove(trials / 2);

    let changes = changes(scene);
    let tasks: Vec<_> =
        changes.iter().map(|change| (change.scene.clone(), trial(middle))).collect();
    let outcomes = changes.into_iter().zip(all(&tasks)?);
    let what_if: Vec<WhatIf> = outcomes
        .map(|(change, with)| WhatIf {
            change: change.text,
            limit: change.limit,
            seconds: with.seconds,
            saved: course.seconds - with.seconds,
        })
        .collect();
    let binding = binding(&what_if, course.seconds);
    Ok(Judgement { seconds, course, binding, what_if })
}

fn binding(what_if: &[WhatIf], seconds: f64) -> Limit {
    let of_limits = what_if.iter().filter(|change| change.limit.is_some());
    let best = of_limits.max_by(|a, b| a.saved.total_cmp(&b.saved));
    let best = best.filter(|best| best.saved >= HELPS * seconds);
    best.and_then(|best| best.limit).unwrap_or(Limit::Answers)
}

/// The value below which a part of the sorted ones lies, between two of them in proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// All courses in the order of their tasks, on all cores.
fn all(tasks: &[(Scene<'_>, Trial)]) -> io::Result<Vec<Course>> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut done: Vec<(usize, Course)> = thread::scope(|scope| {
        let each = (0..cores.min(tasks.len())).map(|core| {
            scope.spawn(move || {
                let mine = tasks.iter().enumerate().skip(core).step_by(cores);
                mine.map(|(n, (scene, trial))| Ok((n, run(scene, *trial)?)))
                    .collect::<io::Result<Vec<_>>>()
            })
        });
        // All are started before the first is waited for.
        let each: Vec<_> = each.collect();
        let joined = each.into_iter().map(|core| core.join().expect("a trial does not panic"));
        joined.collect::<io::Result<Vec<_>>>()
    })?
    .concat();
    done.sort_by_key(|(n, _)| *n);
    Ok(done.into_iter().map(|(_, course)| course).collect())
}

struct Change<'a> {
    text: String,
    limit: Option<Limit>,
    scene: Scene<'a>,
}

fn changes<'a>(scene: &Scene<'a>) -> Vec<Change<'a>> {
    let more = |n: u64| (n as f64 * MORE).ceil() as u64;
    let mut changes = Vec::new();
    let mut change = |text: String, limit, alter: &dyn Fn(&mut Scene<'a>)| {
        let mut scene = scene.clone();
        alter(&mut scene);
        changes.push(Change { text, limit, scene });
    };
    let limits = || scene.members.iter().map(|member| &member.limits);
    if limits().any(|limits| limits.tpm.is_some()) {
        change("10 % more tokens a minute".into(), Some(Limit::TokensAMinute), &|scene| {
            scene.members.iter_mut().for_each(|m| m.limits.tpm = m.limits.tpm.map(more));
        });
    }
    if limits().any(|limits| limits.rpm.is_some()) {
        change("10 % more requests a minute".into(), Some(Limit::RequestsAMinute), &|scene| {
            scene.members.iter_mut().for_each(|m| m.limits.rpm = m.limits.rpm.map(more));
        });
    }
    let calls: usize = limits().map(|limits| limits.concurrency).sum();
    let of_more = |concurrency: usize| more(concurrency as u64) as usize;
    let then: usize = limits().map(|limits| of_more(limits.concurrency)).sum();
    let text = format!("{then} calls in flight instead of {calls}");
    change(text, Some(Limit::CallsInFlight), &|scene| {
        scene.held += 2 * (then - calls);
        let limits = scene.members.iter_mut().map(|member| &mut member.limits);
        limits.for_each(|limits| limits.concurrency = of_more(limits.concurrency));
    });
    if scene.calls_a_second.is_some() {
        change("workers that are 10 % faster".into(), Some(Limit::Workers), &|scene| {
            scene.calls_a_second = scene.calls_a_second.map(|rate| rate * MORE);
        });
    }
    let each = scene.members.iter().zip(&scene.lines);
    let largest = each.max_by_key(|(m, _)| (m.limits.tpm, m.limits.concurrency));
    if let Some((largest, line)) = largest {
        change(format!("another deployment like {}", largest.name), None, &|scene| {
            let twin = format!("{}-2", largest.name);
            let (name, quota) = (twin.clone(), twin);
            scene.held += 2 * largest.limits.concurrency;
            scene.members.push(Member { name, quota, ..largest.clone() });
            scene.lines.push(*line);
        });
    }
    changes
}
