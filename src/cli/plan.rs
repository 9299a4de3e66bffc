//! `promptmill plan`: tokens, cost and time of an input, before anything is spent.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::counted::Counted;
use super::documents;
use super::endpoint::LimitFlags;
use super::input::Input;
use super::{Exit, Failure, print};
use crate::backends;
use crate::config::{Config, Deployment};
use bench::pipeline::PipeReport;
use bench::report::Report;
use domain::job::BatchId;
use domain::prices::Prices;
use plan::{self, Circumstances, Due, Experience, Forecast, Length, PlanError, duration};

/// Say what files of prompts will take: tokens, cost and time, before anything is spent
#[derive(Debug, clap::Args)]
#[command(after_help = "Nothing is sent to anybody. docs/plan.md has the method and its limits.\n\
                  Exit codes: 0 planned, 1 some lines are no jobs or, with --strict, it does not fit \
                  --finish-by, 2 usage or configuration, 3 out of reach.")]
pub(super) struct Args {
    /// Batch files (JSONL, also .gz and .zst); - is standard input
    #[arg(required_unless_present = "recipe", value_hint = ValueHint::FilePath)]
    inputs: Vec<PathBuf>,
    /// The prompts of this recipe about its documents instead, as `documents` would ask them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "inputs")]
    recipe: Option<PathBuf>,
    /// Where the recipe's documents are [default: documents.source of the configuration]
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::DirPath, requires = "recipe")]
    source: Option<String>,
    /// The model of lines that name none
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    limits: LimitFlags,
    /// Workers on the same queue, each with the configured calls in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = workers)]
    workers: usize,
    #[command(flatten)]
    known: KnownFlags,
    #[command(flatten)]
    when: WhenFlags,
    /// Print the forecast as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "What is known of the service")]
struct KnownFlags {
    /// Calls take as long, and answers are as long, as those of this batch in the store
    #[arg(long, value_name = "BATCH")]
    like: Vec<BatchId>,
    /// Calls take as long as in this report of bench; of bench --pipeline: what a worker can do
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    bench: Vec<PathBuf>,
    /// Milliseconds to the first token, where nothing was learnt [default: 500]
    #[arg(long, value_name = "MS", value_parser = amount)]
    latency_ms: Option<f64>,
    /// Milliseconds for each token of an answer, where nothing was learnt [default: 20]
    #[arg(long, value_name = "MS", value_parser = amount)]
    token_ms: Option<f64>,
    /// How widely calls spread around that: sigma of a lognormal distribution [default: 0.3]
    #[arg(long, value_name = "SIGMA", value_parser = amount)]
    spread: Option<f64>,
    /// The part of its longest that an answer has, where nothing was learnt [default: 0.5]
    #[arg(long, value_name = "0..1", value_parser = share, conflicts_with = "output_tokens")]
    output_share: Option<f64>,
    /// The tokens that an answer has, where nothing was learnt
    #[arg(long, value_name = "N")]
    output_tokens: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "When")]
struct WhenFlags {
    /// When it begins: a time of day, or a moment with its zone [default: now]
    #[arg(long, value_name = "TIME")]
    start: Option<Due>,
    /// Say whether it will be done by then
    #[arg(long, value_name = "TIME")]
    finish_by: Option<Due>,
    /// The time zone of times of day, such as Asia/Tokyo [default: the machine's]
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
    /// Exit with 1 if it does not fit
    #[arg(long, requires = "finish_by")]
    strict: bool,
}

pub(super) async fn run(args: Args, mut config: Config) -> Result<Exit, Failure> {
    config.input.model = args.model.clone().or(config.input.model);
    args.limit(&mut config)?;
    let times = args.when.times(Timestamp::now())?;
    let prices = Prices::load(config.prices.file.as_deref()).map_err(Failure::usage)?;
    let experience = args.known.experience(&config).await?;
    let scratch = tempfile::tempdir().map_err(Failure::unreachable)?;
    let inputs = match &args.recipe {
        Some(recipe) => {
            let file = scratch.path().join("prompts.jsonl");
            documents::write_prompts(&config, recipe, args.source.as_deref(), &file).await?;
            vec![file]
        }
        None => args.inputs.clone(),
    };
    let input = Input::read(&inputs, config.reading(), scratch.path()).await?;
    input.say_faults();
    let faults = input.checked.faults;
    if input.checked.jobs == 0 {
        let message = "no line of the input is a job: nothing to plan";
        return Err(Failure::usage(anyhow::anyhow!(message)));
    }
    let workers = args.workers;
    let (members, worker) = (config.members().map_err(Failure::usage)?, config.worker());
    let planning = tokio::task::spawn_blocking(move || {
        let shown = Counted::start("counted", input.checked.jobs);
        let Input { sources, reading, checked } = &input;
        let counted = plan::count(sources, reading, checked, &mut |jobs| shown.set(jobs));
        drop(shown);
        let circumstances = Circumstances {
            members: &members,
            spill_after: worker.spill_after,
            max_held: worker.max_held,
            prices: &prices,
            experience: &experience,
            workers,
            begin: times.begin,
        };
        plan::foresee(&counted?, &circumstances).map(|forecast| (forecast, times))
    });
    let planned: Result<_, PlanError> = planning.await.map_err(Failure::unreachable)?;
    let (forecast, times) = planned.map_err(Failure::usage)?;
    let ends = times.ends(&forecast);
    if args.json {
        print(&times.json(&forecast, &ends)?);
    } else {
        print(format!("{forecast}{}", times.text(&ends)).trim_end());
    }
    let is_late = args.when.strict && ends.fits == Some(false);
    Ok(if faults > 0 || is_late { Exit::SomeFailed } else { Exit::AllDone })
}

impl Args {
    /// The limits are those of the configured deployment, or of one that there is none of yet.
    fn limit(&self, config: &mut Config) -> Result<(), Failure> {
        if config.deployments.is_empty() && self.limits.is_given() {
            config.deployments.push(Deployment {
                name: Some("the deployment".into()),
                endpoint: "https://deployment.invalid".into(),
                ..Deployment::default()
            });
        }
        self.limits.set(&mut config.deployments)
    }
}

impl KnownFlags {
    async fn experience(&self, config: &Config) -> Result<Experience, Failure> {
        let mut experience = Experience::default();
        let line = &mut experience.latency.others;
        line.first = self.latency_ms.map_or(line.first, |ms| ms / 1e3);
        line.per_token = self.token_ms.map_or(line.per_token, |ms| ms / 1e3);
        line.spread = self.spread.unwrap_or(line.spread);
        let length = self.output_tokens.map(Length::Tokens);
        let length = length.or(self.output_share.map(Length::Share));
        experience.answers.others = length.unwrap_or(experience.answers.others);
        for path in &self.bench {
            hear(&mut experience, path)?;
        }
        if self.like.is_empty() {
            return Ok(experience);
        }
        let store = backends::open_store(config).await?;
        for batch in &self.like {
            let learnt = plan::learn(&mut experience, store.as_ref(), batch).await;
            if learnt.map_err(Failure::unreachable)? == 0 {
                let message = format!("batch '{batch}' has no answers to learn from");
                return Err(Failure::usage(anyhow::anyhow!(message)));
            }
        }
        Ok(experience)
    }
}

/// Learns from a report of either kind.
fn hear(experience: &mut Experience, path: &Path) -> Result<(), Failure> {
    let name = path.display().to_string();
    let failed = |why: String| Failure::usage(anyhow::anyhow!("can't learn from {name}: {why}"));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    if let Ok(report) = serde_json::from_str::<PipeReport>(&text) {
        experience.hear_pipeline(&report, &name);
        return Ok(());
    }
    let report: Report = serde_json::from_str(&text)
        .map_err(|_| failed("it is no JSON that bench --report wrote".into()))?;
    if !experience.hear_bench(&report, &name) {
        return Err(failed("none of its requests was answered".into()));
    }
    Ok(())
}

/// The moments that were asked for.
struct Times {
    begin: Timestamp,
    by: Option<Timestamp>,
    zone: TimeZone,
}

/// When it will be done.
struct Ends {
    p50: Timestamp,
    p95: Timestamp,
    fits: Option<bool>,
}

impl WhenFlags {
    fn times(&self, now: Timestamp) -> Result<Times, Failure> {
        let zone = plan::zone(self.time_zone.as_deref()).map_err(Failure::usage)?;
        let begin = self.start.map_or(now, |start| start.after(now, &zone));
        let by = self.finish_by.map(|by| by.after(begin, &zone));
        if by.is_some_and(|by| by <= begin) {
            let message = "--finish-by is before it begins";
            return Err(Failure::usage(anyhow::anyhow!(message)));
        }
        Ok(Times { begin, by, zone })
    }
}

impl Times {
    fn ends(&self, forecast: &Forecast) -> Ends {
        let after = |seconds: f64| {
            let ms = jiff::SignedDuration::from_millis((seconds * 1e3).round() as i64);
            self.begin.saturating_add(ms).unwrap_or(Timestamp::MAX)
        };
        let (p50, p95) = (after(forecast.seconds.p50), after(forecast.seconds.p95));
        Ends { p50, p95, fits: self.by.map(|by| p95 <= by) }
    }

    fn text(&self, ends: &Ends) -> String {
        let at = |time: Timestamp| {
            time.to_zoned_datetime(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
        };
        let (begin, p50, p95) = (at(self.begin), at(ends.p50), at(ends.p95));
        let mut text = format!("\nfrom      {begin}\ndone      {p50} (p50), {p95} (p95)\n");
        if let Some(by) = self.by {
            let spare = (by.as_millisecond() - ends.p95.as_millisecond()) as f64 / 1e3;
            let said = if spare >= 0.0 {
                format!("fits, with {} to spare", duration(spare))
            } else {
                format!("does not fit: {} too late", duration(-spare))
            };
            text += &format!("wanted by {}: {said} (p95)\n", at(by));
        }
        text
    }

    fn json(&self, forecast: &Forecast, ends: &Ends) -> Result<String, Failure> {
        let mut value = serde_json::to_value(forecast).map_err(Failure::unreachable)?;
        value["begin"] = json!(self.begin);
        value["done"] = json!({ "p50": ends.p50, "p95": ends.p95 });
        value["finish_by"] = json!(self.by);
        value["fits"] = json!(ends.fits);
        Ok(value.to_string())
    }
}

fn workers(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=10_000).contains(n));
    number.ok_or_else(|| "a number from 1 to 10000 is wanted".into())
}

fn amount(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "a number from 0 on is wanted".into())
}

fn share(text: &str) -> Result<f64, String> {
    amount(text).ok().filter(|n| *n <= 1.0).ok_or_else(|| "a number from 0 to 1 is wanted".into())
}
