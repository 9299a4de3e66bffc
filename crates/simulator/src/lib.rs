//! Simulated Azure OpenAI service with quotas, latency and faults, in this process or behind a
//! port.
//!
//! It answers chat completions, responses and embeddings on every URL shape that Azure has, and
//! keeps a ledger of what it admitted, refused and billed for each distinct prompt, so that
//! duplicate billing can be audited. It shares no code with `admission`, `model` or any other
//! module: a test double must not be built from the code that it tests.
//!
//! Path of a request: `connection` → `route` → `request` (shapes in `wire`) → `service` →
//! `deployments` → `judge` (`capacity`, `faults`, `audit_ledger`) → `reply` or `stream` or
//! `refusal`, with `head` → `body`. `capacity` limits a deployment by a `quota`, or by a `bucket`
//! if it is provisioned; both are pure and public, so that simulated time can drive them without
//! sockets. A quota counts by the rules of its `meter` (`token_counter`, `request_slices`) and
//! reports by them (`rate_report`). `profile` holds a deployment's behaviour, and `spec` parses changes to it.

mod audit_ledger;
mod body;
pub mod bucket;
mod capacity;
mod connection;
mod deployment;
mod deployments;
mod duty_cycle;
mod embedding;
mod error;
mod faults;
mod head;
mod judge;
mod ledger_snapshot;
pub mod meter;
mod profile;
pub mod quota;
pub mod quota_status;
pub mod rate_report;
mod refusal;
mod reply;
mod request;
mod request_slices;
mod route;
mod service;
mod settings;
mod spans;
mod spec;
mod stream;
mod structured_output;
mod token_counter;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::header::HeaderValue;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use duty_cycle::{DutyCycle, ForeignTraffic};
pub use error::BadSimulatorSettings;
pub use faults::{FaultCounts, FaultRates, InjectedFault, SimulatedLatency};
pub use ledger_snapshot::{
    AdmittedTotals, AnswerUsage, BilledTotals, DeploymentWindow, DuplicateBilling, LedgerSnapshot,
    RefusalCounts, TierTotals,
};
pub use meter::{CountedTokens, HeaderStyle, MeterKind, MeterRules};
pub use profile::{OutageKind, ProfileSetting};
pub use quota_status::{NEVER_RETRY_AFTER, QuotaWindow};
pub use settings::{DEFAULT_DIMENSIONS, DEFAULT_MAX_OUTPUT, SimulatorSettings};
pub use spec::{BadSpec, ProfileSpec, ScheduledChange};

use service::SimulatorService;

/// Running simulator; dropping it stops it.
#[derive(Debug)]
pub struct Simulator {
    addr: SocketAddr,
    service: Arc<SimulatorService>,
    /// Task that accepts connections and applies scheduled changes.
    running: JoinHandle<()>,
}

/// Starts a simulator on `addr`; port 0 picks a free one. Invalid settings fail before the port is
/// bound, with a [`BadSimulatorSettings`] inside the error.
pub async fn start(addr: SocketAddr, settings: SimulatorSettings) -> io::Result<Simulator> {
    settings.check().map_err(io::Error::other)?;
    let region = HeaderValue::from_str(&settings.region).map_err(io::Error::other)?;
    let listener = TcpListener::bind(addr).await?;
    let addr = listener.local_addr()?;
    let service = Arc::new(SimulatorService::new(settings, region).map_err(io::Error::other)?);
    let run = |service: Arc<SimulatorService>| async move {
        tokio::join!(connection::accept(listener, service.clone()), service.run_schedule());
    };
    let running = tokio::spawn(run(service.clone()));
    Ok(Simulator { addr, service, running })
}

impl Simulator {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns a snapshot of the ledger.
    pub fn ledger(&self) -> LedgerSnapshot {
        self.service.ledger()
    }

    /// Resets the ledger, attempt counts included; quotas keep their state.
    pub fn reset_ledger(&self) {
        self.service.reset_ledger();
    }

    /// Changes the quota of every deployment from now on; existing bookings stay.
    pub fn set_quota(&self, tpm: Option<u64>, rpm: Option<u64>) {
        let limits = [ProfileSetting::Tpm(tpm), ProfileSetting::Rpm(rpm)];
        self.change(None, &limits).expect("every profile stays sound with any limits");
    }

    /// Applies settings to one deployment, or to all present and future ones, from now on: all of
    /// the settings or none.
    pub fn change(
        &self,
        name: Option<&str>,
        settings: &[ProfileSetting],
    ) -> Result<(), BadSimulatorSettings> {
        self.service.change(name, settings)
    }

    /// Closes the port and every connection, even with requests in flight.
    pub async fn shutdown(mut self) {
        self.running.abort();
        // The task was aborted, so a join error is expected.
        let _ = (&mut self.running).await;
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        self.running.abort();
    }
}
