//! `promptmill simulate`: the Azure OpenAI simulator as a standalone server.

mod args;
mod help;
mod settings;

use std::net::SocketAddr;

use super::exit::{CommandError, ExitStatus};
use super::interrupt;
use super::output::print;
pub(super) use args::SimulateArgs;

pub(super) async fn run(args: SimulateArgs) -> Result<ExitStatus, CommandError> {
    let port = args.port;
    let settings = settings::settings(args)?;
    settings.check().map_err(CommandError::usage)?;
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let simulator = simulator::start(address, settings).await.map_err(|error| {
        let text = format!("can't serve on {address}: choose another --port");
        CommandError::usage(anyhow::Error::new(error).context(text))
    })?;
    print(&format!("http://{}", simulator.addr()))?;
    stop.cancelled().await;
    simulator.shutdown().await;
    Ok(ExitStatus::AllDone)
}
