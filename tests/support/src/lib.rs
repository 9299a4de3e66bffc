//! What several test files share.
#![allow(clippy::new_without_default, reason = "fixtures, not library types")]
#![allow(clippy::unwrap_used, reason = "these are the bodies of tests")]
#![allow(clippy::print_stderr, reason = "who runs the tests learns what did not run")]

pub mod azurite;
pub mod books;
pub mod broker;
pub mod certificates;
pub mod cli;
pub mod contract_budget;
pub mod contract_queue;
pub mod contract_records;
pub mod contract_store;
pub mod contract_unstorable;
pub mod cosmos;
pub mod endpoint;
pub mod fleet;
pub mod jobs;
pub mod otlp;
pub mod peer;
pub mod pipeline;
pub mod pool;
pub mod proxy;
pub mod relay;
pub mod secrets;
pub mod service;
