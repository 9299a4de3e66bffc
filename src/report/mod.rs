//! What people ask: how batches stand, results, and whether the services answer.

pub mod batches;
pub mod check;
pub mod results;
