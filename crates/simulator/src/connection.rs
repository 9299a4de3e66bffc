//! The sockets: accepting, speaking HTTP/1.1, and resetting when a fault says so.
//!
//! The only file that knows TCP. A reset must look like one to the caller, so the socket is closed
//! with unsent data thrown away (linger of zero), which sends RST instead of FIN. Neighbour:
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

use super::service::{End, Service};

/// How long to leave the port alone when no connection can be accepted, which is when files run
/// out: others must close some first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Accepts connections until it is dropped, which also ends all that are open.
pub async fn accept(listener: TcpListener, service: Arc<Service>) {
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

/// Ends a connection without another byte.
#[derive(Debug, thiserror::Error)]
#[error("the connection ends here")]
struct Hangup;

async fn serve(tcp: TcpStream, service: Arc<Service>) {
    // Without it, small answers would wait for the caller's acknowledgement of the last one.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let reset = Arc::new(AtomicBool::new(false));
    let wire = Wire { tcp, reset: reset.clone() };
    let answer = service_fn(|request| {
        let (service, reset) = (&service, &reset);
        async move {
            match service.handle(request).await {
                End::Answer(response) => Ok(response),
                End::Gone => Err(Hangup),
                End::Reset => {
                    reset.store(true, Ordering::Relaxed);
                    Err(Hangup)
                }
            }
        }
    });
    // No timer, so no time-out for idle callers, and none to set and clear for each request.
    // Nor `pipeline_flush`: it would take in a whole listing of prompts before it writes any.
    let http = http1::Builder::new();
    // An error is a caller that went away, or the end that a fault wanted.
    let _ = http.serve_connection(TokioIo::new(wire), answer).await;
}

/// A socket that can be marked for reset.
struct Wire {
    tcp: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // If it fails, the caller sees an orderly close instead: also an end without answer.
            let _ = self.tcp.set_zero_linger();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
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
            // An orderly end here would come before the reset and hide it.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
