//! `promptmill plan`: tokens, cost and time of an input, before anything is spent.

mod assumptions;
mod recipe;
mod schedule;
mod scratch;

use std::path::PathBuf;

use clap::ValueHint;
use jiff::Timestamp;

use self::assumptions::AssumptionFlags;
use self::schedule::ScheduleFlags;
use super::budget::BudgetFlags;
use super::count_bar::CountBar;
use super::endpoint::LimitFlags;
use super::exit::{CommandError, ExitStatus};
use super::input::{InputRequest, InvalidLines, prepare_input};
use super::output::print;
use super::values::workers;
use crate::app::forecast::{self, ForecastOptions};
use crate::config::{Config, DeploymentConfig};
use scratch::scratch_dir;

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

pub(super) async fn run(args: PlanArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    config.input.model = args.model.clone().or(config.input.model);
    args.apply_limits(&mut config)?;
    let times = args.schedule.times(Timestamp::now())?;
    let profile = args.assumptions.profile(&config).await?;
    let scratch = scratch_dir()?;
    let inputs = match &args.recipe {
        Some(recipe) => {
            let file = scratch.path().join("prompts.jsonl");
            recipe::write_prompts(&config, recipe, args.source.as_deref(), &file).await?;
            vec![file]
        }
        None => args.inputs.clone(),
    };
    let (budget, invalid) = (BudgetFlags::default(), InvalidLines::Tell);
    let request = InputRequest { paths: &inputs, batch: None, budget, invalid };
    let input = prepare_input(request, &config, scratch.path()).await?;
    let faults = input.files.report.faults;
    let bar = CountBar::start("counted", input.files.report.jobs);
    let (prices, workers, begin) = (input.prices, args.workers, times.begin);
    let options = ForecastOptions { prices, profile, workers, begin };
    let counted = move |jobs| bar.set(jobs);
    let forecast = forecast::forecast(input.files, &config, options, counted).await?;
    let ends = times.forecast_times(&forecast);
    if args.json {
        print(&times.json(&forecast, &ends)?)?;
    } else {
        print(format!("{forecast}{}", times.text(&ends)).trim_end())?;
    }
    let is_late = args.schedule.strict && ends.fits == Some(false);
    Ok(ExitStatus::of_jobs(faults == 0 && !is_late))
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
