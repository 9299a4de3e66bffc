//! What people ask: how batches stand and why they are not done, results, tokens and cost, how many
//! workers are of use, and whether the services answer.

pub mod account;
pub mod deployments;
pub mod forecast;
pub mod live;
pub mod plot;
pub mod replicas;
pub mod results;
pub mod usage;
pub mod why;
