//! Sockets: accepting connections, serving HTTP/1.1, and resetting when a fault requires it.
//!
//! The only file that knows TCP. A reset must look like one to the caller, so the socket is closed
//! with unsent data discarded (linger of zero), which sends RST instead of FIN. Neighbour:
//! `service` answers.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::service::{RequestEnd, SimulatorService};

/// Pause after a failed accept, which happens when file descriptors run out: other connections
/// must close first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Accepts connections until the future is dropped, which also closes all open ones.
pub async fn accept(listener: TcpListener, service: Arc<SimulatorService>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, _)) => {
                    open.spawn(serve(tcp, service.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the simulator can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = open.join_next() => {}
        }
    }
}

/// Error that ends a connection without another byte.
#[derive(Debug, thiserror::Error)]
#[error("the simulator closes this connection")]
struct HangupError;

async fn serve(tcp: TcpStream, service: Arc<SimulatorService>) {
    // Without it, small answers would wait for the ACK of the previous one (Nagle).
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let reset = Arc::new(AtomicBool::new(false));
    let stream = ResettableStream { tcp, reset: reset.clone() };
    let answer = service_fn(|request| {
        let (service, reset) = (&service, &reset);
        async move {
            match service.handle(request).await {
                RequestEnd::Answer(response) => Ok(response),
                RequestEnd::Gone => Err(HangupError),
                RequestEnd::Reset => {
                    reset.store(true, Ordering::Relaxed);
                    Err(HangupError)
                }
            }
        }
    });
    // No timer: idle callers never time out, and no timer is set and cleared per request.
    // No `pipeline_flush`: it would buffer a whole listing of prompts before it writes any.
    let http = http1::Builder::new();
    // An error means that the caller disconnected, or that a fault ended the connection.
    let _ = http.serve_connection(TokioIo::new(stream), answer).await;
}

/// Socket that can be marked for reset.
struct ResettableStream {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for ResettableStream {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // If it fails, the caller sees an orderly close, which also ends without an answer.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for ResettableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for ResettableStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::Relaxed) {
            // An orderly shutdown here would precede the reset and hide it.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
