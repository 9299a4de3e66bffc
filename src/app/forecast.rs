//! A forecast of tokens, cost and time: from input files, the configured deployments, and what
//! earlier calls have shown.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::input::InputFiles;
use crate::backends::{self, BackendError};
use crate::config::{Config, ConfigError};
use bench::pipeline::PipelineReport;
use bench::report::BenchReport;
use domain::job::BatchId;
use domain::prices::Prices;
use plan::{CallProfile, PlanError, PlanForecast, PlanInputs};
use store::StoreError;

/// Reason why there is no forecast.
#[derive(Debug, thiserror::Error)]
pub enum ForecastError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("can't learn from {}: {why}", path.display())]
    Report { path: PathBuf, why: String },
    #[error("batch '{0}' has no answers to learn from")]
    NoAnswers(BatchId),
    #[error("the task that makes the forecast panicked; its message is above")]
    Panicked,
}

/// What a forecast takes beside the input and the configuration.
pub struct ForecastOptions {
    pub prices: Prices,
    /// Learnt and assumed facts about the service.
    pub profile: CallProfile,
    /// Workers on the queue.
    pub workers: usize,
    pub begin: Timestamp,
}

/// Counts the input, and works it in simulated time. Calls `on_counted` with the jobs counted so far.
///
/// # Errors
/// If no deployment is configured, or the input can't be read.
pub async fn forecast(
    input: InputFiles,
    config: &Config,
    options: ForecastOptions,
    on_counted: impl Fn(u64) + Send + 'static,
) -> Result<PlanForecast, ForecastError> {
    let (members, worker) = (config.members()?, config.worker_settings());
    let planning = tokio::task::spawn_blocking(move || {
        let InputFiles { sources, options: reading, report } = &input;
        let counted = plan::count(sources, reading, report, &mut |jobs| on_counted(jobs))?;
        drop(on_counted);
        let inputs = PlanInputs {
            members: &members,
            spill_after: worker.spill_after,
            max_held: worker.max_held,
            prices: &options.prices,
            profile: &options.profile,
            workers: options.workers,
            begin: options.begin,
        };
        plan::forecast_counted(&counted, &inputs)
    });
    Ok(planning.await.map_err(|_| ForecastError::Panicked)??)
}

/// Learns from reports of `bench`, of either kind, and from batches in the store.
///
/// # Errors
/// If a report or a batch has nothing to learn from, or the store fails.
pub async fn learn(
    profile: &mut CallProfile,
    config: &Config,
    reports: &[PathBuf],
    batches: &[BatchId],
) -> Result<(), ForecastError> {
    for path in reports {
        learn_from_report(profile, path)
            .map_err(|why| ForecastError::Report { path: path.clone(), why })?;
    }
    if batches.is_empty() {
        return Ok(());
    }
    let store = backends::open_store(config).await?;
    for batch in batches {
        if plan::learn(profile, store.as_ref(), batch).await? == 0 {
            return Err(ForecastError::NoAnswers(batch.clone()));
        }
    }
    Ok(())
}

fn learn_from_report(profile: &mut CallProfile, path: &Path) -> Result<(), String> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if let Ok(report) = serde_json::from_str::<PipelineReport>(&text) {
        profile.learn_pipeline(&report, &name);
        return Ok(());
    }
    let report: BenchReport = serde_json::from_str(&text)
        .map_err(|_| "it is not a report written by bench --report".to_owned())?;
    if profile.learn_bench(&report, &name) {
        Ok(())
    } else {
        Err("none of its requests was answered".to_owned())
    }
}
