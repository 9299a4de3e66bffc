//! What a worker did, and what its store charged.

use std::sync::atomic::Ordering;

use super::output::say;
use domain::outcome::OutcomeStatus;
use store::StoreCharges;
use telemetry::WorkerProgress;

/// Prints the outcomes, tokens and errors of one worker.
pub(super) fn say_worker(progress: &WorkerProgress, charges: Option<&StoreCharges>) {
    let count = |status| progress.of(status);
    let statuses = OutcomeStatus::ALL.into_iter().filter(|status| count(*status) > 0);
    let counts: Vec<_> = statuses.map(|status| format!("{} {status}", count(status))).collect();
    say(&format!(
        "this worker: {}; {} tokens, {} transient errors, {} throttled (429)",
        if counts.is_empty() { "no job".to_owned() } else { counts.join(", ") },
        progress.tokens(),
        progress.transient_errors.load(Ordering::Relaxed),
        progress.throttled.load(Ordering::Relaxed)
    ));
    let late = progress.late_outcomes.load(Ordering::Relaxed);
    if late > 0 {
        say(&format!(
            "{late} calls were paid for jobs that had their outcome by then: they came twice, or a \
             worker that was cut off had them"
        ));
    }
    if let Some(charges) = charges {
        say_request_units(charges, progress.ended());
    }
}

/// Prints the request units that a store billed by use charged for this many jobs.
pub(super) fn say_request_units(expense: &StoreCharges, jobs: u64) {
    let by: Vec<_> =
        expense.by_operation.iter().map(|(what, n)| format!("{what} {n:.0}")).collect();
    let each = match jobs {
        0 => String::new(),
        jobs => format!("{:.1} RU per job; ", expense.request_units / jobs as f64),
    };
    say(&format!(
        "store: {each}{:.0} RU in all ({}), {} writes throttled",
        expense.request_units,
        by.join(", "),
        expense.throttled
    ));
}
