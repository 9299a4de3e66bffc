//! A relay in front of a server: counts connections, and speaks WebSocket or TLS to the client on
//! request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fe2o3_amqp_ws::tokio_tungstenite::WebSocketStream;
use fe2o3_amqp_ws::tokio_tungstenite::accept_hdr_async;
use fe2o3_amqp_ws::tungstenite::Message;
use fe2o3_amqp_ws::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use fe2o3_amqp_ws::tungstenite::http::HeaderValue;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Clone)]
pub enum Front {
    Plain,
    WebSocket,
    Tls(TlsAcceptor),
}

/// Dropping it breaks every connection off.
pub struct Relay {
    pub addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _stop: DropGuard,
}

impl Relay {
    pub async fn start(front: Front, to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let (count, stopped) = (accepted.clone(), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let server = TcpStream::connect(to).await.unwrap();
                tokio::spawn(stopped.clone().run_until_cancelled_owned(pass(
                    front.clone(),
                    client,
                    server,
                )));
            }
        }));
        Self { addr, accepted, _stop: stop.drop_guard() }
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn pass(front: Front, mut client: TcpStream, mut server: TcpStream) {
    match front {
        // However a side ends, the other one notices.
        Front::Plain => drop(copy_bidirectional(&mut client, &mut server).await),
        Front::Tls(acceptor) => {
            // A client that does not trust the certificate ends the handshake.
            if let Ok(mut client) = acceptor.accept(client).await {
                drop(copy_bidirectional(&mut client, &mut server).await);
            }
        }
        Front::WebSocket => pass_frames(accept(client).await, server).await,
    }
}

/// Takes the handshake as the service does, whose one path and protocol these are.
async fn accept(client: TcpStream) -> WebSocketStream<TcpStream> {
    #[expect(clippy::result_large_err, reason = "the callback's type is the library's")]
    let check = |request: &Request, mut response: Response| -> Result<_, ErrorResponse> {
        assert_eq!(request.uri().path(), "/$servicebus/websocket");
        let protocol = HeaderValue::from_static("amqp");
        assert_eq!(request.headers().get("Sec-WebSocket-Protocol"), Some(&protocol));
        response.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
        Ok(response)
    };
    accept_hdr_async(client, check).await.unwrap()
}

async fn pass_frames(client: WebSocketStream<TcpStream>, server: TcpStream) {
    let (mut to_client, mut from_client) = client.split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        while let Some(Ok(frame)) = from_client.next().await {
            if to_server.write_all(&frame.into_data()).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            let frame = Message::binary(buffer[..read].to_vec());
            if to_client.send(frame).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
