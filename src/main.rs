//! The binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use promptmill::cli::{self, Cli};
use tikv_jemallocator::Jemalloc;

/// Allocator of the program: a job's memory is allocated by one thread and freed by another, which
/// the C library's allocator is slow at.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
