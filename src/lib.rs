//! promptmill: bulk prompts through Azure OpenAI, under its limits, with nothing lost.
//!
//! The crates of this workspace stand in the order of a job's way:
//!
//! ```text
//! intake -> queue -> worker (pull -> admission -> model -> record -> settle) -> report
//!                                                        store
//! ```
//!
//! `docs/architecture.md` has the picture, the invariants and one job walked through.

pub use domain::{budget, headers, heartbeat, job, outcome, prices};
pub use state::sqlite;
pub use {
    ::bench, admission, control, documents, identity, intake, model, plan, queue, reader, report,
    serve, simulator, state, store, telemetry, tokens, worker,
};

pub mod backends;
pub mod check;
pub mod cli;
pub mod config;
pub mod logging;
pub mod webhook;
