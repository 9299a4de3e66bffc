//! The command line: its global flags and its commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[cfg(feature = "documents")]
use super::documents_reader;
use super::exit;
use super::{
    bench, check, config, control, dead_letters, documents, enqueue, init, plan, report, results,
    run, serve, simulate, status, usage, why, work,
};
use crate::config::LogFormat;

/// Run bulk prompts on Azure OpenAI within its limits: nothing lost, nothing paid twice
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = exit::EXIT_CODES)]
pub struct Cli {
    /// Configuration file [default: promptmill.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Filter for the log on stderr, such as debug or promptmill=trace; no level shows keys or
    /// tokens, so WebSocket frames are never logged
    #[arg(
        long,
        global = true,
        env = "PROMPTMILL_LOG",
        default_value = "warn",
        value_name = "FILTER"
    )]
    pub(super) log: EnvFilter,
    /// Format of the log; json is one object a line [default: text]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(super) log_format: Option<LogFormat>,
    #[command(subcommand)]
    pub(super) command: CliCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum CliCommand {
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
