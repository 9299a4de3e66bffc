//! From the command line to one command and its exit code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::command_line::{Cli, CliCommand};
#[cfg(feature = "documents")]
use super::documents_reader;
use super::exit::{CommandError, ExitStatus};
use super::exit_code::exit_code;
use super::{
    bar, bench, check, config, control, dead_letters, documents, enqueue, init, plan, report,
    results, run, serve, simulate, status, usage, why, work,
};
use crate::app::open_files;
use crate::config::{Config, ConfigLayers, LogFormat};
use crate::{logging, telemetry};

/// Runs one command and returns its exit code.
pub fn main(cli: Cli) -> ExitCode {
    // The panic's own message is on stderr by then.
    let ended = catch_unwind(AssertUnwindSafe(|| run_cli(cli)));
    exit_code(ended.unwrap_or_else(|_| {
        let text =
            "promptmill panicked; its message is above. Nothing recorded is lost: run it again";
        Err(CommandError::internal(anyhow::anyhow!(text)))
    }))
}

fn run_cli(cli: Cli) -> Result<ExitStatus, CommandError> {
    #[cfg(feature = "documents")]
    // Our own child process, one for each document: it needs no configuration and no threads.
    if let CliCommand::DocumentsReader(args) = &cli.command {
        return documents_reader::run(args);
    }
    let layers = ConfigLayers::read(cli.config.as_deref(), std::env::vars())?;
    let config = layers.config()?;
    start_logging(cli.log, cli.log_format.unwrap_or(config.log.format));
    open_files::raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(CommandError::internal)?;
    let telemetry = {
        let _runtime = runtime.enter();
        telemetry::start(&config.telemetry).map_err(CommandError::usage)?
    };
    let ended = runtime.block_on(run_command(cli.command, config, &layers));
    if let Some(telemetry) = telemetry {
        telemetry.finish();
    }
    ended
}

async fn run_command(
    command: CliCommand,
    config: Config,
    layers: &ConfigLayers,
) -> Result<ExitStatus, CommandError> {
    match command {
        CliCommand::Run(args) => run::run(args, config).await,
        CliCommand::Enqueue(args) => enqueue::run(args, config).await,
        CliCommand::Documents(args) => documents::run(*args, config).await,
        #[cfg(feature = "documents")]
        CliCommand::DocumentsReader(args) => documents_reader::run(&args),
        CliCommand::Work(args) => work::run(args, config).await,
        CliCommand::Serve(args) => serve::run(args, config).await,
        CliCommand::Status(args) => status::run(args, config).await,
        CliCommand::Pause(args) => control::pause(args, config).await,
        CliCommand::Resume(args) => control::resume(args, config).await,
        CliCommand::Cancel(args) => control::cancel(args, config).await,
        CliCommand::Why(args) => why::run(args, config).await,
        CliCommand::Results(args) => results::run(args, config).await,
        CliCommand::DeadLetters(args) => dead_letters::run(args, config).await,
        CliCommand::Usage(args) => usage::run(args, config).await,
        CliCommand::Report(args) => report::run(args, config).await,
        CliCommand::Check(args) => check::run(args, config).await,
        CliCommand::Init(args) => init::run(args, config).await,
        CliCommand::Config(args) => config::run(args, &config, layers),
        CliCommand::Bench(args) => bench::run(*args, config).await,
        CliCommand::Plan(args) => plan::run(*args, config).await,
        CliCommand::Simulate(args) => simulate::run(args).await,
    }
}

fn start_logging(filter: EnvFilter, format: LogFormat) {
    let lines = tracing_subscriber::fmt::layer().with_writer(bar::stderr_beside_bar);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(filter_fn(logging::is_safe_to_log))
        .init();
}
