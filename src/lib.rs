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

pub use domain::{budget, deployment, headers, heartbeat, inquiry, job, outcome, prices};
#[cfg(feature = "serve")]
pub use serve;
pub use state::sqlite;
#[cfg(feature = "bench")]
pub use {::bench, plan};
pub use {
    admission, control, http_client, identity, intake, model, queue, report, simulator, state,
    store, telemetry, tokens, worker,
};
#[cfg(feature = "documents")]
pub use {documents, reader};

pub mod app;
pub mod backends;
pub mod cli;
pub mod config;
pub mod logging;
pub mod webhook;
