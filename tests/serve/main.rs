//! The HTTP server: Batches API and dashboard.

mod batch_api;
mod dashboard;
