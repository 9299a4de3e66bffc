//! One connection at a time, replaced automatically when it is lost.
//!
//! All links of a queue share one session, because frames of one session keep their order: a
//! settlement is at the broker before the request that follows it. A link that ends is reattached
//! to the same session by its owner; a session or connection that ends takes everything with it,
//! and the next call of [`AmqpConnector::live`] makes a new one.

use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::connection::{Connection, ConnectionHandle};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::Session;
use fe2o3_amqp_ws::WebSocketStream;
use futures_util::future::BoxFuture;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};
use uuid::Uuid;

use super::cbs::CbsClaims;
use super::error::{BrokerError, TransportError};
use super::live_connection::AmqpConnection;
use super::request::{CBS, RequestLink};
use domain::backoff::Backoff;

/// Time limit of one attempt, from the name lookup to the first token.
const CONNECT_WAIT: Duration = Duration::from_secs(20);

/// Silence after which the broker counts as dead. The service sends empty frames at half of the
/// time asked for.
const IDLE: Duration = Duration::from_secs(30);

/// Time limit of closing a connection.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// Longest pause before another attempt.
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(30);

const BACKOFF: Backoff =
    Backoff { first: Duration::from_millis(200), factor: 2.0, max: MAX_BACKOFF };

/// Returns the pause before attempt `failures + 1`: a random part (`random` is in 0..1) of a span,
/// never less than a tenth of it, so that a fleet of workers does not return at once.
pub(super) fn backoff(failures: u32, random: f64) -> Duration {
    BACKOFF.delay(failures, 0.1 + 0.9 * random.clamp(0.0, 1.0))
}

/// Retry budget of one operation, and its failures so far.
pub(super) struct RetryBudget {
    patience: Duration,
    end: Instant,
    failures: u32,
    last: Option<BrokerError>,
}

impl RetryBudget {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, end: Instant::now() + patience, failures: 0, last: None }
    }

    /// Makes one attempt. `None` means a transient error whose pause is over: try again.
    pub(super) async fn run<T>(
        &mut self,
        step: impl Future<Output = Result<T, BrokerError>>,
    ) -> Option<Result<T, BrokerError>> {
        match tokio::time::timeout_at(self.end, step).await {
            Ok(Err(fault)) if fault.is_transient() => {
                self.failures += 1;
                let next = Instant::now() + backoff(self.failures, rand::random());
                if next >= self.end {
                    return Some(Err(fault));
                }
                debug!(error = %fault, failures = self.failures, "the queue is unreachable; retrying");
                self.last = Some(fault);
                tokio::time::sleep_until(next).await;
                None
            }
            Ok(done) => Some(done),
            Err(_) => {
                let last = self.last.take();
                Some(Err(last.unwrap_or_else(|| TransportError::NoAnswer(self.patience).into())))
            }
        }
    }
}

/// Address of the broker, and the protocols to reach it.
pub(super) struct BrokerAddress {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) websocket: bool,
}

/// Owner of the live connection.
pub(super) struct AmqpConnector {
    address: BrokerAddress,
    claims: Arc<CbsClaims>,
    current: Mutex<ConnectionSlot>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct ConnectionSlot {
    live: Option<Arc<AmqpConnection>>,
    failures: u32,
    not_before: Option<Instant>,
}

impl AmqpConnector {
    pub(super) fn new(address: BrokerAddress, claims: CbsClaims) -> Self {
        Self {
            address,
            claims: Arc::new(claims),
            current: Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// Returns the live connection, or makes one: in one attempt, after the pause that is due.
    pub(super) async fn live(&self) -> Result<Arc<AmqpConnection>, BrokerError> {
        let mut current = self.current.lock().await;
        if let Some(live) = current.live.as_ref().filter(|live| !live.is_ended()) {
            return Ok(live.clone());
        }
        current.live = None;
        if self.tasks.is_closed() {
            return Err(BrokerError::permanent(TransportError::Closed));
        }
        if let Some(at) = current.not_before {
            tokio::time::sleep_until(at).await;
        }
        let made = tokio::time::timeout(CONNECT_WAIT, self.connect()).await;
        let made = made.unwrap_or_else(|_| Err(TransportError::NoAnswer(CONNECT_WAIT).into()));
        // Also after a success: a connection that breaks at once must not be remade in a busy loop.
        current.failures = if made.is_ok() { 0 } else { current.failures + 1 };
        current.not_before = Some(Instant::now() + backoff(current.failures, rand::random()));
        let live = Arc::new(made?);
        info!(host = self.address.host, "connected to the queue");
        current.live = Some(live.clone());
        Ok(live)
    }

    /// Attaches a link to the live connection. An unauthorized attempt is repeated once with a new
    /// connection, whose token is new; a second refusal is final.
    pub(super) async fn attach<L>(
        &self,
        attach: impl Fn(Arc<AmqpConnection>) -> BoxFuture<'static, Result<L, BrokerError>> + Send,
    ) -> Result<(Arc<AmqpConnection>, L), BrokerError> {
        let mut renewed = false;
        loop {
            let live = self.live().await?;
            let step = live.run_while_alive(attach(live.clone()));
            let attached = tokio::time::timeout(CONNECT_WAIT, step).await;
            match attached.unwrap_or_else(|_| Err(TransportError::NoAnswer(CONNECT_WAIT).into())) {
                Ok(link) => return Ok((live, link)),
                Err(fault) if fault.is_unauthorized() && !renewed => {
                    renewed = true;
                    live.end();
                }
                Err(fault) => {
                    if fault.is_transient() && live.session().await.is_ended() {
                        live.end();
                    }
                    return Err(fault);
                }
            }
        }
    }

    /// Runs a task that [`close`](Self::close) waits for.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Closes the connection and waits, for a bounded time, until every task is done.
    pub(super) async fn close(&self) {
        self.tasks.close();
        let goodbye = async {
            if let Some(live) = self.current.lock().await.live.take() {
                live.end();
            }
            self.tasks.wait().await;
        };
        let _ = tokio::time::timeout(CLOSE_WAIT * 2, goodbye).await;
    }

    async fn connect(&self) -> Result<AmqpConnection, BrokerError> {
        let mut connection = self.open().await?;
        let session = Session::begin(&mut connection).await.map_err(BrokerError::transient)?;
        let ended = CancellationToken::new();
        let live = AmqpConnection {
            session: Mutex::new(session),
            ended: ended.clone(),
            tasks: self.tasks.clone(),
        };
        self.tasks.spawn(watch(connection, ended));
        let node = live.run_while_alive(RequestLink::attach(&live, CBS)).await?;
        let ends = self.claims.put(&node).await?;
        let claims = self.claims.clone();
        let ended = live.ended.clone();
        live.spawn(async move {
            let fault = claims.keep_renewed(node, ends).await;
            debug!(error = %fault, "the queue's token could not be renewed; reconnecting");
            ended.cancel();
        });
        Ok(live)
    }

    async fn open(&self) -> Result<ConnectionHandle<()>, BrokerError> {
        let BrokerAddress { host, port, tls, websocket } = &self.address;
        let stream =
            TcpStream::connect((host.as_str(), *port)).await.map_err(BrokerError::transient)?;
        // Dispositions are small frames that somebody waits for.
        stream.set_nodelay(true).map_err(BrokerError::transient)?;
        match (tls, websocket) {
            (false, false) => self.open_over(stream).await,
            (false, true) => self.open_websocket("ws", stream).await,
            (true, false) => self.open_over(secure(host, stream).await?).await,
            (true, true) => self.open_websocket("wss", secure(host, stream).await?).await,
        }
    }

    async fn open_websocket<S>(
        &self,
        scheme: &str,
        stream: S,
    ) -> Result<ConnectionHandle<()>, BrokerError>
    where
        S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
    {
        let BrokerAddress { host, port, .. } = &self.address;
        let address = format!("{scheme}://{host}:{port}/$servicebus/websocket");
        let stream = WebSocketStream::connect_with_stream(address, stream);
        self.open_over(stream.await.map_err(BrokerError::transient)?).await
    }

    async fn open_over<S>(&self, stream: S) -> Result<ConnectionHandle<()>, BrokerError>
    where
        S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
    {
        Connection::builder()
            .container_id(format!("promptmill-{}", Uuid::new_v4()))
            // TLS is done by now, whatever the port: the library is not to start it again.
            .scheme("amqp")
            .hostname(self.address.host.as_str())
            .sasl_profile(SaslProfile::Anonymous)
            .idle_time_out(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX))
            .open_with_stream(stream)
            .await
            .map_err(BrokerError::transient)
    }
}

async fn secure(
    host: &str,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, BrokerError> {
    http_client::install_tls();
    let config = ClientConfig::with_platform_verifier().map_err(BrokerError::permanent)?;
    let name = ServerName::try_from(host.to_owned()).map_err(BrokerError::permanent)?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(BrokerError::transient)
}

/// Owns the connection: reports when it ends, and closes it when it is given up.
async fn watch(mut connection: ConnectionHandle<()>, ended: CancellationToken) {
    tokio::select! {
        closed = connection.on_close() => {
            debug!(reason = ?closed.err(), "the queue's connection ended");
            ended.cancel();
        }
        () = ended.cancelled() => {
            let _ = tokio::time::timeout(CLOSE_WAIT, connection.close()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_pause_is_shorter_than_a_tenth_of_its_span() {
        assert_eq!(backoff(3, 1.0), BACKOFF.first * 4);
        assert_eq!(backoff(50, 0.0), MAX_BACKOFF / 10);
    }
}
