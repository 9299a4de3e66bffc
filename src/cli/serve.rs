//! `promptmill serve`: the HTTP server.

use std::net::SocketAddr;
use std::sync::Arc;

use super::exit::{CommandError, ExitStatus};
use super::interrupt;
use super::output::{print, say};
use crate::backends;
use crate::config::Config;
use serve::{AppState, Server};

/// Serve the dashboard, the Files and Batches API and the metrics, on this machine by default
#[derive(Debug, clap::Args)]
pub(super) struct ServeArgs {
    /// Address to listen on; port 0 picks a free one [default: 127.0.0.1:8780]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(args: ServeArgs, mut config: Config) -> Result<ExitStatus, CommandError> {
    config.serve.listen = args.listen.unwrap_or(config.serve.listen);
    let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
    let backends = backends::open(&config).await?;
    let to = (backends.queue.clone(), backends.store.clone());
    let app = AppState::new(Arc::new(config.server()), to, stop).map_err(CommandError::usage)?;
    let server = Server::bind(app).await.map_err(CommandError::usage)?;
    print(&format!("http://{}", server.address()))?;
    server.run().await;
    backends.queue.close().await;
    say("stopped");
    Ok(ExitStatus::AllDone)
}
