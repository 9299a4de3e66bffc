//! Reports for people and scalers: batch status and why a batch is not done, results, usage and
//! cost, useful number of workers, checks of the configured services.

pub mod autoscale;
pub mod batch_report;
pub mod deployments;
pub mod forecast;
pub mod html;
pub mod live;
pub mod plot;
pub mod results;
pub mod usage;
pub mod why;
