//! The command line: arguments in, library called, text out. Messages are printed only here.

#[cfg(feature = "bench")]
mod bench;
mod budget;
mod check;
mod config;
mod control;
mod count_bar;
mod dead_letters;
#[cfg(feature = "documents")]
mod documents;
#[cfg(feature = "documents")]
mod documents_reader;
mod endpoint;
mod enqueue;
mod init;
mod input;
mod interrupt;
mod local;
mod missing;
#[cfg(feature = "bench")]
mod plan;
mod progress;
mod report;
mod results;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod simulate;
mod status;
mod summary;
mod table;
mod usage;
mod webhook_task;
mod why;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::error;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

#[cfg(not(feature = "documents"))]
use self::missing::documents;
#[cfg(not(feature = "serve"))]
use self::missing::serve;
#[cfg(not(feature = "bench"))]
use self::missing::{bench, plan};
use crate::backends::BackendError;
use crate::config::{ConfigLayers, LogFormat};
use crate::{logging, telemetry};

/// Run bulk prompts on Azure OpenAI within its limits: nothing lost, nothing paid twice
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// Configuration file [default: promptmill.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Filter for the log on stderr, such as debug or promptmill=trace; no level shows keys or
    /// tokens, so WebSocket frames are never logged
    #[arg(
        long,
        global = true,
        env = "PROMPTMILL_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    log: EnvFilter,
    /// Format of the log; json is one object a line [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Debug, Subcommand)]
enum CliCommand {
    Run(run::RunArgs),
    Enqueue(enqueue::EnqueueArgs),
    Documents(Box<documents::DocumentsArgs>),
    #[cfg(feature = "documents")]
    #[command(hide = true)]
    DocumentsReader(documents_reader::DocumentsReaderArgs),
    Work(work::WorkArgs),
    Serve(serve::ServeArgs),
    Status(status::StatusArgs),
    Pause(control::PauseArgs),
    Resume(control::ResumeArgs),
    Cancel(control::CancelArgs),
    Why(why::WhyArgs),
    Results(results::ResultsArgs),
    Usage(usage::UsageArgs),
    Report(report::ReportArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Check(check::CheckArgs),
    Init(init::InitArgs),
    Config(config::ConfigArgs),
    Bench(Box<bench::BenchArgs>),
    Plan(Box<plan::PlanArgs>),
    Simulate(simulate::SimulateArgs),
}

/// Exit status of a command, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ExitStatus {
    AllDone = 0,
    /// Some jobs failed, are dead, or could not be read; the summary says how many.
    SomeFailed = 1,
    /// Wrong usage or configuration: trying again unchanged can't help.
    Usage = 2,
    /// A service or file was out of reach.
    Unreachable = 3,
    Interrupted = 130,
}

/// Runs one command and returns its exit code.
pub fn main(cli: Cli) -> ExitCode {
    #[cfg(feature = "documents")]
    // Our own child process, one for each document: it needs no configuration and no threads.
    if let CliCommand::DocumentsReader(args) = &cli.command {
        return exit_code(documents_reader::run(args));
    }
    let exit = ConfigLayers::read(cli.config.as_deref(), std::env::vars())
        .and_then(|layers| Ok((layers.config()?, layers)))
        .map_err(CommandError::usage)
        .and_then(|(config, layers)| {
            start_logging(cli.log, cli.log_format.unwrap_or(config.log.format));
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.map_err(|e| CommandError::unreachable(anyhow::Error::new(e)))?;
            let telemetry = {
                let _runtime = runtime.enter();
                telemetry::start(&config.telemetry).map_err(CommandError::usage)?
            };
            let ended = match cli.command {
                CliCommand::Run(args) => runtime.block_on(run::run(args, config)),
                CliCommand::Enqueue(args) => runtime.block_on(enqueue::run(args, config)),
                CliCommand::Documents(args) => runtime.block_on(documents::run(*args, config)),
                #[cfg(feature = "documents")]
                CliCommand::DocumentsReader(args) => documents_reader::run(&args),
                CliCommand::Work(args) => runtime.block_on(work::run(args, config)),
                CliCommand::Serve(args) => runtime.block_on(serve::run(args, config)),
                CliCommand::Status(args) => runtime.block_on(status::run(args, config)),
                CliCommand::Pause(args) => runtime.block_on(control::pause(args, config)),
                CliCommand::Resume(args) => runtime.block_on(control::resume(args, config)),
                CliCommand::Cancel(args) => runtime.block_on(control::cancel(args, config)),
                CliCommand::Why(args) => runtime.block_on(why::run(args, config)),
                CliCommand::Results(args) => runtime.block_on(results::run(args, config)),
                CliCommand::DeadLetters(args) => runtime.block_on(dead_letters::run(args, config)),
                CliCommand::Usage(args) => runtime.block_on(usage::run(args, config)),
                CliCommand::Report(args) => runtime.block_on(report::run(args, config)),
                CliCommand::Check(args) => runtime.block_on(check::run(args, config)),
                CliCommand::Init(args) => runtime.block_on(init::run(args, config)),
                CliCommand::Config(args) => config::run(args, &config, &layers),
                CliCommand::Bench(args) => runtime.block_on(bench::run(*args, config)),
                CliCommand::Plan(args) => runtime.block_on(plan::run(*args, config)),
                CliCommand::Simulate(args) => runtime.block_on(simulate::run(args)),
            };
            if let Some(telemetry) = telemetry {
                telemetry.finish();
            }
            ended
        });
    exit_code(exit)
}

/// Returns the exit code, and prints an error, only here and once.
fn exit_code(how: Result<ExitStatus, CommandError>) -> ExitCode {
    let exit = how.unwrap_or_else(|failure| {
        say(&format!("error: {}", error_chain(&failure.error)));
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// Error of a command, with its exit status.
#[derive(Debug)]
struct CommandError {
    error: anyhow::Error,
    exit: ExitStatus,
}

impl CommandError {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit: ExitStatus::Usage }
    }

    fn unreachable(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit: ExitStatus::Unreachable }
    }
}

impl From<BackendError> for CommandError {
    fn from(error: BackendError) -> Self {
        let exit = if error.is_transient() { ExitStatus::Unreachable } else { ExitStatus::Usage };
        Self { error: error.into(), exit }
    }
}

/// Joins an error and its causes in one line, none of them twice.
fn error_chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn start_logging(filter: EnvFilter, format: LogFormat) {
    let lines = tracing_subscriber::fmt::layer().with_writer(progress::stderr_beside_bar);
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

/// Prints a message to stderr.
#[expect(clippy::print_stderr, reason = "the command line talks here and nowhere else")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// Prints data to stdout. A pipe closed by its reader (`| head`) is no error.
fn print(text: &str) {
    use std::io::Write;
    if let Err(error) = writeln!(std::io::stdout(), "{text}")
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        error!(%error, "could not write to standard output");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
