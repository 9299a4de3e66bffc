//! promptmill: bulk prompts through Azure OpenAI, under its limits, with nothing lost.
//!
//! The modules stand in the order of a job's way:
//!
//! ```text
//! intake -> queue -> worker (pull -> admission -> model -> record -> settle) -> report
//!                                                        store
//! ```

pub mod job;
pub mod outcome;

pub mod intake;
pub mod queue;
pub mod sqlite;
pub mod state;
pub mod store;

pub mod admission;
pub mod model;
pub mod report;

pub mod simulator;

pub mod cli;
pub mod config;
pub mod worker;
