//! `promptmill bench --pipeline`: queue to store, on the configured parts.
//!
//! The embedded queue and store are made anew in a folder of the state directory and removed after: so
//! it is the disk that is used in earnest, and no job of anybody's.

use std::io;

use tempfile::TempDir;

use super::{Args, to_file};
use crate::backends;
use crate::cli::{Exit, Failure, interrupt, print, say};
use crate::config::{self, Config, Deployment};
use bench::Prompts;
use bench::pipeline::{self, Ended, Pipe, PipeError, PipeReport, PipeSetup};
use domain::outcome::Ending;
use queue::QueueError;
use simulator::{self, Simulator};
use store::StoreError;
use worker::Settings;

/// Jobs that are sent where nothing is said.
const JOBS: u64 = 10_000;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pipeline")]
pub(super) struct PipelineFlags {
    /// Measure the whole pipe: --count jobs into the configured queue, through a worker, into the store
    #[arg(long, conflicts_with_all = ["rate", "poisson", "ramp", "sweep", "replay", "warm_up",
        "duration", "retry", "stop_at_error_rate", "max_in_flight", "no_stream", "slo_ttft_ms",
        "slo_tbt_ms", "slo_e2e_ms", "csv", "html"])]
    pub(super) pipeline: bool,
    /// Answer from the built-in simulator, at once: only queue, worker and store are measured
    #[arg(long, requires = "pipeline", conflicts_with_all = ["endpoint", "deployment"])]
    simulate: bool,
}

pub(super) async fn run(args: Args, mut config: Config) -> Result<Exit, Failure> {
    let _simulator = match args.pipeline.simulate {
        true => Some(simulate(&mut config).await?),
        false => None,
    };
    args.choose_deployments(&mut config)?;
    args.output.can_be_written()?;
    let (prompts, requests) = args.pipe_prompts(&config)?;
    let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
    let directory = scratch(&mut config).map_err(Failure::usage)?;
    let backends = backends::open(&config).await?;
    let targets = config.targets().map_err(Failure::usage)?;
    let is_alone = is_embedded(&config) == (true, true);
    let pipe = Pipe {
        queue: backends.queue.clone(),
        store: backends.store.clone(),
        settings: Settings { shared: !is_alone, ..config.worker() },
        prompts,
        jobs: args.count.unwrap_or(JOBS),
        targets,
    };
    let setup = setup(&config, &pipe, requests);
    let quiet = args.output.quiet;
    let measured = pipeline::run(pipe, setup, &stop, &mut |second| {
        if !quiet {
            say(&second.to_string());
        }
    })
    .await;
    backends.queue.close().await;
    let report = measured.map_err(failure)?;
    write(&args, &report)?;
    drop(directory);
    if !is_alone && !quiet {
        say(&format!("its outcomes stay in the store, as batch {}", report.batch));
    }
    Ok(exit(&report))
}

fn failure(error: PipeError) -> Failure {
    let passing = matches!(
        error,
        PipeError::Queue(QueueError::Unavailable(_)) | PipeError::Store(StoreError::Unavailable(_))
    );
    if passing { Failure::unreachable(error) } else { Failure::usage(error) }
}

fn exit(report: &PipeReport) -> Exit {
    let jobs = report.worked.endings.get(&Ending::Succeeded).copied().unwrap_or(0);
    match report.ended {
        Ended::Interrupted => Exit::Interrupted,
        Ended::NoDeployment { .. } => Exit::Usage,
        Ended::Unreachable { .. } => Exit::Unreachable,
        Ended::Complete if jobs == report.setup.jobs => Exit::AllDone,
        Ended::Complete => Exit::SomeFailed,
    }
}

fn write(args: &Args, report: &PipeReport) -> Result<(), Failure> {
    let json = serde_json::to_string(report).map_err(Failure::unreachable)?;
    if let Some(path) = &args.output.report {
        to_file(path, |file| io::Write::write_all(file, json.as_bytes()))?;
    }
    let shown = if args.output.json { json } else { report.to_string() };
    print(shown.trim_end());
    Ok(())
}

impl Args {
    fn choose_deployments(&self, config: &mut Config) -> Result<(), Failure> {
        let name = self.deployment.as_deref();
        if self.at.endpoint.is_some() {
            config.deployments = vec![self.at.deployment(name)];
        } else if let Some(name) = name {
            config.deployments.retain(|deployment| super::has_name(deployment, name));
        }
        if config.deployments.is_empty() {
            let message = "no deployment to call: give --endpoint URL, the --deployment NAME of one \
                           in the configuration, or --simulate";
            return Err(Failure::usage(anyhow::anyhow!(message)));
        }
        if let Some(calls) = self.load.concurrency {
            config.deployments.iter_mut().for_each(|d| d.concurrency = Some(calls));
        }
        Ok(())
    }

    /// Whole answers: nobody looks on while a batch is worked.
    fn pipe_prompts(&self, config: &Config) -> Result<(Prompts, String), Failure> {
        let first = &config.deployments[0];
        let named = [self.model.as_ref(), first.model.as_ref(), first.models.first()];
        let model = named.into_iter().flatten().next().or(first.deployment.as_ref()).cloned();
        let model = model.or_else(|| self.requests.prompts.is_some().then(String::new));
        let model = model.ok_or_else(|| {
            let message = "say which model is asked: --deployment or --model NAME";
            Failure::usage(anyhow::anyhow!(message))
        })?;
        let requests = match &self.requests.prompts {
            Some(path) => format!("prompts of {}", path.display()),
            None => self.requests.shape().to_string(),
        };
        Ok((self.prompts(config, &model)?, requests))
    }
}

/// The simulator instead of all deployments; it has no limit and no latency.
async fn simulate(config: &mut Config) -> Result<Simulator, Failure> {
    let settings = simulator::Settings { ledger_samples: false, ..simulator::Settings::default() };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = simulator::start(address, settings).await.map_err(Failure::unreachable)?;
    config.deployments = vec![Deployment {
        name: Some("simulator".into()),
        endpoint: format!("http://{}/openai/v1", simulator.addr()),
        models: vec!["gpt-4.1-mini".into()],
        ..Deployment::default()
    }];
    Ok(simulator)
}

/// Whether the queue and the store are in the state directory.
fn is_embedded(config: &Config) -> (bool, bool) {
    let queue = matches!(config.queue, config::Queue::Local);
    (queue, matches!(config.store, config::Store::Local))
}

/// A new state directory inside of the configured one, where there is need of one.
fn scratch(config: &mut Config) -> io::Result<Option<TempDir>> {
    if is_embedded(config) == (false, false) {
        return Ok(None);
    }
    std::fs::create_dir_all(&config.state.dir)?;
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(&config.state.dir)?;
    config.state.dir = directory.path().to_owned();
    Ok(Some(directory))
}

fn setup(config: &Config, pipe: &Pipe, requests: String) -> PipeSetup {
    let embedded = || {
        let parent = config.state.dir.parent().unwrap_or(&config.state.dir);
        format!("embedded, in {}", parent.display())
    };
    PipeSetup {
        queue: match &config.queue {
            config::Queue::Local => embedded(),
            config::Queue::ServiceBus(settings) => format!("Service Bus, '{}'", settings.queue),
        },
        store: match &config.store {
            config::Store::Local => embedded(),
            config::Store::Cosmos(settings) => format!("Cosmos DB, '{}'", settings.database),
        },
        deployments: pipe.targets.iter().map(|target| target.member.name.clone()).collect(),
        requests,
        jobs: pipe.jobs,
        calls: pipe.targets.iter().map(|target| target.member.limits.concurrency).sum(),
    }
}
