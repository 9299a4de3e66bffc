//! What `status` says, in lines.

use indicatif::HumanCount;

use crate::cli::progress::clock;
use domain::prices::Prices;
use domain::share::{Part, Word};
use queue::Depth;
use report::deployments::Deployment;
use report::forecast::{Basis, Eta, Range, Rate};
use report::live::Live;
use report::replicas::Replicas;
use report::replicas::useful::Why;
use report::usage::Cost;

/// A batch: its counts, and under them its pace, end and cost.
pub(super) fn batch(live: &Live, prices: &Prices) -> Vec<String> {
    let s = &live.standing;
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
    vec![counts, format!("  {}", course(live, prices))]
}

/// A batch in one line, for one that is watched without a terminal.
pub(super) fn batch_in_short(live: &Live, prices: &Prices) -> String {
    let s = &live.standing;
    let ended = s.totals.ended();
    let (state, course) = (state(live), course(live, prices));
    format!("{}: {state}, {ended}/{}{}, {course}", s.batch, s.jobs, endings(live))
}

/// The state, and why it is so where somebody said so.
fn state(live: &Live) -> String {
    let s = &live.standing;
    let why = s.reason.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    format!("{}{why}", s.state.as_str())
}

fn endings(live: &Live) -> String {
    live.standing.totals.endings.iter().map(|(ending, n)| format!(", {n} {ending}")).collect()
}

/// Pace, end and cost.
fn course(live: &Live, prices: &Prices) -> String {
    let mut parts = Vec::new();
    if let Some(forecast) = live.forecast {
        parts.push(live.rate.map_or_else(|| "nothing ended lately".to_owned(), rate));
        parts.push(forecast.eta.map_or_else(|| "ETA unknown".to_owned(), eta));
    }
    parts.push(format!("cost {}", cost(live.cost, prices)));
    if let Some(forecast) = live.forecast {
        let whole = forecast.cost.map_or_else(|| "unknown".to_owned(), money);
        parts.push(format!("in the end {whole}"));
    }
    parts.join(", ")
}

fn rate(rate: Rate) -> String {
    let tokens = HumanCount(rate.tokens_per_minute.round() as u64);
    format!("{:.1} jobs/s, {tokens} tokens/min", rate.jobs_per_second)
}

fn eta(Eta { basis, seconds }: Eta) -> String {
    match (basis, seconds) {
        (Basis::Quota, Range { likely, .. }) => {
            format!("ETA {} at the soonest, by the quota", clock(likely))
        }
        (Basis::Rate, Range { low: Some(low), likely, high: Some(high) }) if low < high => {
            format!("ETA {} ({} to {})", clock(likely), clock(low), clock(high))
        }
        (Basis::Rate, Range { likely, .. }) => format!("ETA {}", clock(likely)),
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

fn money(range: Range) -> String {
    match range {
        Range { low: Some(low), likely, high: Some(high) } if low < high => {
            format!("{likely:.4} ({low:.4} to {high:.4})")
        }
        Range { likely, .. } => format!("{likely:.4}"),
    }
}

pub(super) fn queue(depth: Depth) -> String {
    format!(
        "queue: {} ready, {} locked, {} scheduled, {} dead letters",
        depth.active, depth.locked, depth.scheduled, depth.dead_letters
    )
}

pub(super) fn deployment(d: &Deployment) -> String {
    let tpm = d.tpm.map_or_else(|| "unknown".to_owned(), |tpm| tpm.to_string());
    let mut line = format!(
        "deployment {}: {} tokens in the last minute of {tpm} TPM, {} waiting, {} calls in flight, \
         {} workers",
        d.name, d.used_last_minute, d.waiting, d.in_flight, d.workers
    );
    if let Some(ms) = d.paused_ms {
        line += &format!(", paused by a 429 for {} s more", ms.div_ceil(1_000));
    }
    d.troubles.iter().for_each(|why| line += &format!(", kept off: {why}"));
    line
}

pub(super) fn worker(word: &Word) -> String {
    let about = |key: &str| word.about[key].as_str().unwrap_or("unknown").to_owned();
    let part = |(quota, part): (&String, &Part)| {
        let percent = |fraction: f64| format!("{:.0} %", fraction * 100.0);
        format!("{} of {quota} (could use {})", percent(part.claim), percent(part.demand))
    };
    let parts: Vec<_> = word.parts.iter().map(part).collect();
    format!(
        "worker {} on {}, since {}: {}",
        word.about["pid"],
        about("host"),
        about("started"),
        parts.join(", ")
    )
}

/// How many workers are of use, and why not more.
pub(super) fn replicas(replicas: Replicas) -> String {
    let why = match replicas.why {
        Why::NothingToDo => "nothing could go now",
        Why::Backlog => "what waits needs no more",
        Why::Quota => "the quota feeds no more",
        Why::NotMeasured => "no call was answered yet",
        Why::Bounds => "by the bounds of [scaling]",
    };
    let Replicas { useful_replicas, workers, .. } = replicas;
    format!("workers of use now: {useful_replicas} ({why}); at work: {workers}")
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
        let told =
            |basis, low, high| eta(Eta { basis, seconds: Range { low, likely: 90.0, high } });
        assert_eq!(told(Basis::Rate, Some(60.0), Some(120.0)), "ETA 1m30s (1m00s to 2m00s)");
        assert_eq!(told(Basis::Rate, None, None), "ETA 1m30s");
        let by_quota = told(Basis::Quota, Some(90.0), None);
        assert_eq!(by_quota, "ETA 1m30s at the soonest, by the quota");
    }
}
