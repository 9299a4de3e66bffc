//! The night in words.

use crate::cli::progress::clock;
use crate::cli::say;
use documents::morning::Morning;
use domain::prices::Prices;
use plan::Forecast;

/// The morning's report for people.
pub(super) fn say_morning(morning: &Morning, prices: &Prices) {
    for fault in &morning.faults {
        let part = fault.part.map_or_else(String::new, |part| format!(", part {part}"));
        say(&format!("{}{part}: {}: {}", fault.document, fault.state.as_str(), fault.why));
    }
    let d = &morning.documents;
    say(&format!(
        "documents: {} ({} new, {} changed, {} same, {} unread), {} removed",
        d.all, d.new, d.changed, d.same, d.unread, d.removed
    ));
    let r = &morning.requests;
    say(&format!(
        "prompts:   {} asked ({} to mend an answer), {} reused, {} asked by several parts",
        r.asked, r.repairs, r.reused, r.duplicates
    ));
    let rows = &morning.rows;
    say(&format!(
        "answers:   {} answered, {} failed, {} unfinished",
        rows.answered, rows.failed, rows.unfinished
    ));
    let cost = if morning.cost.unpriced_tokens == 0 {
        format!("{} {}", morning.cost.known, prices.currency)
    } else {
        "unknown".to_owned()
    };
    let saved = match morning.saved.cost {
        Some(cost) => format!("{cost} {}", prices.currency),
        None => "unknown".to_owned(),
    };
    say(&format!(
        "tokens:    {} prompt, {} completion for {cost}; saved {} for {saved}; prices of {}",
        morning.usage.prompt,
        morning.usage.completion,
        morning.saved.usage.total(),
        prices.date
    ));
    say(&when(morning));
}

fn when(morning: &Morning) -> String {
    let took = clock(morning.ended_at.duration_since(morning.began_at).as_secs_f64());
    match (morning.finish_by, morning.is_met) {
        (Some(by), Some(true)) => format!("finished:  after {took}, wanted by {by:.0}: met"),
        (Some(by), _) => format!("finished:  after {took}, wanted by {by:.0}: missed"),
        (None, _) => format!("finished:  after {took}"),
    }
}

/// What the plan says of the time that is left.
pub(super) fn say_fit(forecast: &Forecast, left: f64, fits: bool, strict: bool) {
    let p95 = clock(forecast.seconds.p95);
    let left = clock(left);
    if fits {
        say(&format!("plan: done in {p95} of the {left} that are left"));
        return;
    }
    let what = if strict {
        "nothing is asked: give it more time or quota, or leave --strict away"
    } else {
        "what is not sent by then is left to the next night"
    };
    say(&format!(
        "plan: {p95} are needed and {left} are left ({} binds): {what}",
        forecast.binding
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    use documents::morning::{Documents, Requests, Rows, Saved};

    #[test]
    fn the_time_that_was_wanted_is_met_or_missed() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut morning = Morning {
            recipe: "r".into(),
            batch: "r-2026-11-29".parse().unwrap(),
            documents: Documents::default(),
            rows: Rows::default(),
            requests: Requests::default(),
            usage: Default::default(),
            cost: Default::default(),
            saved: Saved::default(),
            began_at: at("2026-11-28T22:00:00Z"),
            ended_at: at("2026-11-28T23:01:00Z"),
            finish_by: None,
            is_met: None,
            faults: Vec::new(),
        };
        assert_eq!(when(&morning), "finished:  after 1h01m");
        morning.finish_by = Some(at("2026-11-29T06:00:00Z"));
        morning.is_met = Some(true);
        assert!(when(&morning).ends_with("wanted by 2026-11-29T06:00:00Z: met"));
        morning.is_met = Some(false);
        assert!(when(&morning).ends_with("missed"));
    }
}
