//! `promptmill bench --pipeline`: measures queue to store, on the configured backends.
//!
//! The embedded queue and store are created in a folder of the state directory and removed after:
//! this measures the real disk and touches no existing job.

use std::io;

use tempfile::TempDir;

use super::{BenchArgs, write_file};
use crate::backends;
use crate::cli::exit::ErrorClass;
use crate::cli::{CommandError, ExitStatus, interrupt, print, say};
use crate::config::{self, Config, DeploymentConfig};
use bench::PromptGenerator;
use bench::pipeline::{
    self, PipelineBench, PipelineError, PipelineReport, PipelineSetup, PipelineStopReason,
};
use domain::outcome::OutcomeStatus;
use simulator::{self, Simulator};
use worker::WorkerSettings;

/// Default number of jobs.
const DEFAULT_JOBS: u64 = 10_000;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pipeline")]
pub(super) struct PipelineFlags {
    /// Measure the pipeline: --count jobs into the configured queue, through a worker, to the store
    #[arg(long, conflicts_with_all = ["rate", "poisson", "ramp", "sweep", "replay", "warm_up",
        "duration", "retry", "stop_at_error_rate", "max_in_flight", "no_stream", "slo_ttft_ms",
        "slo_tbt_ms", "slo_e2e_ms", "csv", "html"])]
    pub(super) pipeline: bool,
    /// Answer from the built-in simulator, at once: only queue, worker and store are measured
    #[arg(long, requires = "pipeline", conflicts_with_all = ["endpoint", "deployment"])]
    simulate: bool,
}

pub(super) async fn run(args: BenchArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    let _simulator = match args.pipeline.simulate {
        true => Some(simulate(&mut config).await?),
        false => None,
    };
    args.choose_deployments(&mut config)?;
    args.output.check_writable()?;
    let (prompts, requests) = args.pipe_prompts(&config)?;
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let directory = scratch_state(&mut config).map_err(CommandError::usage)?;
    let backends = backends::open(&config).await?;
    let targets = config.targets()?;
    let is_alone = embedded_backends(&config) == (true, true);
    let pipe = PipelineBench {
        queue: backends.queue.clone(),
        store: backends.store.clone(),
        settings: WorkerSettings { shared: !is_alone, ..config.worker_settings() },
        prompts,
        jobs: args.count.unwrap_or(DEFAULT_JOBS),
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
    let report = measured?;
    write(&args, &report)?;
    drop(directory);
    if !is_alone && !quiet {
        say(&format!("its outcomes stay in the store, as batch {}", report.batch));
    }
    Ok(exit_status(&report))
}

impl ErrorClass for PipelineError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Occupied { .. } => ExitStatus::Usage,
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Worker(error) => error.status(),
            Self::Control(error) => error.status(),
        }
    }
}

fn exit_status(report: &PipelineReport) -> ExitStatus {
    let jobs = report.worked.endings.get(&OutcomeStatus::Succeeded).copied().unwrap_or(0);
    match report.ended {
        PipelineStopReason::Interrupted => ExitStatus::Interrupted,
        PipelineStopReason::NoDeployment { .. } => ExitStatus::Usage,
        PipelineStopReason::Unreachable { .. } => ExitStatus::Unreachable,
        PipelineStopReason::Complete if jobs == report.setup.jobs => ExitStatus::AllDone,
        PipelineStopReason::Complete => ExitStatus::SomeFailed,
    }
}

fn write(args: &BenchArgs, report: &PipelineReport) -> Result<(), CommandError> {
    let json = serde_json::to_string(report)?;
    if let Some(path) = &args.output.report {
        write_file(path, |file| io::Write::write_all(file, json.as_bytes()))?;
    }
    let shown = if args.output.json { json } else { report.to_string() };
    print(shown.trim_end())?;
    Ok(())
}

impl BenchArgs {
    fn choose_deployments(&self, config: &mut Config) -> Result<(), CommandError> {
        let name = self.deployment.as_deref();
        if self.endpoint_flags.endpoint.is_some() {
            config.deployments = vec![self.endpoint_flags.deployment(name)];
        } else if let Some(name) = name {
            config.deployments.retain(|deployment| super::has_name(deployment, name));
        }
        if config.deployments.is_empty() {
            let message = "no deployment to call: give --endpoint URL, the --deployment NAME of one \
                           in the configuration, or --simulate";
            return Err(CommandError::usage_text(message));
        }
        if let Some(calls) = self.load.concurrency {
            config.deployments.iter_mut().for_each(|d| d.concurrency = Some(calls));
        }
        Ok(())
    }

    /// Builds prompts without streaming: nobody watches while a batch is worked.
    fn pipe_prompts(&self, config: &Config) -> Result<(PromptGenerator, String), CommandError> {
        let first = &config.deployments[0];
        let named = [self.model.as_ref(), first.model.as_ref(), first.models.first()];
        let model = named.into_iter().flatten().next().or(first.deployment.as_ref()).cloned();
        let model = model.or_else(|| self.requests.prompts.is_some().then(String::new));
        let model = model.ok_or_else(|| {
            let message = "name the model to call: --deployment or --model NAME";
            CommandError::usage_text(message)
        })?;
        let requests = match &self.requests.prompts {
            Some(path) => format!("prompts of {}", path.display()),
            None => self.requests.shape().to_string(),
        };
        Ok((self.prompts(config, &model)?, requests))
    }
}

/// Starts the simulator in place of all deployments, without limit and latency.
async fn simulate(config: &mut Config) -> Result<Simulator, CommandError> {
    let settings = simulator::SimulatorSettings {
        ledger_samples: false,
        ..simulator::SimulatorSettings::default()
    };
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = simulator::start(address, settings).await.map_err(CommandError::internal)?;
    config.deployments = vec![DeploymentConfig {
        name: Some("simulator".into()),
        endpoint: format!("http://{}/openai/v1", simulator.addr()),
        models: vec!["gpt-4.1-mini".into()],
        ..DeploymentConfig::default()
    }];
    Ok(simulator)
}

/// Returns whether the queue, and whether the store, is in the state directory.
fn embedded_backends(config: &Config) -> (bool, bool) {
    let queue = matches!(config.queue, config::QueueBackend::Local);
    (queue, matches!(config.store, config::StoreBackend::Local))
}

/// Creates a state directory inside the configured one, if a backend is embedded.
fn scratch_state(config: &mut Config) -> io::Result<Option<TempDir>> {
    if embedded_backends(config) == (false, false) {
        return Ok(None);
    }
    std::fs::create_dir_all(&config.state.dir)?;
    let directory = tempfile::Builder::new().prefix("bench-").tempdir_in(&config.state.dir)?;
    config.state.dir = directory.path().to_owned();
    Ok(Some(directory))
}

fn setup(config: &Config, pipe: &PipelineBench, requests: String) -> PipelineSetup {
    let embedded = || {
        let parent = config.state.dir.parent().unwrap_or(&config.state.dir);
        format!("embedded, in {}", parent.display())
    };
    PipelineSetup {
        queue: match &config.queue {
            config::QueueBackend::Local => embedded(),
            #[cfg(feature = "azure")]
            config::QueueBackend::ServiceBus(settings) => {
                format!("Service Bus, '{}'", settings.queue)
            }
        },
        store: match &config.store {
            config::StoreBackend::Local => embedded(),
            #[cfg(feature = "azure")]
            config::StoreBackend::Cosmos(settings) => format!("Cosmos DB, '{}'", settings.database),
        },
        deployments: pipe.targets.iter().map(|target| target.member.name.clone()).collect(),
        requests,
        jobs: pipe.jobs,
        calls: pipe.targets.iter().map(|target| target.member.limits.concurrency).sum(),
    }
}
