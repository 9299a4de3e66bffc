//! The one place where a configuration becomes a queue and a store.
//!
//! Whoever gets them sees the two seams only; which backend is behind them is not told.

use std::sync::Arc;

use crate::config::{self, Config};
use crate::queue::local::LocalQueue;
use crate::queue::service_bus::{self, SettingsError};
use crate::queue::{Queue, QueueError};
use crate::sqlite::{Database, SqliteError};
use crate::state::{StateDir, StateError};
use crate::store::cosmos::{self, CosmosStore};
use crate::store::local::LocalStore;
use crate::store::{Store, StoreError};

/// Why a backend can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    #[error("queue.service_bus: {0}")]
    ServiceBus(#[from] SettingsError),
    #[error("queue.service_bus.credential: the identity can't be used here: {0}")]
    Identity(#[from] azure_core::Error),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackendError {
    /// Whether waiting may help; all else is a matter of configuration.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Queue(error) => matches!(error, QueueError::Unavailable(_)),
            Self::Store(error) => matches!(error, StoreError::Unavailable(_)),
            Self::State(_) | Self::Sqlite(_) | Self::ServiceBus(_) | Self::Identity(_) => false,
        }
    }
}

/// A queue and a store, open.
pub struct Backends {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    /// Keeps a `run`, which would take over our locks, out of the directory that we share.
    _shared: Option<StateDir>,
}

/// Opens both. Needs a running tokio.
///
/// # Errors
/// Says which backend it is and what is wrong.
pub async fn open(config: &Config) -> Result<Backends, BackendError> {
    let shared = uses_state_dir(config).then(|| StateDir::share(&config.state.dir)).transpose()?;
    let queue = open_queue(config)?;
    let store = open_store(config).await?;
    Ok(Backends { queue, store, _shared: shared })
}

/// The queue alone. Service Bus is connected to when it is first used.
///
/// # Errors
/// As [`open`].
pub fn open_queue(config: &Config) -> Result<Arc<dyn Queue>, BackendError> {
    Ok(match &config.queue {
        config::Queue::Local => {
            let database = Database::open(&config.state.dir)?;
            Arc::new(LocalQueue::new(database, config.lock_duration()))
        }
        config::Queue::ServiceBus(settings) => {
            let credential = settings.credential.as_ref().map(|c| c.credential()).transpose()?;
            service_bus::open(settings, credential)?
        }
    })
}

/// The store alone.
///
/// # Errors
/// As [`open`].
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, BackendError> {
    Ok(match &config.store {
        config::Store::Local => Arc::new(LocalStore::new(Database::open(&config.state.dir)?)),
        config::Store::Cosmos(settings) => Arc::new(CosmosStore::connect(settings).await?),
    })
}

/// Creates what is missing where that is ours to create; says what is there now, a line each.
///
/// # Errors
/// As [`open`].
pub async fn init(config: &Config) -> Result<Vec<String>, BackendError> {
    let mut done = Vec::new();
    if uses_state_dir(config) {
        drop(Database::open(&config.state.dir)?);
        done.push(format!("state file {}", config.state.dir.join("promptmill.db").display()));
    }
    if let config::Store::Cosmos(settings) = &config.store {
        cosmos::init(settings).await?;
        done.push(format!(
            "Cosmos DB database '{}' at {} with its containers",
            settings.database, settings.endpoint
        ));
    }
    Ok(done)
}

fn uses_state_dir(config: &Config) -> bool {
    matches!(config.queue, config::Queue::Local) || matches!(config.store, config::Store::Local)
}
