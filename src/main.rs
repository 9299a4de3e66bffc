//! The binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use promptmill::cli::{self, Cli};

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
