//! What `bench --pipeline` measures on: the configured queue and store, or fresh embedded ones.
//!
//! Embedded ones are created in a folder of the state directory and removed after: this measures the
//! real disk and touches no existing job.

use std::io;

use tempfile::TempDir;

use crate::backends::{self, BackendError, Backends};
use crate::config::{Config, DeploymentConfig, QueueBackend, StoreBackend};
use bench::pipeline::PipelineSetup;
use worker::{WorkerSettings, WorkerTarget};

/// Reason why there is nothing to measure on.
#[derive(Debug, thiserror::Error)]
pub enum BenchSetupError {
    #[error("can't create a folder in the state directory {directory}")]
    Folder { directory: String, source: io::Error },
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// Queue and store of a measurement.
pub struct BenchBackends {
    pub backends: Backends,
    /// Descriptions of the queue and of the store.
    pub queue: String,
    pub store: String,
    /// Both are embedded: no other worker can be at them.
    pub is_alone: bool,
    /// Removed when the measurement is over.
    _folder: Option<TempDir>,
}

impl BenchBackends {
    /// Opens the configured queue and store; what is embedded of them, anew.
    ///
    /// # Errors
    /// If the folder can't be created, or a backend can't be opened.
    pub async fn open(config: &Config) -> Result<Self, BenchSetupError> {
        let is_local = (
            matches!(config.queue, QueueBackend::Local),
            matches!(config.store, StoreBackend::Local),
        );
        let state = &config.state.dir;
        let mut config = config.clone();
        let folder = match is_local {
            (false, false) => None,
            _ => Some(new_folder(state).map_err(|source| {
                let directory = state.display().to_string();
                BenchSetupError::Folder { directory, source }
            })?),
        };
        if let Some(folder) = &folder {
            folder.path().clone_into(&mut config.state.dir);
        }
        let embedded = || format!("embedded, in {}", state.display());
        Ok(Self {
            queue: match &config.queue {
                QueueBackend::Local => embedded(),
                #[cfg(feature = "azure")]
                QueueBackend::ServiceBus(settings) => format!("Service Bus, '{}'", settings.queue),
            },
            store: match &config.store {
                StoreBackend::Local => embedded(),
                #[cfg(feature = "azure")]
                StoreBackend::Cosmos(settings) => format!("Cosmos DB, '{}'", settings.database),
            },
            is_alone: is_local == (true, true),
            backends: backends::open(&config).await?,
            _folder: folder,
        })
    }

    /// Returns the worker's settings for this measurement.
    pub fn worker_settings(&self, config: &Config) -> WorkerSettings {
        WorkerSettings { shared: !self.is_alone, ..config.worker_settings() }
    }

    /// Describes the measurement for its report.
    pub fn describe(&self, targets: &[WorkerTarget], requests: String, jobs: u64) -> PipelineSetup {
        PipelineSetup {
            queue: self.queue.clone(),
            store: self.store.clone(),
            deployments: targets.iter().map(|target| target.member.name.clone()).collect(),
            requests,
            jobs,
            calls: targets.iter().map(|target| target.member.limits.concurrency).sum(),
        }
    }
}

fn new_folder(state: &std::path::Path) -> io::Result<TempDir> {
    std::fs::create_dir_all(state)?;
    tempfile::Builder::new().prefix("bench-").tempdir_in(state)
}

/// Returns whether people call the deployment by this name, here or at the service.
pub fn has_name(deployment: &DeploymentConfig, name: &str) -> bool {
    deployment.name.as_deref() == Some(name) || deployment.deployment.as_deref() == Some(name)
}
