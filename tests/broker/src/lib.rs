//! A Service Bus lookalike for tests: it speaks AMQP 1.0 and HTTP the way the service does, keeps
//! everything in memory, and breaks on demand. One port serves both.
//!
//! The way of a frame: `serve` (socket) → `frames` (bytes to performatives) → `connection` (links,
//! tokens) → `transfers` and `deliveries` (messages in and out, over `session`'s windows) →
//! `namespace` → `entity` → `shelf` (pure state). `management` and `cbs` answer requests. Over HTTP:
//! `http` (requests, tokens) → `rest` (messages, in `rest_message`'s form) and `admin` (descriptions)
//! → the same `namespace`.
//!
//! Not here: sessions in Service Bus's sense, transactions, partitions, rules on subscriptions, and
//! TLS.

mod admin;
mod cbs;
mod connection;
#[cfg(test)]
mod connection_tests;
mod deliveries;
mod entity;
mod faults;
mod frames;
mod http;
mod management;
mod message;
mod namespace;
mod request;
mod rest;
mod rest_message;
mod serve;
mod session;
mod shared;
mod shelf;
mod transfers;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, ToSocketAddrs};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use entity::{Counts, QueueSettings};
pub use faults::Loss;
pub use namespace::TopicSettings;

use entity::Queue;
use faults::Order;
use shared::Shared;

/// How long the listener rests after an error such as "too many open files".
const ACCEPT_REST: Duration = Duration::from_millis(50);

#[derive(Debug, Clone)]
pub struct Settings {
    pub queues: Vec<QueueSettings>,
    pub topics: Vec<TopicSettings>,
    /// In bytes; a batch counts as one message.
    pub max_message_size: u64,
    /// Whether links need a valid token.
    pub check_tokens: bool,
    /// Whether the key has the right to read and create entities.
    pub manage: bool,
    pub key_name: String,
    pub key: String,
    /// The silence the broker asks its clients not to exceed.
    pub idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            queues: Vec::new(),
            topics: Vec::new(),
            // The Standard tier's limit.
            max_message_size: 256 * 1024,
            check_tokens: true,
            manage: true,
            key_name: "RootManageSharedAccessKey".to_owned(),
            key: "SAS_KEY_VALUE".to_owned(),
            idle_timeout: Duration::from_secs(120),
        }
    }
}

/// A running broker. Dropping it stops it.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    shared: Arc<Shared>,
    key_name: String,
    key: String,
    tasks: TaskTracker,
    stop: DropGuard,
}

/// Listens on `addr` (port 0 picks a free one) and serves until told to stop.
pub async fn start(addr: impl ToSocketAddrs, settings: Settings) -> io::Result<Broker> {
    let listener = TcpListener::bind(addr).await?;
    let broker = Broker {
        addr: listener.local_addr()?,
        shared: Arc::new(Shared::new(&settings)),
        key_name: settings.key_name,
        key: settings.key,
        tasks: TaskTracker::new(),
        stop: CancellationToken::new().drop_guard(),
    };
    let stop = broker.stop.token().clone();
    let accept = accept(listener, Arc::clone(&broker.shared), broker.tasks.clone(), stop);
    broker.tasks.spawn(accept);
    Ok(broker)
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        // First listen for orders, then look: so no connection slips in beside a pause.
        let orders = shared.orders.subscribe();
        if !shared.is_paused() {
            let served = serve::serve(stream, Arc::clone(&shared), orders, stop.clone());
            // How a client's connection ends is the client's to notice, not the broker's.
            tasks.spawn(async { served.await.ok() });
        }
    }
}

impl Broker {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What SDKs take to connect, without TLS.
    pub fn connection_string(&self) -> String {
        format!(
            "Endpoint=sb://{};SharedAccessKeyName={};SharedAccessKey={};UseDevelopmentEmulator=true;",
            self.addr, self.key_name, self.key
        )
    }

    /// How many messages are where in a queue, or in a subscription by its path.
    ///
    /// # Panics
    ///
    /// Like everything here that takes a name, where there is no entity of this name: a misspelt
    /// one would let a test pass for the wrong reason.
    pub fn counts(&self, queue: &str) -> Counts {
        let now = self.shared.clock.now();
        self.with_queue(queue, |queue| queue.counts(now))
    }

    fn with_queue<T>(&self, name: &str, act: impl FnOnce(&mut Queue) -> T) -> T {
        match self.shared.namespace().queue(&namespace::entity_path(name)) {
            Some(queue) => act(queue),
            None => panic!("the broker was set up without a queue '{name}'"),
        }
    }

    /// Breaks every connection off now.
    pub fn drop_connections(&self) {
        self.shared.order(Order::Drop);
    }

    /// Breaks every connection off and takes no new one until `resume`.
    pub fn pause(&self) {
        self.shared.set_paused(true);
        self.shared.order(Order::Drop);
    }

    pub fn resume(&self) {
        self.shared.set_paused(false);
    }

    /// Detaches all links of an entity with this error condition, for instance
    /// `com.microsoft:server-busy` or `amqp:link:stolen`.
    pub fn detach_links(&self, queue: &str, condition: &str) {
        let path = namespace::entity_path(queue);
        let known = self.shared.namespace().accepts_sends(&path);
        assert!(known, "the broker was set up without a queue or topic '{queue}'");
        self.shared.order(Order::Detach { path, condition: condition.to_owned() });
    }

    /// Loses the next `count` settlements, by link or by `$management`.
    pub fn lose_next_settlements(&self, count: usize, loss: Loss) {
        self.shared.faults().settlements.plan(count, loss);
    }

    /// Loses the next `count` sends (a batch is one).
    pub fn lose_next_sends(&self, count: usize, loss: Loss) {
        self.shared.faults().sends.plan(count, loss);
    }

    /// Refuses the next `count` HTTP requests with this status.
    ///
    /// # Panics
    /// If it is no status of HTTP.
    pub fn refuse_next_requests(&self, count: usize, status: u16) {
        let status = hyper::StatusCode::from_u16(status).expect("a status of HTTP");
        self.shared.faults().refusals.extend(std::iter::repeat_n(status, count));
    }

    /// Holds confirmations of settlements back from now on; zero ends it.
    pub fn delay_settlements(&self, delay: Duration) {
        self.shared.faults().settlement_delay = delay;
    }

    /// Ends all locks of a queue now, each a failed delivery.
    pub fn expire_locks(&self, queue: &str) {
        let now = self.shared.clock.now();
        self.with_queue(queue, |queue| queue.expire_locks(now));
        self.shared.wake_all();
    }

    /// Takes all tokens as ended: links are detached as unauthorized, new ones need a new token.
    pub fn expire_tokens(&self) {
        self.shared.order(Order::ExpireTokens);
    }

    /// Good tokens that were put so far, over all connections.
    pub fn tokens_taken(&self) -> u64 {
        self.shared.tokens_taken.load(Ordering::Relaxed)
    }

    /// Times that tokens of a connection ended unrenewed.
    pub fn tokens_ended(&self) -> u64 {
        self.shared.tokens_ended.load(Ordering::Relaxed)
    }

    /// Breaks every connection off and returns when all is down.
    pub async fn shutdown(self) {
        self.stop.token().cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}
