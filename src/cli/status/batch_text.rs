//! Text lines of a batch: its counts, pace, ETA and cost.

use indicatif::HumanCount;

use super::money_text::{cost, money};
use crate::cli::answers_text;
use crate::cli::rate::duration_text;
use domain::prices::Prices;
use report::forecast::{BatchRate, Eta, EtaBasis, ForecastRange};
use report::live::LiveStatus;

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
    let unwhole = answers_text::lines(&s.batch, s.totals.finishes, usage);
    let under = [pace_and_cost(live, prices)].into_iter().chain(unwhole);
    [counts].into_iter().chain(under.map(|line| format!("  {line}"))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
