//! The worker, admission in simulated time, and the simulator.

mod admission;
mod shares_simulated;
mod simulator;
mod simulator_deployments;
mod simulator_meters;
mod worker;
mod worker_tasks;
