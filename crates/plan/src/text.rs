//! Terminal output of a forecast.

use std::fmt;

use super::cost::CostForecast;
use super::count::TokenSpread;
use super::forecast::PlanForecast;
use super::simulate::UncalledJobs;
use super::trials::{BindingLimit, TimeForecast};
use report::usage::Cost;

/// Part of the time below which a what-if counts as no change.
const MIN_DIFFERENCE: f64 = 0.005;

impl fmt::Display for PlanForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let models: Vec<_> =
            self.models.iter().map(|asked| format!("{} {}", asked.jobs, asked.model)).collect();
        writeln!(f, "jobs      {}: {}", self.jobs, models.join(", "))?;
        let tokens = &self.tokens;
        writeln!(f, "prompts   {} tokens; a job {}", tokens.prompt, tokens.prompt_by_job)?;
        let (answers, most) = (tokens.completion, tokens.max_output);
        writeln!(f, "answers   {answers} tokens expected, {most} at most")?;
        writeln!(f, "booked    {} tokens; a job {}", tokens.prompt + most, tokens.charge_by_job)?;
        self.turned_away.write(f)?;
        let TimeForecast { p50, p95 } = self.seconds;
        writeln!(f, "\ntime      {} (p50), {} (p95)", duration(p50), duration(p95))?;
        if self.refused > 0 {
            writeln!(f, "          {} calls throttled (429) and retried", self.refused)?;
        }
        writeln!(f, "limit     {}", self.binding)?;
        for (n, change) in self.what_if.iter().enumerate() {
            let head = if n == 0 { "what if" } else { "" };
            let (with, by) = (duration(change.seconds), duration(change.saved.abs()));
            let by = match change.saved / p50.max(1e-3) {
                part if part >= MIN_DIFFERENCE => format!("{by} less"),
                part if part <= -MIN_DIFFERENCE => format!("{by} more"),
                _ => "no change".to_owned(),
            };
            writeln!(f, "{head:9} {}: {with} ({by})", change.change)?;
        }
        writeln!(f, "\n{}", self.costs)?;
        for (n, sentence) in self.rests_on.iter().enumerate() {
            let head = if n == 0 { "rests on" } else { "" };
            writeln!(f, "{head:9} {sentence}")?;
        }
        Ok(())
    }
}

impl UncalledJobs {
    fn write(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.too_large, "are larger than a whole minute's quota and will fail"),
            (self.expired, "will not begin before their deadline"),
            (self.not_served, "ask for a model that no deployment serves and will fail"),
        ];
        kinds
            .iter()
            .filter(|(jobs, _)| *jobs > 0)
            .try_for_each(|(jobs, why)| writeln!(f, "          {jobs} of the jobs {why}"))
    }
}

impl fmt::Display for TokenSpread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mean, min, p50, p95, max } = self;
        write!(f, "{mean:.1} (from {min}, p50 {p50}, p95 {p95}, to {max})")
    }
}

impl fmt::Display for BindingLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TokensAMinute => "tokens a minute",
            Self::RequestsAMinute => "requests a minute",
            Self::CallsInFlight => "calls in flight, and what each takes",
            Self::Workers => "throughput of the workers",
            Self::Answers => {
                "none of the quotas: how long single answers take, or when jobs may begin"
            }
        })
    }
}

impl fmt::Display for CostForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { currency, prices_of, expected, at_most, batch_api, .. } = self;
        let (expected, at_most, batch) = (amount(expected), amount(at_most), amount(batch_api));
        write!(
            f,
            "cost      {currency} {expected} expected, {at_most} at most, by prices of {prices_of}"
        )?;
        write!(f, "; {batch} through the Batch API, within a day")?;
        for part in &self.deployments {
            let cost = part.cost.as_ref().map_or_else(|| "paid by the hour".to_owned(), amount);
            let (name, jobs) = (&part.deployment, part.jobs);
            write!(f, "\n          tier {}, {name}: {jobs} jobs, {cost}", part.tier)?;
        }
        Ok(())
    }
}

fn amount(cost: &Cost) -> String {
    match cost.unpriced_tokens {
        0 => cost.known.to_string(),
        tokens => format!("unknown ({tokens} tokens have no price)"),
    }
}

/// Formats a time by its two largest units.
pub fn duration(seconds: f64) -> String {
    let tenths = (seconds.max(0.0) * 10.0).round() as u64;
    if tenths < 600 {
        return format!("{}.{} s", tenths / 10, tenths % 10);
    }
    let whole = seconds.round() as u64;
    let (minutes, hours, days) = (whole / 60, whole / 3_600, whole / 86_400);
    match (days, hours) {
        (0, 0) => format!("{minutes} min {} s", whole % 60),
        (0, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0.0, 9.96, 59.94, 59.96, 61.0, 3_599.6, 3_600.0, 90_000.0].map(duration);
        let expected = ["0.0 s", "10.0 s", "59.9 s", "1 min 0 s", "1 min 1 s", "1 h 0 min"];
        assert_eq!(said[..6], expected);
        assert_eq!(said[6..], ["1 h 0 min", "1 d 1 h"]);
    }
}
