//! The doors: arguments in, library called, text out. Only here is anything printed.

mod bench;
mod budget;
mod check;
mod config;
mod control;
mod counted;
mod dead_letters;
mod documents;
mod documents_reader;
mod endpoint;
mod enqueue;
mod init;
mod input;
mod interrupt;
mod local;
mod plan;
mod progress;
mod report;
mod results;
mod run;
mod serve;
mod simulate;
mod status;
mod summary;
mod table;
mod telling;
mod usage;
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

use crate::backends::BackendError;
use crate::config::{Layers, LogFormat};
use crate::{logging, telemetry};

/// Puts bulk prompts through Azure OpenAI under its limits: nothing lost, nothing paid twice.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    /// The configuration file [default: promptmill.toml, where there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged to stderr, such as debug or promptmill=trace; no level shows keys or tokens, so
    /// WebSocket frames never are
    #[arg(
        long,
        global = true,
        env = "PROMPTMILL_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    log: EnvFilter,
    /// How it is logged; json is one object a line [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Enqueue(enqueue::Args),
    Documents(Box<documents::Args>),
    #[command(hide = true)]
    DocumentsReader(documents_reader::Args),
    Work(work::Args),
    Serve(serve::Args),
    Status(status::Args),
    Pause(control::PauseArgs),
    Resume(control::ResumeArgs),
    Cancel(control::CancelArgs),
    Why(why::Args),
    Results(results::Args),
    Usage(usage::Args),
    Report(report::Args),
    DeadLetters(dead_letters::Args),
    Check(check::Args),
    Init(init::Args),
    Config(config::Args),
    Bench(Box<bench::Args>),
    Plan(Box<plan::Args>),
    Simulate(simulate::Args),
}

/// How a command ended, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    AllDone = 0,
    /// Some jobs failed, are dead, or could not be read; the summary says how many.
    SomeFailed = 1,
    /// Wrong usage or configuration: trying again unchanged can't help.
    Usage = 2,
    /// A service or file was out of reach.
    Unreachable = 3,
    Interrupted = 130,
}

/// Runs one command and says how it ended.
pub fn main(cli: Cli) -> ExitCode {
    // A child of our own, one for each document: it needs no configuration and starts no threads.
    if let Command::DocumentsReader(args) = &cli.command {
        return ended(documents_reader::run(args));
    }
    let exit = Layers::read(cli.config.as_deref(), std::env::vars())
        .and_then(|layers| Ok((layers.config()?, layers)))
        .map_err(Failure::usage)
        .and_then(|(config, layers)| {
            start_logging(cli.log, cli.log_format.unwrap_or(config.log.format));
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.map_err(|e| Failure::unreachable(anyhow::Error::new(e)))?;
            let telemetry = {
                let _runtime = runtime.enter();
                telemetry::start(&config.telemetry).map_err(Failure::usage)?
            };
            let ended = match cli.command {
                Command::Run(args) => runtime.block_on(run::run(args, config)),
                Command::Enqueue(args) => runtime.block_on(enqueue::run(args, config)),
                Command::Documents(args) => runtime.block_on(documents::run(*args, config)),
                Command::DocumentsReader(args) => documents_reader::run(&args),
                Command::Work(args) => runtime.block_on(work::run(args, config)),
                Command::Serve(args) => runtime.block_on(serve::run(args, config)),
                Command::Status(args) => runtime.block_on(status::run(args, config)),
                Command::Pause(args) => runtime.block_on(control::pause(args, config)),
                Command::Resume(args) => runtime.block_on(control::resume(args, config)),
                Command::Cancel(args) => runtime.block_on(control::cancel(args, config)),
                Command::Why(args) => runtime.block_on(why::run(args, config)),
                Command::Results(args) => runtime.block_on(results::run(args, config)),
                Command::DeadLetters(args) => runtime.block_on(dead_letters::run(args, config)),
                Command::Usage(args) => runtime.block_on(usage::run(args, config)),
                Command::Report(args) => runtime.block_on(report::run(args, config)),
                Command::Check(args) => runtime.block_on(check::run(args, config)),
                Command::Init(args) => runtime.block_on(init::run(args, config)),
                Command::Config(args) => config::run(args, &config, &layers),
                Command::Bench(args) => runtime.block_on(bench::run(*args, config)),
                Command::Plan(args) => runtime.block_on(plan::run(*args, config)),
                Command::Simulate(args) => runtime.block_on(simulate::run(args)),
            };
            if let Some(telemetry) = telemetry {
                telemetry.finish();
            }
            ended
        });
    ended(exit)
}

/// Tells a failure, once and here.
fn ended(how: Result<Exit, Failure>) -> ExitCode {
    let exit = how.unwrap_or_else(|failure| {
        say(&format!("error: {}", chain(&failure.error)));
        failure.exit
    });
    ExitCode::from(exit as u8)
}

/// An error on its way to the edge, with the exit code that it means.
#[derive(Debug)]
struct Failure {
    error: anyhow::Error,
    exit: Exit,
}

impl Failure {
    fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit: Exit::Usage }
    }

    fn unreachable(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), exit: Exit::Unreachable }
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        let exit = if error.is_passing() { Exit::Unreachable } else { Exit::Usage };
        Self { error: error.into(), exit }
    }
}

/// An error and its causes in one line, none of them twice.
fn chain(error: &anyhow::Error) -> String {
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
        .with(filter_fn(logging::tells_no_secret))
        .init();
}

/// Talk goes to stderr.
#[expect(clippy::print_stderr, reason = "the command line talks here and nowhere else")]
fn say(text: &str) {
    eprintln!("{text}");
}

/// Data goes to stdout. A reader that went away (`| head`) is no error.
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
