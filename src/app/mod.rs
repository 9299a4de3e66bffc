//! The use cases: each is a library call that takes settings and returns a report. Nothing here
//! prints; a command of `cli/` calls one of them and tells what it returns.

#[cfg(feature = "bench")]
pub mod bench_setup;
pub mod budget;
pub mod check;
pub mod dead_letters;
#[cfg(feature = "bench")]
pub mod forecast;
pub mod input;
pub mod local_run;
#[cfg(feature = "documents")]
pub mod night;
pub mod open_files;
pub mod queue_worker;
pub mod simulated;
pub mod status;
pub mod webhook_task;
