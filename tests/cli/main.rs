//! The commands as a user runs them.

mod again;
mod bad_input;
mod budget;
mod commands;
mod config;
mod control;
mod crash;
mod exit_codes;
mod plan;
mod replies;
mod report;
mod results;
mod run;
mod telemetry;
mod webhook;
mod why;
