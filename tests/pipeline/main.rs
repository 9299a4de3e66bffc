//! The worker, admission in simulated time, the simulator, and the walls between crates.

mod admission;
mod shares_simulated;
mod simulator;
mod simulator_deployments;
mod simulator_meters;
mod walls;
mod worker;
mod worker_silence;
mod worker_storm;
mod worker_tasks;
