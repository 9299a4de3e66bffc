//! Forecast of tokens, cost and time of an input, before anything is spent.
//!
//! ```text
//! input ─▶ count ─▶ spool ─▶ simulate ─▶ trials ─▶ cost ─▶ Forecast ─▶ text, JSON
//!       (tokens,           (admission,  (limiting
//!        all cores)         simulated    factor,
//!                           time)        what-ifs)
//!                     latency, learn ──▲    quota_counter ──▲
//! ```
//!
//! Calls no model and writes only a temporary file. The worker's own `admission` starts the jobs;
//! `quota_counter` gives the service's headers, `latency` call times, `learn`t from past outcomes,
//! from a benchmark, or assumed and marked so. `docs/plan.md` has the method and its limits.

mod cost;
mod count;
mod due;
mod error;
mod forecast;
mod latency;
mod learn;
mod quota_counter;
mod simulate;
mod spool;
mod text;
mod trials;

pub use cost::{CostForecast, DeploymentCost};
pub use count::{CountedInput, ModelDemand, TokenSpread, count};
pub use due::{BadDueTime, DueTime, zone};
pub use error::PlanError;
pub use forecast::{PlanForecast, PlanInputs, TokenForecast, forecast, forecast_counted};
pub use latency::{
    ASSUMED_LATENCY, ASSUMED_OUTPUT_SHARE, AnswerLengths, AssumedLength, CallLatency, CallProfile,
    LatencyModel,
};
pub use learn::learn;
pub use simulate::UncalledJobs;
pub use text::duration;
pub use trials::{BindingLimit, TimeForecast, WhatIf};
