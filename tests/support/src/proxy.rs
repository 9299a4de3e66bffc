//! An HTTP proxy: tunnels what comes with CONNECT, passes the rest on as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Dropping it breaks every connection off.
pub struct Proxy {
    addr: SocketAddr,
    tunnels: Arc<AtomicUsize>,
    passed: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Proxy {
    /// With `to`, every host is that one, so that names can be asked for that nobody else knows.
    pub async fn start(to: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let tunnels = Arc::<AtomicUsize>::default();
        let passed = Arc::<AtomicUsize>::default();
        let stop = CancellationToken::new();
        let (counts, stopped) = ((tunnels.clone(), passed.clone()), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (tunnels, passed) = counts.clone();
                let serving = async move {
                    // How a connection ends is for its two sides to notice.
                    let _ = serve(client, to, &tunnels, &passed).await;
                };
                tokio::spawn(stopped.clone().run_until_cancelled_owned(serving));
            }
        }));
        Self { addr, tunnels, passed, _stop: stop.drop_guard() }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Connections that came with CONNECT.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }

    /// Connections whose requests were passed on in the open.
    pub fn passed(&self) -> usize {
        self.passed.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut client: TcpStream,
    to: Option<SocketAddr>,
    tunnels: &AtomicUsize,
    passed: &AtomicUsize,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let mut words = text.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let host = target.trim_start_matches("http://").split('/').next().unwrap();
    let mut server = match to {
        Some(addr) => TcpStream::connect(addr).await?,
        None => TcpStream::connect(host).await?,
    };
    if method == "CONNECT" {
        tunnels.fetch_add(1, Ordering::SeqCst);
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        passed.fetch_add(1, Ordering::SeqCst);
        server.write_all(&head).await?;
    }
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
