//! `promptmill bench`: what a deployment gives under load, and whether two measurements differ.

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
use super::{Exit, Failure, interrupt, print, say};
use crate::config::Config;
use bench::report::{Ended, Report, Setup};
use bench::shapes::Load;
use bench::{Bench, Phase, Prompts, Retry, Sample, Style, compare, sweep, trace};
use intake::{self, Source};
use worker::Target;

/// Recorded prompts that are held in memory; more are of no use to a benchmark.
const MOST_PROMPTS: usize = 10_000;

/// Measure what a deployment gives: tokens a minute, latency, time to first token, throttling
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 measured, 1 stopped at the error rate, 2 usage or configuration, \
                  3 out of reach, 130 interrupted.\n\
                  docs/bench.md has the method and the definitions."
)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    at: EndpointFlags,
    /// The deployment's name; without --endpoint, one of the configuration
    #[arg(long, value_name = "NAME")]
    deployment: Option<String>,
    /// The model's name in requests, where it is not the deployment's
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Load before measuring, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    warm_up: Duration,
    /// Measured time of each phase, in seconds [default: 60, or until --count or a replay ends it]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// Measured requests of each phase
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// What is done about 429s and passing faults
    #[arg(long, value_enum, default_value_t = RetryFlag::None)]
    retry: RetryFlag,
    /// Stop when this share of requests failed in ten seconds; 429s do not count, 1 never stops
    #[arg(long, value_name = "0..1", default_value = "0.5", value_parser = share)]
    stop_at_error_rate: f64,
    /// Requests that may be in flight at a constant, Poisson, ramp or replay load
    #[arg(long, value_name = "N", default_value_t = 1000)]
    max_in_flight: usize,
    /// Decides arrivals and sizes
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
enum Command {
    /// Say what differs between two reports by more than chance
    Compare {
        a: PathBuf,
        b: PathBuf,
        /// Print as JSON on standard output
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(args: Args, config: Config) -> Result<Exit, Failure> {
    if let Some(Command::Compare { a, b, json }) = &args.command {
        return compared(a, b, *json);
    }
    if args.pipeline.pipeline {
        return pipeline::run(args, config).await;
    }
    let phases = args.phases()?;
    let (target, model) = args.target(config.clone())?;
    let prompts = args.prompts(&config, &model)?;
    let setup = args.setup(&target, &model, &phases);
    args.output.can_be_written()?;
    let bench = Bench {
        client: target.client,
        prompts: Mutex::new(prompts),
        retry: match args.retry {
            RetryFlag::None => Retry::None,
            RetryFlag::Exponential => Retry::Exponential,
        },
        max_in_flight: args.max_in_flight.max(1),
        slo: args.requests.slo(),
        stop_at_error_rate: args.stop_at_error_rate,
        seed: args.seed,
    };
    let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
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
    Ok(exit(&report))
}

fn exit(report: &Report) -> Exit {
    match &report.ended {
        Ended::Interrupted => Exit::Interrupted,
        Ended::Misconfigured { .. } => Exit::Usage,
        Ended::ErrorRate { last, .. } if last == Sample::UNREACHABLE => Exit::Unreachable,
        Ended::ErrorRate { .. } => Exit::SomeFailed,
        Ended::Complete => Exit::AllDone,
    }
}

impl Args {
    fn phases(&self) -> Result<Vec<Phase>, Failure> {
        let flags = &self.load;
        let default =
            (self.count.is_none() && flags.replay.is_none()).then(|| Duration::from_secs(60));
        let duration = self.duration.or(default);
        let loads = match flags {
            LoadFlags { rate: Some(rate), .. } => vec![Load::Constant { rate: *rate }],
            LoadFlags { poisson: Some(rate), .. } => vec![Load::Poisson { rate: *rate }],
            LoadFlags { ramp: Some((from, to)), .. } => {
                let span = duration.ok_or_else(|| {
                    Failure::usage(anyhow::anyhow!("--ramp needs a --duration to grow over"))
                })?;
                vec![Load::Ramp { from: *from, to: *to, hold: self.warm_up, span }]
            }
            LoadFlags { replay: Some(path), .. } => {
                vec![Load::Replay(trace::read(path).map_err(Failure::usage)?.into())]
            }
            LoadFlags { sweep: Some((from, to)), .. } => {
                sweep::levels(*from, *to).into_iter().map(Load::Concurrency).collect()
            }
            _ => vec![Load::Concurrency(flags.concurrency.unwrap_or(8))],
        };
        // A recording has no part of it that is only for warming up.
        let warm_up = if flags.replay.is_some() { Duration::ZERO } else { self.warm_up };
        let phase = |load| Phase { load, warm_up, duration, count: self.count };
        Ok(loads.into_iter().map(phase).collect())
    }

    /// The deployment to call, and the model that requests name.
    fn target(&self, mut config: Config) -> Result<(Target, String), Failure> {
        let name = self.deployment.as_deref();
        let usage = |message: String| Failure::usage(anyhow::anyhow!(message));
        if self.at.endpoint.is_some() {
            config.deployments = vec![self.at.deployment(name)];
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
        let mut targets = config.targets().map_err(Failure::usage)?;
        let target = targets.remove(0);
        let model = self.model.clone().or(target.member.models.first().cloned()).or(deployment);
        let model = match (model, &self.requests.prompts) {
            (Some(model), _) => model,
            (None, Some(_)) => String::new(),
            (None, None) => {
                return Err(usage("say which model is asked: --deployment or --model NAME".into()));
            }
        };
        Ok((target, model))
    }

    fn prompts(&self, config: &Config, model: &str) -> Result<Prompts, Failure> {
        let flags = &self.requests;
        let style = Style {
            model: model.to_owned(),
            stream: !flags.no_stream && !self.pipeline.pipeline,
            cacheable: flags.cacheable,
            limit_field: flags.limit_field.clone(),
        };
        let Some(path) = &flags.prompts else {
            return Ok(Prompts::made(flags.shape(), style, self.seed));
        };
        let source = Source::open(path, &std::env::temp_dir()).map_err(Failure::usage)?;
        let mut reading = config.reading();
        reading.models = None;
        if !model.is_empty() {
            reading.default_model = Some(model.to_owned());
        }
        let batch = "bench".parse().map_err(Failure::usage)?;
        let jobs = intake::sample(&source, &reading, &batch, MOST_PROMPTS);
        Ok(Prompts::recorded(&jobs.map_err(Failure::usage)?, style, self.seed))
    }

    fn setup(&self, target: &Target, model: &str, phases: &[Phase]) -> Setup {
        let flags = &self.requests;
        let requests = match (&flags.prompts, phases) {
            (Some(path), _) => format!("prompts of {}", path.display()),
            (None, [Phase { load: Load::Replay(_), .. }]) => "tokens as recorded".to_owned(),
            (None, _) => flags.shape().to_string(),
        };
        Setup {
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

fn has_name(deployment: &crate::config::Deployment, name: &str) -> bool {
    deployment.name.as_deref() == Some(name) || deployment.deployment.as_deref() == Some(name)
}

impl OutputFlags {
    /// A path that can't be written is told before anything is paid for.
    fn can_be_written(&self) -> Result<(), Failure> {
        let paths = [&self.report, &self.csv, &self.html];
        paths.into_iter().flatten().try_for_each(|path| create(path).map(drop))
    }

    fn write(&self, report: &Report) -> Result<(), Failure> {
        let json = serde_json::to_string(report).map_err(Failure::unreachable)?;
        if let Some(path) = &self.report {
            to_file(path, |file| file.write_all(json.as_bytes()))?;
        }
        if let Some(path) = &self.html {
            to_file(path, |file| file.write_all(report.to_html().as_bytes()))?;
        }
        if let Some(path) = &self.csv {
            to_file(path, |file| report.write_csv(file))?;
        }
        let shown = if self.json { json } else { report.to_string() };
        print(shown.trim_end());
        Ok(())
    }
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|error| cant_write(path, error))
}

fn to_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut file = BufWriter::new(create(path)?);
    write(&mut file).and_then(|()| file.flush()).map_err(|error| cant_write(path, error))
}

fn cant_write(path: &Path, error: io::Error) -> Failure {
    Failure::usage(anyhow::Error::new(error).context(format!("can't write {}", path.display())))
}

fn compared(a: &Path, b: &Path, json: bool) -> Result<Exit, Failure> {
    let read = |path: &Path| -> Result<Report, Failure> {
        let failed = |error: anyhow::Error| {
            Failure::usage(error.context(format!("{} is no report of bench", path.display())))
        };
        let text = std::fs::read(path).map_err(|error| failed(error.into()))?;
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    };
    let phases = compare::compare(&read(a)?, &read(b)?);
    if json {
        #[derive(Serialize)]
        struct Out<'a> {
            phases: &'a [compare::Compared],
        }
        let out = serde_json::to_string(&Out { phases: &phases }).map_err(Failure::unreachable)?;
        print(&out);
    } else {
        phases.iter().for_each(|phase| print(&phase.to_string()));
        print(
            "Intervals by bootstrap; p by Mann-Whitney (as a whole) and two proportions (shares). \
             Each is judged at 5 %: of twenty figures that are the same, one is expected to differ.",
        );
    }
    Ok(Exit::AllDone)
}
