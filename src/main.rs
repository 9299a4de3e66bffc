//! The binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use promptmill::cli::{self, Cli};

/// Allocator of the program: a job's memory is allocated by one thread and freed by another, which
/// the C library's allocator is slow at.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main(Cli::parse())
}
