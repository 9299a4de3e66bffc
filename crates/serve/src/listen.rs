//! The sockets: accepting, limits of what a connection may take, and a graceful end.

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

/// A request's head must be complete within this; it also ends idle connections.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

/// Headers of one request, in number and in bytes together with the request line.
const MOST_HEADERS: usize = 64;
const LARGEST_HEAD: usize = 32 << 10;

/// How long to leave the port alone when files run out: others must close some first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// How a server listens.
pub struct Listening {
    pub listener: TcpListener,
    /// Open at a time; more wait in the system's backlog.
    pub connections: usize,
    /// For requests under way when it stops.
    pub grace: Duration,
}

impl Listening {
    /// Where it listens, with the port that the system chose.
    ///
    /// # Errors
    /// If the socket is gone.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`, and then what is under way.
    pub async fn serve(self, router: Router, stop: CancellationToken) {
        let open = Arc::new(Semaphore::new(self.connections));
        let graceful = GracefulShutdown::new();
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .max_headers(MOST_HEADERS)
            .max_buf_size(LARGEST_HEAD);
        while let Some(tcp) = self.next(&open, &stop).await {
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

    /// The next connection, when there is room for it; `None` to stop.
    async fn next(
        &self,
        open: &Arc<Semaphore>,
        stop: &CancellationToken,
    ) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let next = async {
            let permit = open.clone().acquire_owned().await.ok()?;
            loop {
                match self.listener.accept().await {
                    Ok((tcp, _)) => {
                        // Without it, small answers would wait for the caller's acknowledgement.
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
