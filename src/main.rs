//! The binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use promptmill::cli::{self, Cli};
use tikv_jemallocator::Jemalloc;

/// What a job is made of is allocated by one thread and freed by another, which the C library's
/// allocator is slow at.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
