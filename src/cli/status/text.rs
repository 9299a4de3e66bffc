//! Text lines of `status`.

use indicatif::HumanCount;

use crate::cli::progress::duration_text;
use domain::heartbeat::{Heartbeat, QuotaClaim};
use domain::prices::Prices;
use queue::QueueDepth;
use report::autoscale::ScalingAdvice;
use report::autoscale::formula::ScalingReason;
use report::deployments::DeploymentStatus;
use report::forecast::{BatchRate, Eta, EtaBasis, ForecastRange};
use report::live::LiveStatus;
use report::usage::Cost;

/// Formats a batch: its counts, and under them its pace, ETA and cost.
pub(super) fn batch(live: &LiveStatus, prices: &Prices) -> Vec<String> {
    let s = &live.status;
    let usage = s.totals.usage;
    let budget = s.budget.as_ref().map_or(String::new(), |budget| format!(", budget of {budget}"));
    let counts = format!(
        "{}: {}, {} jobs{}, {} pending, {} prompt and {} completion tokens{budget}",
        s.batch,
        state(live),
        s.jobs,
        endings(live),
        s.pending,
        usage.prompt,
        usage.completion
    );
    vec![counts, format!("  {}", pace_and_cost(live, prices))]
}

/// Formats a batch in one line, for watching without a terminal.
pub(super) fn batch_in_short(live: &LiveStatus, prices: &Prices) -> String {
    let s = &live.status;
    let ended = s.totals.ended();
    let (state, course) = (state(live), pace_and_cost(live, prices));
    format!("{}: {state}, {ended}/{}{}, {course}", s.batch, s.jobs, endings(live))
}

/// Formats the state, with its reason if one was given.
fn state(live: &LiveStatus) -> String {
    let s = &live.status;
    let why = s.reason.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    format!("{}{why}", s.state.as_str())
}

fn endings(live: &LiveStatus) -> String {
    live.status.totals.endings.iter().map(|(ending, n)| format!(", {n} {ending}")).collect()
}

/// Formats pace, ETA and cost.
fn pace_and_cost(live: &LiveStatus, prices: &Prices) -> String {
    let mut parts = Vec::new();
    if let Some(forecast) = live.forecast {
        parts.push(live.rate.map_or_else(|| "no job ended recently".to_owned(), rate));
        parts.push(forecast.eta.map_or_else(|| "ETA unknown".to_owned(), eta));
    }
    parts.push(format!("cost {}", cost(live.cost, prices)));
    if let Some(forecast) = live.forecast {
        let whole = forecast.cost.map_or_else(|| "unknown".to_owned(), money);
        parts.push(format!("in the end {whole}"));
    }
    parts.join(", ")
}

fn rate(rate: BatchRate) -> String {
    let tokens = HumanCount(rate.tokens_per_minute.round() as u64);
    format!("{:.1} jobs/s, {tokens} tokens/min", rate.jobs_per_second)
}

fn eta(Eta { basis, seconds }: Eta) -> String {
    match (basis, seconds) {
        (EtaBasis::Quota, ForecastRange { likely, .. }) => {
            format!("ETA {} at the soonest, by the quota", duration_text(likely))
        }
        (EtaBasis::Rate, ForecastRange { low: Some(low), likely, high: Some(high) })
            if low < high =>
        {
            format!(
                "ETA {} ({} to {})",
                duration_text(likely),
                duration_text(low),
                duration_text(high)
            )
        }
        (EtaBasis::Rate, ForecastRange { likely, .. }) => format!("ETA {}", duration_text(likely)),
    }
}

fn cost(cost: Cost, prices: &Prices) -> String {
    let known = format!("{} {}", cost.known, prices.currency);
    match (cost.unpriced_tokens, cost.known.amount() > 0.0) {
        (0, _) => known,
        (unpriced, true) => format!("at least {known} ({unpriced} tokens without a known price)"),
        (_, false) => "unknown".to_owned(),
    }
}

fn money(range: ForecastRange) -> String {
    match range {
        ForecastRange { low: Some(low), likely, high: Some(high) } if low < high => {
            format!("{likely:.4} ({low:.4} to {high:.4})")
        }
        ForecastRange { likely, .. } => format!("{likely:.4}"),
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use domain::prices::Money;

    #[test]
    fn what_is_not_known_is_never_told_as_nothing() {
        let prices = Prices::load(None).unwrap();
        let said = |known: f64, unpriced_tokens| {
            cost(Cost { known: Money::new(known), unpriced_tokens }, &prices)
        };
        assert_eq!(said(1.5, 0), "1.5000 USD");
        assert_eq!(said(0.0, 7), "unknown");
        assert_eq!(said(1.5, 7), "at least 1.5000 USD (7 tokens without a known price)");
    }

    #[test]
    fn an_end_is_told_with_what_it_is_told_by() {
        let told = |basis, low, high| {
            eta(Eta { basis, seconds: ForecastRange { low, likely: 90.0, high } })
        };
        assert_eq!(told(EtaBasis::Rate, Some(60.0), Some(120.0)), "ETA 1m30s (1m00s to 2m00s)");
        assert_eq!(told(EtaBasis::Rate, None, None), "ETA 1m30s");
        let by_quota = told(EtaBasis::Quota, Some(90.0), None);
        assert_eq!(by_quota, "ETA 1m30s at the soonest, by the quota");
    }
}
