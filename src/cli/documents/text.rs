//! Messages about a night.

use crate::cli::output::say;
use crate::cli::rate::duration_text;
use documents::summary::NightSummary;
use domain::prices::Prices;
use plan::PlanForecast;

/// Prints the night's report for people.
pub(super) fn say_summary(summary: &NightSummary, prices: &Prices) {
    for fault in &summary.faults {
        let part = fault.part.map_or_else(String::new, |part| format!(", part {part}"));
        say(&format!("{}{part}: {}: {}", fault.document, fault.state.as_str(), fault.why));
    }
    let d = &summary.documents;
    say(&format!(
        "documents: {} ({} new, {} changed, {} same, {} unread), {} removed",
        d.all, d.new, d.changed, d.same, d.unread, d.removed
    ));
    let r = &summary.requests;
    say(&format!(
        "prompts:   {} sent ({} to repair an answer), {} reused, {} shared by several parts",
        r.asked, r.repairs, r.reused, r.duplicates
    ));
    let rows = &summary.rows;
    say(&format!(
        "answers:   {} answered, {} failed, {} unfinished",
        rows.answered, rows.failed, rows.unfinished
    ));
    let cost = if summary.cost.unpriced_tokens == 0 {
        format!("{} {}", summary.cost.known, prices.currency)
    } else {
        "unknown".to_owned()
    };
    let saved = match summary.saved.cost {
        Some(cost) => format!("{cost} {}", prices.currency),
        None => "unknown".to_owned(),
    };
    say(&format!(
        "tokens:    {} prompt, {} completion for {cost}; saved {} for {saved}; prices of {}",
        summary.usage.prompt,
        summary.usage.completion,
        summary.saved.usage.total(),
        prices.date
    ));
    say(&finish_line(summary));
}

fn finish_line(summary: &NightSummary) -> String {
    let took = duration_text(summary.ended_at.duration_since(summary.began_at).as_secs_f64());
    match (summary.finish_by, summary.is_met) {
        (Some(by), Some(true)) => format!("finished:  after {took}, wanted by {by:.0}: met"),
        (Some(by), _) => format!("finished:  after {took}, wanted by {by:.0}: missed"),
        (None, _) => format!("finished:  after {took}"),
    }
}

/// Prints the planned time against the time that is left.
pub(super) fn say_fit(forecast: &PlanForecast, left: f64, fits: bool, strict: bool) {
    let p95 = duration_text(forecast.seconds.p95);
    let left = duration_text(left);
    if fits {
        say(&format!("plan: done in {p95} of the {left} that are left"));
        return;
    }
    let what = if strict {
        "nothing is sent: allow more time or quota, or omit --strict"
    } else {
        "prompts not sent by then are left to the next night"
    };
    say(&format!(
        "plan: {p95} are needed and {left} are left (limited by {}): {what}",
        forecast.binding
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    use documents::summary::{DocumentCounts, RequestCounts, ReuseSavings, RowCounts};

    #[test]
    fn the_time_that_was_wanted_is_met_or_missed() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut morning = NightSummary {
            recipe: "r".into(),
            batch: "r-2026-11-29".parse().unwrap(),
            documents: DocumentCounts::default(),
            rows: RowCounts::default(),
            requests: RequestCounts::default(),
            usage: Default::default(),
            cost: Default::default(),
            saved: ReuseSavings::default(),
            began_at: at("2026-11-28T22:00:00Z"),
            ended_at: at("2026-11-28T23:01:00Z"),
            finish_by: None,
            is_met: None,
            faults: Vec::new(),
        };
        assert_eq!(finish_line(&morning), "finished:  after 1h01m");
        morning.finish_by = Some(at("2026-11-29T06:00:00Z"));
        morning.is_met = Some(true);
        assert!(finish_line(&morning).ends_with("wanted by 2026-11-29T06:00:00Z: met"));
        morning.is_met = Some(false);
        assert!(finish_line(&morning).ends_with("missed"));
    }
}
