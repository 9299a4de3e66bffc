//! The other side: an Azure OpenAI service with quotas, latency and faults, in this process or
//! behind a port.
//!
//! It answers chat completions, responses and embeddings on every URL shape that Azure has, and
//! keeps a ledger of what it admitted, refused and billed for each distinct prompt, so that
//! anybody can audit what was paid twice. It shares no code with `admission`, `model` or any other
//! station: what proves them must not be made of them.
//!
//! The way of a request: `connection` → `route` → `request` (shapes in `wire`) → `service` →
//! `deployments` → `judge` (`capacity`, `faults`, `books`) → `reply` or `stream` or `refusal`, with
//! `head` → `body`. What a deployment can take is `capacity`: a `quota`, or a `bucket` if it is
//! provisioned. Both are pure and public, so that simulated time can drive them without sockets.
//! How a deployment behaves is a `profile`, and `spec` reads changes of it.

mod body;
mod books;
pub mod bucket;
mod capacity;
mod connection;
mod deployment;
mod deployments;
mod duty;
mod embedding;
mod faults;
mod form;
mod head;
mod judge;
mod ledger;
mod profile;
pub mod quota;
mod refusal;
mod reply;
mod request;
mod route;
mod service;
mod settings;
mod spec;
mod stream;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::header::HeaderValue;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use duty::{Duty, Others};
pub use faults::{Fault, FaultCounts, Faults, Latency};
pub use ledger::{Admitted, Billed, BilledAgain, DeploymentWindow, Ledger, Refused, Tiers, Usage};
pub use profile::{Down, Setting};
pub use quota::{NEVER_RETRY_AFTER, Window};
pub use settings::{BadSettings, DEFAULT_DIMENSIONS, DEFAULT_MAX_OUTPUT, Settings};
pub use spec::{BadSpec, Change, Spec};

use service::Service;

/// A running simulator. It stops when it is dropped.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    service: Arc<Service>,
    /// Accepts connections and keeps the schedule.
    running: JoinHandle<()>,
}

/// Starts a simulator on `addr`; port 0 finds a free one. Bad settings are refused before the port
/// is bound, with a [`BadSettings`] inside of the error.
pub async fn start(addr: SocketAddr, settings: Settings) -> io::Result<Simulator> {
    settings.check().map_err(io::Error::other)?;
    let region = HeaderValue::from_str(&settings.region).map_err(io::Error::other)?;
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let service = Arc::new(Service::new(settings, region).map_err(io::Error::other)?);
    let run = |service: Arc<Service>| async move {
        tokio::join!(connection::accept(listener, service.clone()), service.keep_schedule());
    };
    let running = tokio::spawn(run(service.clone()));
    Ok(Simulator { addr, service, running })
}

impl Simulator {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The books as they are now.
    pub fn ledger(&self) -> Ledger {
        self.service.ledger()
    }

    /// Starts the books anew, attempts included; the quotas go on as they are.
    pub fn reset_ledger(&self) {
        self.service.reset_ledger();
    }

    /// Changes the quota of every deployment from now on; what is booked stays booked.
    pub fn set_quota(&self, tpm: Option<u64>, rpm: Option<u64>) {
        let limits = [Setting::Tpm(tpm), Setting::Rpm(rpm)];
        self.change(None, &limits).expect("every profile stays sound with any limits");
    }

    /// Changes how one deployment behaves from now on, or all of them and those to come. Either all
    /// of the settings are taken or none.
    pub fn change(&self, name: Option<&str>, settings: &[Setting]) -> Result<(), BadSettings> {
        self.service.change(name, settings)
    }

    /// Closes the port and every connection, whatever is in flight.
    pub async fn shutdown(mut self) {
        self.running.abort();
        // Aborting is what ends it, so the error is the expected end.
        let _ = (&mut self.running).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.running.abort();
    }
}
