//! `promptmill bench`: measures a deployment under load, and compares two measurements.

mod args;
mod compare;
mod flags;
mod load;
mod output;
mod pipeline;
mod requests;
mod shape;

use std::sync::Mutex;

use self::args::BenchCommand;
use super::exit::{CommandError, ExitStatus};
use super::interrupt;
use super::output::say;
use crate::config::Config;
use bench::report::{BenchReport, BenchStopReason};
use bench::{Bench, RequestSample, sweep};

pub(super) use self::args::BenchArgs;

pub(super) async fn run(args: BenchArgs, config: Config) -> Result<ExitStatus, CommandError> {
    if let Some(BenchCommand::Compare { a, b, json }) = &args.command {
        return compare::compare_reports(a, b, *json);
    }
    if args.pipeline.pipeline {
        return pipeline::run(args, config).await;
    }
    let phases = load::phases(&args)?;
    let (target, model) = requests::target(&args, config.clone())?;
    let prompts = requests::prompts(&args, &config, &model)?;
    let setup = requests::setup(&args, &target, &model, &phases);
    args.output.check_writable()?;
    let bench = Bench {
        client: target.client,
        prompts: Mutex::new(prompts),
        retry: load::retry(args.retry),
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
