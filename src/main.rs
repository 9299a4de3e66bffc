//! The binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use mimalloc::MiMalloc;
use promptmill::cli::{self, Cli};

/// What a job is made of is allocated by one thread and freed by another, which the C library's
/// allocator is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
