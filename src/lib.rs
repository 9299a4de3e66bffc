//! promptmill: bulk prompts through Azure OpenAI, under its limits, with nothing lost.

pub mod job;
pub mod outcome;
pub mod simulator;
