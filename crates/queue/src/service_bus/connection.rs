//! One connection at a time, replaced by itself when it is lost.
//!
//! All links of a queue share one session, because frames of one session keep their order: a
//! settlement is at the broker before the question that follows it. A link that ends is attached
//! again to the same session by its owner; a session or connection that ends takes everything with
//! it, and the next who asks for [`Connector::live`] gets a new one.

use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::connection::{Connection, ConnectionHandle};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::{Session, SessionHandle};
use fe2o3_amqp_ws::WebSocketStream;
use futures_util::future::BoxFuture;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};
use uuid::Uuid;

use super::cbs::Claims;
use super::fault::{Fault, Trouble};
use super::request::{CBS, RequestLink};

/// One try, from the name look-up to the first token.
const CONNECT_WAIT: Duration = Duration::from_secs(20);

/// How long the broker may be silent before it is taken for dead. The service sends empty frames
/// at half of what is asked for.
const IDLE: Duration = Duration::from_secs(30);

/// How long a goodbye may take.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

const FIRST_PAUSE: Duration = Duration::from_millis(200);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The pause before try number `failures + 1`: a random part (`random` is in 0..1) of a span that
/// doubles, never less than a tenth of it, so that a fleet of workers does not come back at once.
pub(super) fn pause(failures: u32, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let span = (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE);
    span.mul_f64(0.1 + 0.9 * random.clamp(0.0, 1.0))
}

/// How long an operation goes on trying, and how it went so far.
pub(super) struct Patience {
    patience: Duration,
    end: Instant,
    failures: u32,
    last: Option<Fault>,
}

impl Patience {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, end: Instant::now() + patience, failures: 0, last: None }
    }

    /// Takes one try. `None`: it failed in passing, the pause is over, and it is time to try again.
    pub(super) async fn bear<T>(
        &mut self,
        step: impl Future<Output = Result<T, Fault>>,
    ) -> Option<Result<T, Fault>> {
        match tokio::time::timeout_at(self.end, step).await {
            Ok(Err(fault)) if fault.is_passing() => {
                self.failures += 1;
                let next = Instant::now() + pause(self.failures, rand::random());
                if next >= self.end {
                    return Some(Err(fault));
                }
                debug!(error = %fault, failures = self.failures, "the queue is away; trying again");
                self.last = Some(fault);
                tokio::time::sleep_until(next).await;
                None
            }
            Ok(done) => Some(done),
            Err(_) => {
                let last = self.last.take();
                Some(Err(last.unwrap_or_else(|| Trouble::NoAnswer(self.patience).into())))
            }
        }
    }
}

/// Where to connect.
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) websocket: bool,
}

/// Gives out the live connection.
pub(super) struct Connector {
    place: Place,
    claims: Arc<Claims>,
    current: Mutex<Current>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Current {
    live: Option<Arc<Live>>,
    failures: u32,
    not_before: Option<Instant>,
}

/// A connection with its session, until it ends.
pub(super) struct Live {
    session: Mutex<SessionHandle<()>>,
    ended: CancellationToken,
    tasks: TaskTracker,
}

impl Live {
    pub(super) async fn session(&self) -> MutexGuard<'_, SessionHandle<()>> {
        self.session.lock().await
    }

    pub(super) fn is_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Takes a step for no longer than the connection lives: the library may leave one hanging that
    /// the connection's end overtook.
    pub(super) async fn step<T>(
        &self,
        step: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        let taken = self.ended.run_until_cancelled(step).await;
        taken.unwrap_or_else(|| Err(Trouble::ConnectionLost.into()))
    }

    /// Gives the connection up, for instance because its token ended.
    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// Runs a link's task for no longer than the connection lives.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move { ended.run_until_cancelled(task).await });
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Connector {
    pub(super) fn new(place: Place, claims: Claims) -> Self {
        Self {
            place,
            claims: Arc::new(claims),
            current: Mutex::default(),
            tasks: TaskTracker::new(),
        }
    }

    /// The live connection; makes one where there is none. One try, after the pause that is due.
    pub(super) async fn live(&self) -> Result<Arc<Live>, Fault> {
        let mut current = self.current.lock().await;
        if let Some(live) = current.live.as_ref().filter(|live| !live.is_ended()) {
            return Ok(live.clone());
        }
        current.live = None;
        if self.tasks.is_closed() {
            return Err(Fault::last(Trouble::Closed));
        }
        if let Some(at) = current.not_before {
            tokio::time::sleep_until(at).await;
        }
        let made = tokio::time::timeout(CONNECT_WAIT, self.connect()).await;
        let made = made.unwrap_or_else(|_| Err(Trouble::NoAnswer(CONNECT_WAIT).into()));
        // Also after a success: a connection that breaks at once must not be made in a spin.
        current.failures = if made.is_ok() { 0 } else { current.failures + 1 };
        current.not_before = Some(Instant::now() + pause(current.failures, rand::random()));
        let live = Arc::new(made?);
        info!(host = self.place.host, "connected to the queue");
        current.live = Some(live.clone());
        Ok(live)
    }

    /// Attaches a link to the live connection. A token that has ended gets one more try with a new
    /// connection; refused then, it is refused.
    pub(super) async fn attach<L>(
        &self,
        attach: impl Fn(Arc<Live>) -> BoxFuture<'static, Result<L, Fault>> + Send,
    ) -> Result<(Arc<Live>, L), Fault> {
        let mut renewed = false;
        loop {
            let live = self.live().await?;
            let step = live.step(attach(live.clone()));
            let attached = tokio::time::timeout(CONNECT_WAIT, step).await;
            match attached.unwrap_or_else(|_| Err(Trouble::NoAnswer(CONNECT_WAIT).into())) {
                Ok(link) => return Ok((live, link)),
                Err(fault) if fault.is_unauthorized() && !renewed => {
                    renewed = true;
                    live.end();
                }
                Err(fault) => {
                    if fault.is_passing() && live.session().await.is_ended() {
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

    /// Says goodbye and waits until every task is done.
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

    async fn connect(&self) -> Result<Live, Fault> {
        let mut connection = self.open().await?;
        let session = Session::begin(&mut connection).await.map_err(Fault::passing)?;
        let ended = CancellationToken::new();
        let live =
            Live { session: Mutex::new(session), ended: ended.clone(), tasks: self.tasks.clone() };
        self.tasks.spawn(watch(connection, ended));
        let node = live.step(RequestLink::attach(&live, CBS)).await?;
        let ends = self.claims.put(&node).await?;
        let claims = self.claims.clone();
        let ended = live.ended.clone();
        live.spawn(async move {
            let fault = claims.keep(node, ends).await;
            debug!(error = %fault, "the queue's token could not be renewed; connecting anew");
            ended.cancel();
        });
        Ok(live)
    }

    async fn open(&self) -> Result<ConnectionHandle<()>, Fault> {
        let Place { host, port, tls, websocket } = &self.place;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(Fault::passing)?;
        // Dispositions are small frames that somebody waits for.
        stream.set_nodelay(true).map_err(Fault::passing)?;
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
    ) -> Result<ConnectionHandle<()>, Fault>
    where
        S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
    {
        let Place { host, port, .. } = &self.place;
        let address = format!("{scheme}://{host}:{port}/$servicebus/websocket");
        let stream = WebSocketStream::connect_with_stream(address, stream);
        self.open_over(stream.await.map_err(Fault::passing)?).await
    }

    async fn open_over<S>(&self, stream: S) -> Result<ConnectionHandle<()>, Fault>
    where
        S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
    {
        Connection::builder()
            .container_id(format!("promptmill-{}", Uuid::new_v4()))
            // TLS is done by now, whatever the port: the library is not to start it again.
            .scheme("amqp")
            .hostname(self.place.host.as_str())
            .sasl_profile(SaslProfile::Anonymous)
            .idle_time_out(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX))
            .open_with_stream(stream)
            .await
            .map_err(Fault::passing)
    }
}

async fn secure(
    host: &str,
    stream: TcpStream,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Fault> {
    let config = ClientConfig::with_platform_verifier().map_err(Fault::last)?;
    let name = ServerName::try_from(host.to_owned()).map_err(Fault::last)?;
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, stream).await.map_err(Fault::passing)
}

/// Owns the connection: tells when it ends, and closes it when it is given up.
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
    fn the_pause_doubles_up_to_its_bound() {
        assert_eq!(pause(0, 1.0), FIRST_PAUSE);
        assert_eq!(pause(1, 1.0), FIRST_PAUSE);
        assert_eq!(pause(3, 1.0), FIRST_PAUSE * 4);
        assert_eq!(pause(50, 1.0), LONGEST_PAUSE);
        assert_eq!(pause(50, 0.0), LONGEST_PAUSE / 10);
    }
}
