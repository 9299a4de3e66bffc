//! `promptmill serve`: the HTTP server.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Exit, Failure, interrupt, print, say};
use crate::backends;
use crate::config::Config;
use serve::{App, Server};

/// Serve the dashboard, the Files and Batches API and the metrics, on this machine by default
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to listen; port 0 is any that is free [default: 127.0.0.1:8780]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

pub(super) async fn run(args: Args, mut config: Config) -> Result<Exit, Failure> {
    config.serve.listen = args.listen.unwrap_or(config.serve.listen);
    let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
    let backends = backends::open(&config).await?;
    let to = (backends.queue.clone(), backends.store.clone());
    let app = App::new(Arc::new(config.server()), to, stop).map_err(Failure::usage)?;
    let server = Server::bind(app).await.map_err(Failure::usage)?;
    print(&format!("http://{}", server.address()));
    server.run().await;
    backends.queue.close().await;
    say("stopped");
    Ok(Exit::AllDone)
}
