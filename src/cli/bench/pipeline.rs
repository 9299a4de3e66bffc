//! `promptmill bench --pipeline`: measures queue to store, on the configured backends.

use super::args::BenchArgs;
use super::requests;
use crate::app::bench_setup::{BenchBackends, has_name};
use crate::app::simulated;
use crate::cli::exit::{CommandError, ExitStatus};
use crate::cli::output::say;
use crate::cli::{interrupt, worker_end};
use crate::config::{Config, DeploymentConfig};
use bench::PromptGenerator;
use bench::pipeline::{self, PipelineBench, PipelineReport, PipelineStopReason};
use domain::outcome::OutcomeStatus;

/// Default number of jobs.
const DEFAULT_JOBS: u64 = 10_000;

pub(super) async fn run(args: BenchArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    let simulator = match args.pipeline.simulate {
        true => {
            config.deployments = vec![DeploymentConfig {
                name: Some("simulator".into()),
                models: vec!["gpt-4.1-mini".into()],
                ..DeploymentConfig::default()
            }];
            let started = simulated::start(&mut config.deployments[0]).await;
            Some(started.map_err(CommandError::internal)?)
        }
        false => None,
    };
    choose_deployments(&args, &mut config)?;
    args.output.check_writable()?;
    let (prompts, requests) = pipe_prompts(&args, &config)?;
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let bench = BenchBackends::open(&config).await?;
    let targets = config.targets()?;
    let jobs = args.count.unwrap_or(DEFAULT_JOBS);
    let setup = bench.describe(&targets, requests, jobs);
    let pipe = PipelineBench {
        queue: bench.backends.queue.clone(),
        store: bench.backends.store.clone(),
        settings: bench.worker_settings(&config),
        prompts,
        jobs,
        targets,
    };
    let quiet = args.output.quiet;
    let measured = pipeline::run(pipe, setup, &stop, &mut |second| {
        if !quiet {
            say(&second.to_string());
        }
    })
    .await;
    bench.backends.queue.close().await;
    let report = measured?;
    args.output.write_pipeline(&report)?;
    if !bench.is_alone && !quiet {
        say(&format!("its outcomes stay in the store, as batch {}", report.batch));
    }
    drop(simulator);
    Ok(exit_status(&report))
}

fn exit_status(report: &PipelineReport) -> ExitStatus {
    let succeeded = report.worked.endings.get(&OutcomeStatus::Succeeded).copied().unwrap_or(0);
    match &report.ended {
        PipelineStopReason::Complete => ExitStatus::of_jobs(succeeded == report.setup.jobs),
        reason => worker_end::exit_status(&reason.as_exit()),
    }
}

fn choose_deployments(args: &BenchArgs, config: &mut Config) -> Result<(), CommandError> {
    let name = args.deployment.as_deref();
    if args.endpoint_flags.endpoint.is_some() {
        config.deployments = vec![args.endpoint_flags.deployment(name)];
    } else if let Some(name) = name {
        config.deployments.retain(|deployment| has_name(deployment, name));
    }
    if config.deployments.is_empty() {
        let message = "no deployment to call: give --endpoint URL, the --deployment NAME of one \
                       in the configuration, or --simulate";
        return Err(CommandError::usage_text(message));
    }
    if let Some(calls) = args.load.concurrency {
        config.deployments.iter_mut().for_each(|d| d.concurrency = Some(calls));
    }
    Ok(())
}

/// Builds prompts without streaming: nobody watches while a batch is worked.
fn pipe_prompts(
    args: &BenchArgs,
    config: &Config,
) -> Result<(PromptGenerator, String), CommandError> {
    let first = &config.deployments[0];
    let named = [args.model.as_ref(), first.model.as_ref(), first.models.first()];
    let model = named.into_iter().flatten().next().or(first.deployment.as_ref()).cloned();
    let model = model.or_else(|| args.requests.prompts.is_some().then(String::new));
    let model = model.ok_or_else(|| CommandError::usage_text(requests::NO_MODEL))?;
    let requests = match &args.requests.prompts {
        Some(path) => format!("prompts of {}", path.display()),
        None => args.requests.shape().to_string(),
    };
    Ok((requests::prompts(args, config, &model)?, requests))
}
