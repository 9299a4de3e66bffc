//! Sockets: accepting, limits of a connection, and graceful shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Timeout for a request's head; it also closes idle connections.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Header limits of one request: their number, and their bytes including the request line.
const MAX_HEADERS: usize = 64;
const MAX_HEAD_BYTES: usize = 32 << 10;

/// Pause after a failed accept, such as when file descriptors run out: others must be closed first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Listening socket with its connection limit and shutdown grace time.
pub struct HttpListener {
    pub listener: TcpListener,
    /// Maximum open connections; more wait in the system's backlog.
    pub connections: usize,
    /// Grace time for requests under way when it stops.
    pub grace: Duration,
}

impl HttpListener {
    /// Returns the listening address, with the port that the system chose.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`, then finishes the requests under way.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let open = Arc::new(Semaphore::new(self.connections));
        let graceful = GracefulShutdown::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_headers(MAX_HEADERS)
            .max_buf_size(MAX_HEAD_BYTES);
        while let Some(tcp) = self.accept(&open, &stop).await {
            let (tcp, permit) = tcp;
            let service = TowerToHyperService::new(router.clone());
            let connection = graceful.watch(http.serve_connection(TokioIo::new(tcp), service));
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!(%error, "a connection ended early");
                }
                drop(permit);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(self.grace, graceful.shutdown()).await.is_err() {
            warn!("requests outlived the grace time and were cut off");
        }
    }

    /// Accepts the next connection when there is room for it; `None` on stop.
    async fn accept(
        &self,
        open: &Arc<Semaphore>,
        stop: &CancellationToken,
    ) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let next = async {
            let permit = open.clone().acquire_owned().await.ok()?;
            loop {
                match self.listener.accept().await {
                    Ok((tcp, _)) => {
                        // Otherwise small answers would wait for the caller's acknowledgement.
                        if tcp.set_nodelay(true).is_ok() {
                            return Some((tcp, permit));
                        }
                    }
                    Err(error) => {
                        warn!(%error, "a connection can't be accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => None,
            next = next => next,
        }
    }
}
