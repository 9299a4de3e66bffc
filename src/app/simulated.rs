//! The simulator in place of a configured deployment: no key, no network, no cost.

use std::io;
use std::net::SocketAddr;

use crate::config::DeploymentConfig;
use simulator::{Simulator, SimulatorSettings};

/// Starts a simulator on a free port, with the deployment's quota, and points the deployment to it.
///
/// # Errors
/// If no port can be bound.
pub async fn start(deployment: &mut DeploymentConfig) -> io::Result<Simulator> {
    let settings = SimulatorSettings {
        tpm: deployment.tpm,
        rpm: deployment.rpm,
        ledger_samples: false,
        ..SimulatorSettings::default()
    };
    let simulator = simulator::start(SocketAddr::from(([127, 0, 0, 1], 0)), settings).await?;
    deployment.endpoint = format!("http://{}/openai/v1", simulator.addr());
    Ok(simulator)
}
