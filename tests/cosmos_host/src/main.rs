//! The same server as a process: prints its endpoint and runs until it is interrupted.

use std::error::Error;
use std::io::{self, Write};

use cosmos_host::{Settings, start};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let host = start(address.parse()?, Settings::default()).await?;
    writeln!(io::stdout(), "{}", host.endpoint())?;
    tokio::signal::ctrl_c().await?;
    Ok(())
}
