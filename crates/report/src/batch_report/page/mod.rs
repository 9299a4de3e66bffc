//! A batch report as one self-contained HTML page, to be read, sent and printed.
//!
//! `page.html` is the page; here is what it shows beside the report itself. Every figure names its
//! place in the JSON (`data-at`, a JSON pointer), so that the two can be compared, and a reader of the
//! page finds the figure in a program.

mod plots;

use jiff::Timestamp;
use serde::Serialize;

use super::page_texts::PageTexts;
use super::{BatchReport, ReportLanguage};
use crate::usage::Cost;
use crate::{html, plot};
use plots::{DistributionFigure, TimeFigures};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");

/// Data of the page.
#[derive(Serialize)]
struct PageData<'a> {
    words: &'a PageTexts,
    style: String,
    report: &'a BatchReport,
    state: &'static str,
    times: PageTimes,
    faults: Vec<String>,
    endings: Vec<EndingRow>,
    cost: CostCell,
    /// Costs of the report's lines, in their order.
    line_costs: Vec<CostCell>,
    over_time: Option<TimeFigures>,
    distributions: Vec<DistributionFigure>,
    calls_a_job: Vec<CallsRow>,
    /// Names of the failures' endings, in their order.
    causes: Vec<&'static str>,
}

/// Times of the batch, for people.
#[derive(Serialize)]
struct PageTimes {
    created: String,
    first_ended: Option<String>,
    last_ended: Option<String>,
    counted: String,
}

#[derive(Serialize)]
struct EndingRow {
    key: &'static str,
    name: &'static str,
    jobs: u64,
}

#[derive(Serialize)]
struct CallsRow {
    calls: u32,
    jobs: u64,
}

/// A cost as the JSON has it, and for people.
#[derive(Serialize)]
struct CostCell {
    is: String,
    text: String,
}

impl BatchReport {
    /// Renders the whole page.
    pub fn to_html(&self, language: ReportLanguage) -> String {
        html::render(PAGE, &self.page_data(language.texts()))
    }

    fn page_data<'a>(&'a self, words: &'a PageTexts) -> PageData<'a> {
        let ending = |(ending, jobs): (&_, &u64)| {
            let ending: domain::outcome::OutcomeStatus = *ending;
            EndingRow { key: ending.as_str(), name: words.ending(ending), jobs: *jobs }
        };
        PageData {
            words,
            style: format!("{STYLE}{}", plot::STYLE),
            report: self,
            state: words.state(self.state),
            times: PageTimes {
                created: time_text(self.created_at),
                first_ended: self.first_ended_at.map(time_text),
                last_ended: self.last_ended_at.map(time_text),
                counted: time_text(self.counted_at),
            },
            faults: self.balance.faults.iter().map(|fault| words.fault(*fault)).collect(),
            endings: self.balance.endings.iter().map(ending).collect(),
            cost: CostCell::new(self.money.cost, words),
            line_costs: self.lines.iter().map(|line| CostCell::new(line.cost, words)).collect(),
            over_time: self.time_figures(words),
            distributions: self.distribution_figures(words),
            calls_a_job: self
                .jobs_by_calls
                .iter()
                .map(|(calls, jobs)| CallsRow { calls: *calls, jobs: *jobs })
                .collect(),
            causes: self.failures.iter().map(|cause| words.ending(cause.ending)).collect(),
        }
    }
}

impl CostCell {
    fn new(cost: Cost, words: &PageTexts) -> Self {
        if cost.unpriced_tokens == 0 {
            Self { is: cost.known.amount().to_string(), text: cost.known.to_string() }
        } else {
            Self { is: "null".to_owned(), text: words.unknown.to_owned() }
        }
    }
}

fn time_text(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{account, brief};
    use super::*;
    use domain::outcome::{JobFailure, OutcomeStatus};
    use store::OutcomeSummary;

    #[test]
    fn a_page_stands_alone_and_nothing_in_it_is_taken_for_html() {
        let failure =
            JobFailure { code: "<b>".into(), message: "<script>alert(1)</script>".into() };
        let bad = OutcomeSummary {
            ending: Some(OutcomeStatus::Failed),
            failure: Some(failure),
            ..brief(1)
        };
        let account = account(vec![brief(0), bad], 2, 0);
        for language in [ReportLanguage::English, ReportLanguage::Japanese] {
            let page = account.to_html(language);
            assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
            assert!(
                !page.contains("http://")
                    || page.matches("http://").count() == {
                        page.matches("http://www.w3.org/2000/svg").count()
                    }
            );
            assert!(page.contains("&lt;script&gt;"));
        }
    }

    #[test]
    fn what_does_not_balance_is_said_loudly() {
        let page = account(vec![brief(0)], 10, 0).to_html(ReportLanguage::English);
        assert!(page.contains("IT DOES NOT BALANCE: 9 jobs have neither"), "{page}");
        let page = account(vec![brief(0)], 10, 9).to_html(ReportLanguage::English);
        assert!(!page.contains("role=\"alert\""));
    }

    #[test]
    fn every_figure_is_where_the_json_has_it() {
        let account = account((0..1_000).map(brief).collect(), 1_200, 200);
        let json = serde_json::to_value(&account).unwrap();
        // The template escapes the slash as well.
        let page = account.to_html(ReportLanguage::English).replace("&#x2f;", "/");
        let mut figures = 0;
        for part in page.split("data-at=\"").skip(1) {
            let (at, rest) = part.split_once("\" data-is=\"").unwrap();
            let is = rest.split_once('"').unwrap().0;
            let value = json.pointer(at).unwrap_or_else(|| panic!("nothing is at {at}"));
            assert_eq!(value.as_str().map_or(value.to_string(), Into::into), is, "{at}");
            figures += 1;
        }
        assert!(figures > 50, "{figures}");
    }
}
