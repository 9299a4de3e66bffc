//! Deployment that is measured, and the requests that it gets.

use super::args::BenchArgs;
use super::flags::RetryFlag;
use crate::app::bench_setup::has_name;
use crate::cli::exit::CommandError;
use crate::config::Config;
use bench::load_shapes::LoadShape;
use bench::report::BenchSetup;
use bench::{LoadPhase, PromptGenerator, PromptStyle};
use intake::{self, InputSource};
use worker::WorkerTarget;

/// Limit of recorded prompts in memory; more are of no use to a benchmark.
const MAX_RECORDED_PROMPTS: usize = 10_000;

/// Fault of a command line that leaves the model open.
pub(super) const NO_MODEL: &str = "name the model to call: --deployment or --model NAME";

/// Returns the deployment to call, and the model that requests name.
///
/// # Errors
/// If it is not one deployment, or no model is named.
pub(super) fn target(
    args: &BenchArgs,
    mut config: Config,
) -> Result<(WorkerTarget, String), CommandError> {
    let name = args.deployment.as_deref();
    if args.endpoint_flags.endpoint.is_some() {
        config.deployments = vec![args.endpoint_flags.deployment(name)];
    } else if let Some(name) = name {
        let named = |d: &_| has_name(d, name);
        config.deployments.retain(named);
        config.deployments.truncate(1);
    }
    if config.deployments.len() != 1 {
        return Err(CommandError::usage_text(
            "no deployment to measure: give --endpoint URL and --deployment NAME, or the \
             --deployment NAME of one in the configuration",
        ));
    }
    let deployment = config.deployments[0].deployment.clone();
    let mut targets = config.targets()?;
    let target = targets.remove(0);
    let model = args.model.clone().or(target.member.models.first().cloned()).or(deployment);
    let model = match (model, &args.requests.prompts) {
        (Some(model), _) => model,
        (None, Some(_)) => String::new(),
        (None, None) => {
            return Err(CommandError::usage_text(NO_MODEL));
        }
    };
    Ok((target, model))
}

/// Returns the prompts: made up, or those of a batch file.
///
/// # Errors
/// If the file can't be read, or has a line that is no job.
pub(super) fn prompts(
    args: &BenchArgs,
    config: &Config,
    model: &str,
) -> Result<PromptGenerator, CommandError> {
    let flags = &args.requests;
    let style = PromptStyle {
        model: model.to_owned(),
        stream: !flags.no_stream && !args.pipeline.pipeline,
        cacheable: flags.cacheable,
        limit_field: flags.limit_field.clone(),
    };
    let Some(path) = &flags.prompts else {
        return Ok(PromptGenerator::generated(flags.shape(), style, args.seed));
    };
    let source = InputSource::open(path, &std::env::temp_dir())?;
    let mut reading = config.reading();
    reading.models = None;
    if !model.is_empty() {
        reading.default_model = Some(model.to_owned());
    }
    let batch = "bench".parse().map_err(CommandError::usage)?;
    let jobs = intake::sample(&source, &reading, &batch, MAX_RECORDED_PROMPTS);
    Ok(PromptGenerator::recorded(&jobs.map_err(CommandError::usage)?, style, args.seed))
}

/// Describes the measurement for its report.
pub(super) fn setup(
    args: &BenchArgs,
    target: &WorkerTarget,
    model: &str,
    phases: &[LoadPhase],
) -> BenchSetup {
    let flags = &args.requests;
    let requests = match (&flags.prompts, phases) {
        (Some(path), _) => format!("prompts of {}", path.display()),
        (None, [LoadPhase { load: LoadShape::Replay(_), .. }]) => "tokens as recorded".to_owned(),
        (None, _) => flags.shape().to_string(),
    };
    BenchSetup {
        deployment: args.deployment.clone().unwrap_or_else(|| {
            if model.is_empty() { target.member.name.clone() } else { model.to_owned() }
        }),
        endpoint: target.client.base().to_string(),
        requests,
        streaming: !flags.no_stream,
        cacheable: flags.cacheable,
        retry: match args.retry {
            RetryFlag::None => "none".to_owned(),
            RetryFlag::Exponential => "exponential".to_owned(),
        },
        seed: args.seed,
    }
}
