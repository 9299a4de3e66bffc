//! `promptmill plan`: tokens, cost and time of an input, before anything is spent.

use std::path::{Path, PathBuf};

use clap::ValueHint;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::count_bar::CountBar;
#[cfg(feature = "documents")]
use super::documents::write_prompts;
use super::endpoint::LimitFlags;
use super::input::InputFiles;
use super::{CommandError, ExitStatus, print, scratch_dir};
use crate::backends;
use crate::config::{Config, DeploymentConfig};
use bench::pipeline::PipelineReport;
use bench::report::BenchReport;
#[cfg(not(feature = "documents"))]
use domain::build_feature::MissingFeatureError;
use domain::job::BatchId;
use domain::prices::Prices;
use plan::{
    self, AssumedLength, CallProfile, DueTime, PlanError, PlanForecast, PlanInputs, duration,
};

/// Forecast tokens, cost and time of files of prompts, before anything is spent
#[derive(Debug, clap::Args)]
#[command(after_help = "Nothing is sent to anybody. docs/plan.md has the method and its limits.\n\
                  Exit codes: 0 planned, 1 some lines are not valid jobs or, with --strict, it does not fit \
                  --finish-by, 2 usage or configuration, 3 out of reach, 4 no room for temporary files.")]
pub(super) struct PlanArgs {
    /// Batch files (JSONL, also .gz and .zst); - is standard input
    #[arg(required_unless_present = "recipe", value_hint = ValueHint::FilePath)]
    inputs: Vec<PathBuf>,
    /// Plan this recipe's prompts about its documents instead, as `documents` would send them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "inputs")]
    recipe: Option<PathBuf>,
    /// Location of the recipe's documents [default: documents.source of the configuration]
    #[arg(long, value_name = "PLACE", value_hint = ValueHint::DirPath, requires = "recipe")]
    source: Option<String>,
    /// Model for lines that name none
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    limits: LimitFlags,
    /// Number of workers on the queue, each with the configured calls in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = workers)]
    workers: usize,
    #[command(flatten)]
    assumptions: AssumptionFlags,
    #[command(flatten)]
    schedule: ScheduleFlags,
    /// Print the forecast as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Assumptions about the service")]
struct AssumptionFlags {
    /// Take latencies and answer lengths from this batch in the store
    #[arg(long, value_name = "BATCH")]
    like: Vec<BatchId>,
    /// Take latencies from this report of bench; of bench --pipeline: the rate of one worker
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    bench: Vec<PathBuf>,
    /// Time to first token in milliseconds, if nothing was learnt [default: 500]
    #[arg(long, value_name = "MS", value_parser = amount)]
    latency_ms: Option<f64>,
    /// Milliseconds per answer token, if nothing was learnt [default: 20]
    #[arg(long, value_name = "MS", value_parser = amount)]
    token_ms: Option<f64>,
    /// Spread of calls around that: sigma of a lognormal distribution [default: 0.3]
    #[arg(long, value_name = "SIGMA", value_parser = amount)]
    spread: Option<f64>,
    /// Answer length as a share of the longest allowed, if nothing was learnt [default: 0.5]
    #[arg(long, value_name = "0..1", value_parser = share, conflicts_with = "output_tokens")]
    output_share: Option<f64>,
    /// Answer length in tokens, if nothing was learnt
    #[arg(long, value_name = "N")]
    output_tokens: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "When")]
struct ScheduleFlags {
    /// Start: a time of day, or a timestamp with its zone [default: now]
    #[arg(long, value_name = "TIME")]
    start: Option<DueTime>,
    /// Say whether it will be done by this time
    #[arg(long, value_name = "TIME")]
    finish_by: Option<DueTime>,
    /// Time zone of times of day, such as Asia/Tokyo [default: the machine's]
    #[arg(long, value_name = "NAME")]
    time_zone: Option<String>,
    /// Exit with 1 if it does not fit --finish-by
    #[arg(long, requires = "finish_by")]
    strict: bool,
}

pub(super) async fn run(args: PlanArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    config.input.model = args.model.clone().or(config.input.model);
    args.apply_limits(&mut config)?;
    let times = args.schedule.times(Timestamp::now())?;
    let prices = Prices::load(config.prices.file.as_deref())?;
    let experience = args.assumptions.experience(&config).await?;
    let scratch = scratch_dir()?;
    let inputs = match &args.recipe {
        Some(recipe) => {
            let file = scratch.path().join("prompts.jsonl");
            write_prompts(&config, recipe, args.source.as_deref(), &file).await?;
            vec![file]
        }
        None => args.inputs.clone(),
    };
    let input = InputFiles::read(&inputs, config.reading(), scratch.path()).await?;
    input.say_faults();
    let faults = input.checked.faults;
    if input.checked.jobs == 0 {
        let message = "no line of the input is a valid job: nothing to plan";
        return Err(CommandError::usage_text(message));
    }
    let workers = args.workers;
    let (members, worker) = (config.members()?, config.worker_settings());
    let planning = tokio::task::spawn_blocking(move || {
        let shown = CountBar::start("counted", input.checked.jobs);
        let InputFiles { sources, reading, checked } = &input;
        let counted = plan::count(sources, reading, checked, &mut |jobs| shown.set(jobs));
        drop(shown);
        let circumstances = PlanInputs {
            members: &members,
            spill_after: worker.spill_after,
            max_held: worker.max_held,
            prices: &prices,
            profile: &experience,
            workers,
            begin: times.begin,
        };
        plan::forecast_counted(&counted?, &circumstances).map(|forecast| (forecast, times))
    });
    let planned: Result<_, PlanError> = planning.await?;
    let (forecast, times) = planned?;
    let ends = times.forecast_times(&forecast);
    if args.json {
        print(&times.json(&forecast, &ends)?)?;
    } else {
        print(format!("{forecast}{}", times.text(&ends)).trim_end())?;
    }
    let is_late = args.schedule.strict && ends.fits == Some(false);
    Ok(if faults > 0 || is_late { ExitStatus::SomeFailed } else { ExitStatus::AllDone })
}

impl PlanArgs {
    /// Applies the limits to the configured deployment, or to a placeholder if there is none yet.
    fn apply_limits(&self, config: &mut Config) -> Result<(), CommandError> {
        if config.deployments.is_empty() && self.limits.is_given() {
            config.deployments.push(DeploymentConfig {
                name: Some("the deployment".into()),
                endpoint: "https://deployment.invalid".into(),
                ..DeploymentConfig::default()
            });
        }
        self.limits.apply(&mut config.deployments)
    }
}

impl AssumptionFlags {
    async fn experience(&self, config: &Config) -> Result<CallProfile, CommandError> {
        let mut experience = CallProfile::default();
        let line = &mut experience.latency.others;
        line.first = self.latency_ms.map_or(line.first, |ms| ms / 1e3);
        line.per_token = self.token_ms.map_or(line.per_token, |ms| ms / 1e3);
        line.spread = self.spread.unwrap_or(line.spread);
        let length = self.output_tokens.map(AssumedLength::Tokens);
        let length = length.or(self.output_share.map(AssumedLength::Share));
        experience.answers.others = length.unwrap_or(experience.answers.others);
        for path in &self.bench {
            learn_from_report(&mut experience, path)?;
        }
        if self.like.is_empty() {
            return Ok(experience);
        }
        let store = backends::open_store(config).await?;
        for batch in &self.like {
            let learnt = plan::learn(&mut experience, store.as_ref(), batch).await;
            if learnt? == 0 {
                let message = format!("batch '{batch}' has no answers to learn from");
                return Err(CommandError::usage_text(message));
            }
        }
        Ok(experience)
    }
}

/// Learns from a report of either kind.
fn learn_from_report(experience: &mut CallProfile, path: &Path) -> Result<(), CommandError> {
    let name = path.display().to_string();
    let failed = |why: String| CommandError::usage_text(format!("can't learn from {name}: {why}"));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    if let Ok(report) = serde_json::from_str::<PipelineReport>(&text) {
        experience.learn_pipeline(&report, &name);
        return Ok(());
    }
    let report: BenchReport = serde_json::from_str(&text)
        .map_err(|_| failed("it is not a report written by bench --report".into()))?;
    if !experience.learn_bench(&report, &name) {
        return Err(failed("none of its requests was answered".into()));
    }
    Ok(())
}

/// Requested start and deadline, and their time zone.
struct PlanTimes {
    begin: Timestamp,
    finish_by: Option<Timestamp>,
    zone: TimeZone,
}

/// Forecast completion, and whether it meets the deadline.
struct ForecastTimes {
    p50: Timestamp,
    p95: Timestamp,
    fits: Option<bool>,
}

impl ScheduleFlags {
    fn times(&self, now: Timestamp) -> Result<PlanTimes, CommandError> {
        let zone = plan::zone(self.time_zone.as_deref()).map_err(CommandError::usage)?;
        let begin = self.start.map_or(now, |start| start.after(now, &zone));
        let by = self.finish_by.map(|by| by.after(begin, &zone));
        if by.is_some_and(|by| by <= begin) {
            let message = "--finish-by is before the start";
            return Err(CommandError::usage_text(message));
        }
        Ok(PlanTimes { begin, finish_by: by, zone })
    }
}

impl PlanTimes {
    fn forecast_times(&self, forecast: &PlanForecast) -> ForecastTimes {
        let after = |seconds: f64| {
            let ms = jiff::SignedDuration::from_millis((seconds * 1e3).round() as i64);
            self.begin.saturating_add(ms).unwrap_or(Timestamp::MAX)
        };
        let (p50, p95) = (after(forecast.seconds.p50), after(forecast.seconds.p95));
        ForecastTimes { p50, p95, fits: self.finish_by.map(|by| p95 <= by) }
    }

    fn text(&self, ends: &ForecastTimes) -> String {
        let at = |time: Timestamp| {
            time.to_zoned_datetime(self.zone.clone()).strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
        };
        let (begin, p50, p95) = (at(self.begin), at(ends.p50), at(ends.p95));
        let mut text = format!("\nfrom      {begin}\ndone      {p50} (p50), {p95} (p95)\n");
        if let Some(by) = self.finish_by {
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

    fn json(&self, forecast: &PlanForecast, ends: &ForecastTimes) -> Result<String, CommandError> {
        let mut value = serde_json::to_value(forecast)?;
        value["begin"] = json!(self.begin);
        value["done"] = json!({ "p50": ends.p50, "p95": ends.p95 });
        value["finish_by"] = json!(self.finish_by);
        value["fits"] = json!(ends.fits);
        Ok(value.to_string())
    }
}

#[cfg(not(feature = "documents"))]
async fn write_prompts(
    _: &Config,
    _: &Path,
    _: Option<&str>,
    _: &Path,
) -> Result<(), CommandError> {
    Err(CommandError::usage(MissingFeatureError { feature: "documents" }))
}

fn workers(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=10_000).contains(n));
    number.ok_or_else(|| "give a number from 1 to 10000".into())
}

fn amount(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "give a number of at least 0".into())
}

fn share(text: &str) -> Result<f64, String> {
    amount(text).ok().filter(|n| *n <= 1.0).ok_or_else(|| "give a number from 0 to 1".into())
}
