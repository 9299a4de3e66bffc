//! What several test files share.
#![allow(dead_code, reason = "every test binary uses its own part of this")]

pub mod cli;
pub mod contract_queue;
pub mod jobs;
