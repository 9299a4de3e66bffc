//! Text lines of the queue, the deployments and the workers.

use crate::cli::rate::duration_text;
use domain::heartbeat::{Heartbeat, QuotaClaim};
use queue::QueueDepth;
use report::autoscale::ScalingAdvice;
use report::autoscale::formula::ScalingReason;
use report::deployments::DeploymentStatus;

pub(super) fn queue(depth: QueueDepth) -> String {
    format!(
        "queue: {} ready, {} locked, {} scheduled, {} dead letters",
        depth.active, depth.locked, depth.scheduled, depth.dead_letters
    )
}

pub(super) fn deployment(d: &DeploymentStatus) -> String {
    let tpm = d.tpm.map_or_else(|| "unknown".to_owned(), |tpm| tpm.to_string());
    let mut line = format!(
        "deployment {}: {} tokens in the last minute of {tpm} TPM, {} waiting, {} calls in flight, \
         {} workers",
        d.name, d.used_last_minute, d.waiting, d.in_flight, d.workers
    );
    if d.bound_by_calls > 0 {
        line += &format!(
            ", bound by calls in flight on {} of them (raise `concurrency`)",
            d.bound_by_calls
        );
    }
    if let Some(ms) = d.paused_ms {
        line += &format!(", paused for {} s more", ms.div_ceil(1_000));
    }
    if let Some(words) = &d.last_refusal {
        line += &format!(", last refused with {words}");
    }
    if let Some(ms) = d.asked_ms {
        let asked = duration_text(ms.div_ceil(1_000) as f64);
        line += &format!(" (it asks to wait {asked} more; it is asked again before)");
    }
    d.troubles.iter().for_each(|why| line += &format!(", not used: {why}"));
    line
}

pub(super) fn worker(worker: &Heartbeat) -> String {
    let status = &worker.status;
    let pid = status.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string());
    let started = status.started.map_or_else(|| "unknown".to_owned(), |at| at.to_string());
    let part = |(quota, part): (&String, &QuotaClaim)| {
        let percent = |fraction: f64| format!("{:.0} %", fraction * 100.0);
        format!("{} of {quota} (could use {})", percent(part.claim), percent(part.demand))
    };
    let parts: Vec<_> = worker.quota_claims.iter().map(part).collect();
    format!(
        "worker {pid} on {}, since {started}: {}",
        status.host.as_deref().unwrap_or("unknown"),
        parts.join(", ")
    )
}

/// Formats the number of useful workers, and why not more.
pub(super) fn replicas(replicas: ScalingAdvice) -> String {
    let why = match replicas.why {
        ScalingReason::NothingToDo => "no job could start now",
        ScalingReason::Backlog => "the backlog needs no more",
        ScalingReason::Quota => "the quota allows no more",
        ScalingReason::NotMeasured => "no call was answered yet",
        ScalingReason::Bounds => "by the bounds of [scaling]",
    };
    let ScalingAdvice { useful_replicas, workers, .. } = replicas;
    format!("useful workers now: {useful_replicas} ({why}); running: {workers}")
}
