//! One connection's task: what it speaks, then over AMQP the handshake, and reading, writing and
//! waiting until either side ends.

use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use fe2o3_amqp_types::sasl::{SaslCode, SaslMechanisms, SaslOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::deliveries::HIGH_WATER;
use crate::faults::Order;
use crate::frames::{self, AMQP_HEADER, Frame, SASL_HEADER};
use crate::http;
use crate::shared::Shared;
use crate::wire::{self, Malformed};

const MECHANISMS: [&str; 2] = ["MSSBCBS", "ANONYMOUS"];

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, malformed)
    }
}

/// Serves one client until it leaves, is dropped by order, or the broker stops.
pub async fn serve(
    mut stream: TcpStream,
    shared: Arc<Shared>,
    mut orders: broadcast::Receiver<Order>,
    stop: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    let peeked = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        _ = orders.recv() => return Ok(()),
        peeked = stream.peek(&mut first) => peeked?,
    };
    if peeked == 0 {
        return Ok(());
    }
    // No method of HTTP starts with the letter that AMQP's header starts with.
    if first[0] != AMQP_HEADER[0] {
        return serve_http(stream, shared, orders, stop).await;
    }
    let mut input = BytesMut::with_capacity(64 * 1024);
    let shaken = tokio::select! {
        biased;
        () = stop.cancelled() => false,
        // Whatever the order is, a client that has no link yet can only be dropped by it.
        _ = orders.recv() => false,
        shaken = handshake(&mut stream, &mut input) => shaken?,
    };
    if shaken { converse(stream, input, shared, orders, stop).await } else { Ok(()) }
}

/// Requests and answers, until the client leaves or an order drops it.
async fn serve_http(
    stream: TcpStream,
    shared: Arc<Shared>,
    mut orders: broadcast::Receiver<Order>,
    stop: CancellationToken,
) -> io::Result<()> {
    let dropped = async {
        // Links and their tokens are AMQP's: only a drop is for everybody.
        while !matches!(orders.recv().await, Ok(Order::Drop) | Err(_)) {}
    };
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = dropped => Ok(()),
        served = http::serve(stream, shared) => served.map_err(io::Error::other),
    }
}

/// Frames in, frames out, and whatever comes between them.
async fn converse(
    mut stream: TcpStream,
    mut input: BytesMut,
    shared: Arc<Shared>,
    mut orders: broadcast::Receiver<Order>,
    stop: CancellationToken,
) -> io::Result<()> {
    let idle_limit = shared.idle_timeout * 2;
    let mut changes = shared.changes.subscribe();
    let mut connection = Connection::new(Arc::clone(&shared));
    let (mut reader, mut writer) = stream.split();
    let mut heard = Instant::now();
    let mut spoke = Instant::now();
    loop {
        while let Some(frame) = frames::next_frame(&mut input)? {
            connection.take(&frame)?;
        }
        connection.pump();
        if connection.take_changed() {
            shared.wake_all();
            changes.borrow_and_update();
        }
        if connection.closed && connection.out.is_empty() {
            return writer.shutdown().await;
        }
        let silence = connection.peer_idle.map(|idle| spoke + idle / 2);
        let wake = [connection.next_event(), silence].into_iter().flatten();
        let wake = wake.fold(heard + idle_limit, Instant::min);
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            order = orders.recv() => match order {
                Ok(Order::Drop) | Err(_) => return Ok(()),
                Ok(order) => connection.obey(&order),
            },
            written = writer.write_buf(&mut connection.out), if !connection.out.is_empty() => {
                written?;
                spoke = Instant::now();
            }
            read = reader.read_buf(&mut input), if connection.out.len() < HIGH_WATER => {
                if read? == 0 {
                    return Ok(());
                }
                heard = Instant::now();
            }
            _ = changes.changed() => {}
            () = sleep_until(wake) => {
                if heard + idle_limit <= Instant::now() {
                    return Ok(());
                }
                if silence.is_some_and(|due| due <= Instant::now()) {
                    frames::write_heartbeat(&mut connection.out);
                }
                connection.tick();
            }
        }
    }
}

/// SASL where the client wants it, then AMQP; false where the client asks for what we don't speak.
async fn handshake(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<bool> {
    let mut header = read_header(stream, input).await?;
    if header == SASL_HEADER {
        let mut out = BytesMut::from(&SASL_HEADER[..]);
        let mechanisms = MECHANISMS.map(Into::into).to_vec().into();
        frames::write_sasl(&mut out, &SaslMechanisms { sasl_server_mechanisms: mechanisms });
        stream.write_all(&out).await?;
        let init = read_frame(stream, input).await?;
        let known = wire::decode_list(&init.body)?
            .first()
            .and_then(wire::as_text)
            .is_some_and(|mechanism| MECHANISMS.contains(&mechanism));
        let code = if known { SaslCode::Ok } else { SaslCode::Auth };
        out.clear();
        frames::write_sasl(&mut out, &SaslOutcome { code, additional_data: None });
        stream.write_all(&out).await?;
        if !known {
            return Ok(false);
        }
        header = read_header(stream, input).await?;
    }
    stream.write_all(&AMQP_HEADER).await?;
    Ok(header == AMQP_HEADER)
}

async fn read_header(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<[u8; 8]> {
    loop {
        if input.len() >= 8 {
            let header = input.split_to(8);
            return Ok(header[..].try_into().expect("eight bytes were split off"));
        }
        read_more(stream, input).await?;
    }
}

async fn read_frame(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<Frame> {
    loop {
        if let Some(frame) = frames::next_frame(input)? {
            return Ok(frame);
        }
        read_more(stream, input).await?;
    }
}

async fn read_more(stream: &mut TcpStream, input: &mut BytesMut) -> io::Result<()> {
    match stream.read_buf(input).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
