//! A batch report as one self-contained HTML page, to be read, sent and printed.
//!
//! Every figure names its place in the JSON (`data-at`, a JSON pointer), so that the two can be
//! compared, and a reader of the page finds the figure in a program.

mod plots;

use std::fmt::Display;

use super::page_texts::PageTexts;
use super::{BatchReport, DeploymentUsage, ReportLanguage};
use crate::plot::{self, escape_xml};
use crate::usage::Cost;

const STYLE: &str = ":root{color-scheme:light dark;--ink:#1d1d1f;--paper:#fff;--faint:#6b6b70;\
--rule:#d9d9de;--bad:#b3261e;--good:#0b6b3a}@media(prefers-color-scheme:dark){:root{--ink:#ececf0;\
--paper:#17171a;--faint:#a0a0a8;--rule:#3a3a40;--bad:#ff8a80;--good:#7ddba3}}\
body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;\
color:var(--ink);background:var(--paper)}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}h3{font-size:1em;margin:1em 0 0}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
caption{text-align:left;font-weight:600;padding:.4em 0}\
th,td{padding:.25em .55em;border-bottom:1px solid var(--rule);text-align:left;vertical-align:top}\
th{vertical-align:bottom}td.n,th.n{text-align:right}td,tbody th{white-space:nowrap}\
td.w{white-space:normal;overflow-wrap:anywhere}tr.sum td,tr.sum th{font-weight:600}\
.good{color:var(--good)}.bad{color:var(--bad);font-weight:700;border:2px solid;padding:.6em .8em}\
.faint{color:var(--faint);font-size:.9em}figure{margin:1em 0;break-inside:avoid}\
figcaption{font-weight:600}ul{margin:0;padding-left:1.1em}\
@media print{:root{color-scheme:light;--ink:#000;--paper:#fff;--faint:#444;--rule:#bbb;--bad:#900;\
--good:#050}body{margin:0;max-width:none;font-size:12px}tr,h2{break-inside:avoid;break-after:avoid}\
.scroll{overflow:visible}}";

impl BatchReport {
    /// Renders the whole page.
    pub fn to_html(&self, language: ReportLanguage) -> String {
        let words = language.texts();
        let title = format!("{} {}", words.batch, escape_xml(self.batch.as_str()));
        let sections = [
            self.head(words, &title),
            self.balance_section(words),
            self.cost_section(words),
            self.time_section(words),
            self.distribution_section(words),
            self.throttling_section(words),
            self.failure_section(words),
            self.deadline_section(words),
        ];
        format!(
            "<!doctype html>\n<html lang=\"{}\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\"><link rel=\"icon\" href=\"data:,\">\
             <title>{title}</title><style>{STYLE}{}</style></head><body><main>\n{}\n</main>\
             </body></html>\n",
            words.code,
            plot::STYLE,
            sections.join("\n")
        )
    }

    fn head(&self, words: &PageTexts, title: &str) -> String {
        let time = |name: &str, at: Option<jiff::Timestamp>| {
            let at = at.map(|at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
            at.map_or_else(String::new, |at| format!("{name}: {at}<br>"))
        };
        format!(
            "<h1>{title}: <span data-at=\"/state\" data-is=\"{}\">{}</span></h1>\
             <p>{}{}{}{}<span class=\"faint\">promptmill {}</span></p>",
            self.state.as_str(),
            words.state(self.state),
            time(words.created, Some(self.created_at)),
            time(words.first_ended, self.first_ended_at),
            time(words.last_ended, self.last_ended_at),
            time(words.counted, Some(self.counted_at)),
            self.promptmill,
        )
    }

    fn balance_section(&self, words: &PageTexts) -> String {
        let balance = &self.balance;
        let verdict = if balance.is_balanced() {
            format!("<p class=\"good\">{}</p>", words.balances)
        } else {
            let why: Vec<_> = balance.faults.iter().map(|fault| words.fault(*fault)).collect();
            let why = escape_xml(&why.join("; "));
            format!("<p class=\"bad\" role=\"alert\">{} {why}</p>", words.does_not_balance)
        };
        let mut rows = String::new();
        for (ending, jobs) in &balance.endings {
            let at = format!("/balance/endings/{ending}");
            rows += &row(&escape_xml(words.ending(*ending)), &[number(&at, *jobs)], "");
        }
        rows += &row(words.ended, &[number("/balance/ended", balance.ended)], "sum");
        rows += &row(words.pending, &[number("/balance/pending", balance.pending)], "");
        rows += &row(words.went_in, &[number("/balance/jobs", balance.jobs)], "sum");
        format!("<h2>{}</h2>{verdict}{}", words.balance, table("", &["", words.jobs], &rows))
    }

    fn cost_section(&self, words: &PageTexts) -> String {
        let cost = format!("{} ({})", words.cost, escape_xml(&self.money.currency));
        let columns = [
            words.deployment,
            words.model,
            words.tier,
            words.jobs,
            words.calls,
            words.prompt,
            words.cached,
            words.completion,
            words.reasoning,
            &cost,
        ];
        let mut rows: String =
            self.lines.iter().enumerate().map(|(n, line)| line_row(words, n, line)).collect();
        let sums = [
            "<td></td><td></td>".to_owned(),
            number("/balance/ended", self.balance.ended),
            number("/calls/tries", self.calls.attempts),
            number("/prompt", self.usage.prompt),
            number("/cached", self.usage.cached),
            number("/completion", self.usage.completion),
            number("/reasoning", self.usage.reasoning),
            money(words, "/money/cost", self.money.cost),
        ];
        rows += &row(words.total, &sums, "sum");
        let unpriced = if self.money.unpriced_tokens == 0 {
            String::new()
        } else {
            let tokens = span("/money/unpriced_tokens", self.money.unpriced_tokens);
            format!(" <strong>{tokens} {}.</strong>", words.unpriced)
        };
        let note = format!("{} {}.{unpriced}", words.prices, escape_xml(&self.money.prices_of));
        let table = table_of_texts("", &columns, 3, &rows);
        format!("<h2>{}</h2>{table}<p class=\"faint\">{note}</p>", words.tokens_and_cost)
    }

    fn throttling_section(&self, words: &PageTexts) -> String {
        let calls = &self.calls;
        let figures = [
            (words.throttled, "throttled", calls.throttled),
            (words.jobs_throttled, "jobs_throttled", calls.jobs_throttled),
            (words.retries, "retries", calls.retries),
            (words.jobs_retried, "jobs_retried", calls.jobs_retried),
            (words.withdrawn, "withdrawn", calls.withdrawn),
        ];
        let figure = |(name, key, n): (&str, &str, u64)| {
            row(name, &[number(&format!("/calls/{key}"), n)], "")
        };
        let rows: String = figures.into_iter().map(figure).collect();
        let by_calls = |(calls, jobs): (&u32, &u64)| {
            row(&calls.to_string(), &[number(&format!("/jobs_by_calls/{calls}"), *jobs)], "")
        };
        let by_calls: String = self.jobs_by_calls.iter().map(by_calls).collect();
        format!(
            "<h2>{}</h2>{}{}",
            words.troubles,
            table("", &["", ""], &rows),
            table("", &[words.calls_a_job, words.jobs], &by_calls)
        )
    }

    fn failure_section(&self, words: &PageTexts) -> String {
        if self.failures.is_empty() {
            return format!("<h2>{}</h2><p>{}</p>", words.failures, words.no_failures);
        }
        let cause = |(n, cause): (usize, &super::FailureCause)| {
            let examples =
                cause.examples.iter().map(|text| format!("<li>{}</li>", escape_xml(text)));
            format!(
                "<tr><th scope=\"row\">{}</th><td>{}</td>{}<td class=\"w\"><ul>{}</ul></td></tr>",
                escape_xml(words.ending(cause.ending)),
                escape_xml(&cause.code),
                number(&format!("/failures/{n}/jobs"), cause.jobs),
                examples.collect::<String>()
            )
        };
        let rows: String = self.failures.iter().enumerate().map(cause).collect();
        let columns = [words.ending, words.cause, words.jobs, words.examples];
        let heads: String = columns.map(|name| format!("<th scope=\"col\">{name}</th>")).concat();
        format!(
            "<h2>{}</h2><div class=\"scroll\"><table><thead><tr>{heads}</tr></thead><tbody>{rows}\
             </tbody></table></div>",
            words.failures
        )
    }

    fn deadline_section(&self, words: &PageTexts) -> String {
        let d = &self.deadlines;
        if d.met + d.missed == 0 {
            return format!("<h2>{}</h2><p>{}</p>", words.deadlines, words.no_deadlines);
        }
        let rows = [
            row(words.met, &[number("/deadlines/met", d.met)], ""),
            row(words.missed, &[number("/deadlines/missed", d.missed)], ""),
            row(
                words.latest_by,
                &[number("/deadlines/latest_by_seconds", d.latest_by_seconds)],
                "",
            ),
        ];
        format!("<h2>{}</h2>{}", words.deadlines, table("", &["", words.jobs], &rows.concat()))
    }
}

fn line_row(words: &PageTexts, n: usize, line: &DeploymentUsage) -> String {
    let at = |key: &str| format!("/lines/{n}/{key}");
    let name = if line.deployment.is_empty() { words.none_answered } else { &line.deployment };
    let cells = [
        format!("<td>{}</td>", escape_xml(&line.model)),
        format!("<td>{}</td>", escape_xml(line.service_tier.as_deref().unwrap_or_default())),
        number(&at("jobs"), line.jobs),
        number(&at("tries"), line.attempts),
        number(&at("prompt"), line.usage.prompt),
        number(&at("cached"), line.usage.cached),
        number(&at("completion"), line.usage.completion),
        number(&at("reasoning"), line.usage.reasoning),
        money(words, &at("cost"), line.cost),
    ];
    row(&escape_xml(name), &cells, "")
}

/// Renders a row: its name, and its cells as given.
fn row(name: &str, cells: &[String], class: &str) -> String {
    format!("<tr class=\"{class}\"><th scope=\"row\">{name}</th>{}</tr>", cells.concat())
}

/// Renders a table of figures with one leading column of names.
fn table(caption: &str, columns: &[&str], rows: &str) -> String {
    table_of_texts(caption, columns, 1, rows)
}

/// Renders a table whose first `texts` columns are texts.
fn table_of_texts(caption: &str, columns: &[&str], texts: usize, rows: &str) -> String {
    let head = |(n, name): (usize, &&str)| {
        let class = if n < texts { "" } else { " class=\"n\"" };
        format!("<th scope=\"col\"{class}>{name}</th>")
    };
    let heads: String = columns.iter().enumerate().map(head).collect();
    let caption =
        if caption.is_empty() { String::new() } else { format!("<caption>{caption}</caption>") };
    format!(
        "<div class=\"scroll\"><table>{caption}<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>\
         </table></div>"
    )
}

fn number(at: &str, figure: u64) -> String {
    format!("<td class=\"n\">{}</td>", span(at, figure))
}

fn span(at: &str, figure: u64) -> String {
    format!("<span data-at=\"{at}\" data-is=\"{figure}\">{}</span>", with_thousands(figure))
}

fn money(words: &PageTexts, at: &str, cost: Cost) -> String {
    let (is, text) = if cost.unpriced_tokens == 0 {
        (cost.known.amount().to_string(), cost.known.to_string())
    } else {
        ("null".to_owned(), words.unknown.to_owned())
    };
    format!("<td class=\"n\"><span data-at=\"{at}\" data-is=\"{is}\">{text}</span></td>")
}

/// Formats a figure with a comma at every thousand.
fn with_thousands(figure: impl Display) -> String {
    let digits = figure.to_string();
    let place = |n: usize| if n > 0 && (digits.len() - n).is_multiple_of(3) { "," } else { "" };
    digits.chars().enumerate().map(|(n, digit)| format!("{}{digit}", place(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{account, brief};
    use super::*;
    use domain::outcome::{JobFailure, OutcomeStatus};
    use store::OutcomeSummary;

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(with_thousands),
            ["0", "999", "1,000", "1,234,567"]
        );
    }

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
        let page = account.to_html(ReportLanguage::English);
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
