//! `promptmill bench`: measures a deployment under load, and compares two measurements.

mod flags;
mod pipeline;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::Serialize;

use flags::{LoadFlags, OutputFlags, RequestFlags, RetryFlag, seconds, share};

use super::endpoint::EndpointFlags;
use super::error_class::write_error;
use super::{CommandError, ExitStatus, interrupt, print, say};
use crate::config::Config;
use bench::load_shapes::LoadShape;
use bench::report::{BenchReport, BenchSetup, BenchStopReason};
use bench::{
    Bench, LoadPhase, PromptGenerator, PromptStyle, RequestSample, RetryPolicy, compare, sweep,
    trace,
};
use intake::{self, InputSource};
use worker::WorkerTarget;

/// Limit of recorded prompts in memory; more are of no use to a benchmark.
const MAX_RECORDED_PROMPTS: usize = 10_000;

/// Measure a deployment: tokens a minute, latency, time to first token, throttling
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 measured, 1 stopped at the error rate, 2 usage or configuration, \
                  3 out of reach, 4 a report can't be written, 130 interrupted.\n\
                  docs/bench.md has the method and the definitions."
)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,
    #[command(flatten)]
    endpoint_flags: EndpointFlags,
    /// Deployment name; without --endpoint, one of the configuration
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
    /// Model name in requests, if it is not the deployment's
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Warm-up before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    warm_up: Duration,
    /// Measured time of each phase, in seconds [default: 60, or until --count or a replay ends it]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Number of measured requests in each phase
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Retries after 429s and transient errors
    #[arg(long, value_enum, default_value_t = RetryFlag::None)]
    retry: RetryFlag,
    /// Stop if over this share of requests failed in ten seconds; 429s do not count, 1 never stops
    #[arg(long, value_name = "0..1", default_value = "0.5", value_parser = share)]
    stop_at_error_rate: f64,
    /// Limit of requests in flight at a constant, Poisson, ramp or replay load
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_in_flight: usize,
    /// Seed of arrivals and sizes
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    pipeline: pipeline::PipelineFlags,
    #[command(flatten)]
    load: LoadFlags,
    #[command(flatten)]
    requests: RequestFlags,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Debug, clap::Subcommand)]
enum BenchCommand {
    /// Show the figures of two reports that differ by more than chance
    Compare {
        /// First report
        a: PathBuf,
        /// Second report
        b: PathBuf,
        /// Print as JSON on standard output
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(args: BenchArgs, config: Config) -> Result<ExitStatus, CommandError> {
    if let Some(BenchCommand::Compare { a, b, json }) = &args.command {
        return compare_reports(a, b, *json);
    }
    if args.pipeline.pipeline {
        return pipeline::run(args, config).await;
    }
    let phases = args.phases()?;
    let (target, model) = args.target(config.clone())?;
    let prompts = args.prompts(&config, &model)?;
    let setup = args.setup(&target, &model, &phases);
    args.output.check_writable()?;
    let bench = Bench {
        client: target.client,
        prompts: Mutex::new(prompts),
        retry: match args.retry {
            RetryFlag::None => RetryPolicy::None,
            RetryFlag::Exponential => RetryPolicy::Exponential,
        },
        max_in_flight: args.max_in_flight.max(1),
        slo: args.requests.slo(),
        stop_at_error_rate: args.stop_at_error_rate,
        seed: args.seed,
    };
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let quiet = args.output.quiet;
    let several = phases.len() > 1;
    let report = sweep::run(bench, setup, &phases, &stop, &mut |phase, second| {
        if !quiet {
            let level = if several { format!("{}: ", phase.load) } else { String::new() };
            say(&format!("{level}{second}"));
        }
    })
    .await;
    args.output.write(&report)?;
    Ok(exit_status(&report))
}

fn exit_status(report: &BenchReport) -> ExitStatus {
    match &report.ended {
        BenchStopReason::Interrupted => ExitStatus::Interrupted,
        BenchStopReason::Misconfigured { .. } => ExitStatus::Usage,
        BenchStopReason::ErrorRate { last, .. } if last == RequestSample::UNREACHABLE => {
            ExitStatus::Unreachable
        }
        BenchStopReason::ErrorRate { .. } => ExitStatus::SomeFailed,
        BenchStopReason::Complete => ExitStatus::AllDone,
    }
}

impl BenchArgs {
    fn phases(&self) -> Result<Vec<LoadPhase>, CommandError> {
        let flags = &self.load;
        let default =
            (self.count.is_none() && flags.replay.is_none()).then(|| Duration::from_secs(60));
        let duration = self.duration.or(default);
        let loads = match flags {
            LoadFlags { rate: Some(rate), .. } => vec![LoadShape::Constant { rate: *rate }],
            LoadFlags { poisson: Some(rate), .. } => vec![LoadShape::Poisson { rate: *rate }],
            LoadFlags { ramp: Some((from, to)), .. } => {
                let span = duration.ok_or_else(|| {
                    CommandError::usage_text("--ramp needs a --duration to grow over")
                })?;
                vec![LoadShape::Ramp { from: *from, to: *to, hold: self.warm_up, span }]
            }
            LoadFlags { replay: Some(path), .. } => {
                vec![LoadShape::Replay(trace::read(path).map_err(CommandError::usage)?.into())]
            }
            LoadFlags { sweep: Some((from, to)), .. } => {
                sweep::levels(*from, *to).into_iter().map(LoadShape::Concurrency).collect()
            }
            _ => vec![LoadShape::Concurrency(flags.concurrency.unwrap_or(8))],
        };
        // A recording has no warm-up part.
        let warm_up = if flags.replay.is_some() { Duration::ZERO } else { self.warm_up };
        let phase = |load| LoadPhase { load, warm_up, duration, count: self.count };
        Ok(loads.into_iter().map(phase).collect())
    }

    /// Returns the deployment to call, and the model that requests name.
    fn target(&self, mut config: Config) -> Result<(WorkerTarget, String), CommandError> {
        let name = self.deployment.as_deref();
        let usage = |message: String| CommandError::usage_text(message);
        if self.endpoint_flags.endpoint.is_some() {
            config.deployments = vec![self.endpoint_flags.deployment(name)];
        } else if let Some(name) = name {
            let named = |d: &_| has_name(d, name);
            config.deployments.retain(named);
            config.deployments.truncate(1);
        }
        if config.deployments.len() != 1 {
            return Err(usage(
                "no deployment to measure: give --endpoint URL and --deployment NAME, or the \
                 --deployment NAME of one in the configuration"
                    .to_owned(),
            ));
        }
        let deployment = config.deployments[0].deployment.clone();
        let mut targets = config.targets()?;
        let target = targets.remove(0);
        let model = self.model.clone().or(target.member.models.first().cloned()).or(deployment);
        let model = match (model, &self.requests.prompts) {
            (Some(model), _) => model,
            (None, Some(_)) => String::new(),
            (None, None) => {
                return Err(usage("name the model to call: --deployment or --model NAME".into()));
            }
        };
        Ok((target, model))
    }

    fn prompts(&self, config: &Config, model: &str) -> Result<PromptGenerator, CommandError> {
        let flags = &self.requests;
        let style = PromptStyle {
            model: model.to_owned(),
            stream: !flags.no_stream && !self.pipeline.pipeline,
            cacheable: flags.cacheable,
            limit_field: flags.limit_field.clone(),
        };
        let Some(path) = &flags.prompts else {
            return Ok(PromptGenerator::generated(flags.shape(), style, self.seed));
        };
        let source = InputSource::open(path, &std::env::temp_dir())?;
        let mut reading = config.reading();
        reading.models = None;
        if !model.is_empty() {
            reading.default_model = Some(model.to_owned());
        }
        let batch = "bench".parse().map_err(CommandError::usage)?;
        let jobs = intake::sample(&source, &reading, &batch, MAX_RECORDED_PROMPTS);
        Ok(PromptGenerator::recorded(&jobs.map_err(CommandError::usage)?, style, self.seed))
    }

    fn setup(&self, target: &WorkerTarget, model: &str, phases: &[LoadPhase]) -> BenchSetup {
        let flags = &self.requests;
        let requests = match (&flags.prompts, phases) {
            (Some(path), _) => format!("prompts of {}", path.display()),
            (None, [LoadPhase { load: LoadShape::Replay(_), .. }]) => {
                "tokens as recorded".to_owned()
            }
            (None, _) => flags.shape().to_string(),
        };
        BenchSetup {
            deployment: self.deployment.clone().unwrap_or_else(|| {
                if model.is_empty() { target.member.name.clone() } else { model.to_owned() }
            }),
            endpoint: target.client.base().to_string(),
            requests,
            streaming: !flags.no_stream,
            cacheable: flags.cacheable,
            retry: match self.retry {
                RetryFlag::None => "none".to_owned(),
                RetryFlag::Exponential => "exponential".to_owned(),
            },
            seed: self.seed,
        }
    }
}

fn has_name(deployment: &crate::config::DeploymentConfig, name: &str) -> bool {
    deployment.name.as_deref() == Some(name) || deployment.deployment.as_deref() == Some(name)
}

impl OutputFlags {
    /// Creates the files, so that one that can't be written fails before anything is paid for.
    fn check_writable(&self) -> Result<(), CommandError> {
        let paths = [&self.report, &self.csv, &self.html];
        paths.into_iter().flatten().try_for_each(|path| create(path).map(drop))
    }

    fn write(&self, report: &BenchReport) -> Result<(), CommandError> {
        let json = serde_json::to_string(report)?;
        if let Some(path) = &self.report {
            write_file(path, |file| file.write_all(json.as_bytes()))?;
        }
        if let Some(path) = &self.html {
            write_file(path, |file| file.write_all(report.to_html().as_bytes()))?;
        }
        if let Some(path) = &self.csv {
            write_file(path, |file| report.write_csv(file))?;
        }
        let shown = if self.json { json } else { report.to_string() };
        print(shown.trim_end())?;
        Ok(())
    }
}

fn create(path: &Path) -> Result<File, CommandError> {
    File::create(path).map_err(|error| write_error(path, error))
}

fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), CommandError> {
    let mut file = BufWriter::new(create(path)?);
    write(&mut file).and_then(|()| file.flush()).map_err(|error| write_error(path, error))
}

fn compare_reports(a: &Path, b: &Path, json: bool) -> Result<ExitStatus, CommandError> {
    let read = |path: &Path| -> Result<BenchReport, CommandError> {
        let failed = |error: anyhow::Error| {
            CommandError::usage(error.context(format!("{} is no report of bench", path.display())))
        };
        let text = std::fs::read(path).map_err(|error| failed(error.into()))?;
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    };
    let phases = compare::compare(&read(a)?, &read(b)?);
    if json {
        #[derive(Serialize)]
        struct CompareOutput<'a> {
            phases: &'a [compare::PhaseComparison],
        }
        let out = serde_json::to_string(&CompareOutput { phases: &phases })?;
        print(&out)?;
    } else {
        phases.iter().try_for_each(|phase| print(&phase.to_string()))?;
        print(
            "Intervals by bootstrap; p by Mann-Whitney (as a whole) and two proportions (shares). \
             Each is judged at 5 %: of twenty figures that are the same, one is expected to differ.",
        )?;
    }
    Ok(ExitStatus::AllDone)
}
