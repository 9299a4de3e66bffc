//! promptmill: bulk prompts through Azure OpenAI, under its limits, with nothing lost.
//!
//! The modules stand in the order of a job's way:
//!
//! ```text
//! intake -> queue -> worker (pull -> admission -> model -> record -> settle) -> report
//!                                                        store
//! ```
//!
//! `docs/architecture.md` has the picture, the invariants and one job walked through.

pub mod budget;
pub mod job;
pub mod outcome;
pub mod share;

pub mod intake;

pub mod documents;
pub mod queue;

pub mod worker;

pub mod admission;

pub mod model;

pub mod store;

pub mod report;

pub mod serve;

pub mod identity;
pub mod prices;
pub mod sqlite;
pub mod state;

pub mod bench;
pub mod plan;
pub mod simulator;

pub mod backends;
pub mod cli;
pub mod config;
pub mod control;
pub mod logging;
mod plot;
pub mod telemetry;
pub mod webhook;
