//! The command line: arguments in, library called, text out. Messages are printed only here.

mod again;
mod bar;
#[cfg(feature = "bench")]
mod bench;
#[cfg(feature = "bench")]
mod bench_class;
mod budget;
mod charges;
mod check;
mod config;
mod control;
mod count_bar;
mod dead_letters;
mod dispatch;
#[cfg(feature = "documents")]
mod documents;
#[cfg(feature = "documents")]
mod documents_reader;
mod endpoint;
mod enqueue;
mod error_class;
mod exit;
mod init;
mod input;
mod interrupt;
mod local;
mod missing;
mod output;
#[cfg(feature = "bench")]
mod plan;
mod progress;
#[cfg(feature = "documents")]
mod prompt_file;
mod rate;
mod report;
mod result_files;
mod results;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod simulate;
mod status;
mod summary;
mod table;
mod usage;
mod use_case_class;
#[cfg(feature = "bench")]
mod values;
mod waits_text;
mod why;
mod work;
mod worker_end;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[cfg(not(feature = "documents"))]
use self::missing::documents;
#[cfg(not(feature = "serve"))]
use self::missing::serve;
#[cfg(not(feature = "bench"))]
use self::missing::{bench, plan};
use crate::config::LogFormat;
pub use dispatch::main;
use exit::{CommandError, ExitStatus};
#[cfg(feature = "bench")]
use output::scratch_dir;
use output::{print, print_lines, say};

/// Run bulk prompts on Azure OpenAI within its limits: nothing lost, nothing paid twice
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = exit::EXIT_CODES)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }
}
