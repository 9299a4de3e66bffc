//! A night: a recipe's prompts about all documents, from its lease to its report.
//!
//! ```text
//! lease ─▶ begin ─▶ prune ledger ─▶ collect ─▶ fits the deadline? ─▶ run ─▶ table, summary, close
//!                                                                    └─ beside it: our own worker
//! ```
//!
//! The order matters. The lease comes first, so that two starts do not both collect; the ledger is
//! pruned before anything is compared with it; nothing is enqueued before the plan says whether it
//! fits; and the night is closed only when its table is there.

mod backend;
mod documents_setup;
mod error;
mod prompt_file;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::backend::{NightBackend, NightWorker};
pub use self::documents_setup::{DocumentsSetup, DocumentsSetupError};
pub use self::error::NightUseError;
pub use self::prompt_file::{PromptFile, PromptFileError, write_prompts};
use super::forecast::{self, ForecastOptions};
use super::input::InputFiles;
use super::webhook_task;
use crate::config::Config;
use documents::closing::cancel_unclosed;
use documents::collect::{DocumentReader, collect_documents};
use documents::history::{NightHistory, UnclosedNights, prune_ledger};
use documents::night::{NightError, NightKey, NightLease, NightOptions, NightStart};
use documents::requests::{NightRequests, RequestTags};
use documents::run::{NightExit, NightRunner};
use documents::summary::NightSummary;
use domain::job::BatchId;
use domain::prices::Prices;
use intake::{BatchTerms, LineOptions};
use plan::{CallProfile, PlanForecast};
use worker::WorkerExit;

/// Wishes of one start.
pub struct NightRequest {
    pub options: NightOptions,
    /// Works in this process, on the embedded queue and store.
    pub is_embedded: bool,
    /// The simulator answers.
    pub is_simulated: bool,
    /// Repeats prompts that failed on earlier nights.
    pub retry_failed: bool,
    /// Sends nothing if the night can't be done by its deadline.
    pub is_strict: bool,
    /// Waits for the answers.
    pub wait: bool,
    /// File for the table.
    pub table: Option<PathBuf>,
}

/// Events of a night, for whoever watches it.
pub enum NightEvent<'a> {
    Begun {
        batch: &'a BatchId,
        is_resumed: bool,
    },
    /// A night that was never finished is replaced by this one.
    Replaced {
        batch: &'a BatchId,
    },
    Collected {
        documents: usize,
        of: usize,
    },
    /// No deployment is configured here, so completion in time can't be forecast.
    NotForecast,
    Forecast {
        forecast: &'a PlanForecast,
        seconds_left: f64,
        fits: bool,
    },
    Answered {
        requests: u64,
        of: u64,
    },
}

/// End of one start.
#[derive(Debug)]
pub enum NightEnd {
    /// Another process runs the night.
    Elsewhere(NightError),
    /// It can't be done in time, and nothing was sent.
    TooLate,
    /// A stop was requested; the next start resumes.
    Stopped,
    /// These many prompts are in the queue.
    Enqueued { prompts: usize },
    /// Our own worker ended before the night did; the next start resumes.
    WorkerEnded(WorkerExit),
    /// The night is over.
    Closed(Box<NightSummary>),
}

/// One start of a night.
pub struct NightUse<'a> {
    pub request: &'a NightRequest,
    pub config: &'a Config,
    pub reader: &'a DocumentReader<'a>,
    pub prices: &'a Prices,
    pub stop: &'a CancellationToken,
    pub on_event: &'a dyn Fn(NightEvent<'_>),
}

impl NightUse<'_> {
    /// Runs the night to its end, or as far as it goes.
    ///
    /// # Errors
    /// If a backend, the source, the table or our own worker fails; the next start resumes.
    pub async fn run(self) -> Result<NightEnd, NightUseError> {
        let is_embedded = self.request.is_embedded;
        let backend = NightBackend::open(self.config, is_embedded, self.stop.clone()).await?;
        let store = backend.store();
        let recipe = self.reader.recipe.name.clone();
        let key = NightKey { recipe, is_simulated: self.request.is_simulated };
        let lease = match NightLease::acquire(store.clone(), key, is_embedded).await {
            Err(error @ NightError::InProgress { .. }) => return Ok(NightEnd::Elsewhere(error)),
            acquired => Arc::new(acquired?),
        };
        let done = CancellationToken::new();
        let renewing = tokio::spawn({
            let (lease, done) = (lease.clone(), done.clone());
            async move { lease.renew_until(done).await }
        });
        // Ends the renewal on every way out.
        let renewed = done.drop_guard();
        let ended = self.run_leased(&backend, &lease).await;
        let is_closed = matches!(ended, Ok(NightEnd::Closed(_)));
        let released = if is_closed { Ok(()) } else { lease.release().await };
        drop(renewed);
        renewing.await.map_err(|_| NightUseError::Panicked)?;
        backend.close().await;
        let end = ended?;
        if is_closed {
            webhook_task::notify_once(&self.config.webhook, store).await?;
        }
        released?;
        Ok(end)
    }

    async fn run_leased(
        &self,
        backend: &NightBackend,
        lease: &NightLease,
    ) -> Result<NightEnd, NightUseError> {
        let mut start = lease.begin(&self.request.options).await?;
        let store = backend.store();
        prune_ledger(&mut start.ledger, store.as_ref(), self.request.retry_failed).await?;
        let NightStart { night, is_resumed, unclosed, ledger } = &start;
        (self.on_event)(NightEvent::Begun { batch: &night.batch, is_resumed: *is_resumed });
        for batch in cancel_unclosed(store.as_ref(), unclosed).await? {
            (self.on_event)(NightEvent::Replaced { batch: &batch });
        }
        let nights = UnclosedNights { store: store.as_ref(), batches: unclosed };
        let history = NightHistory {
            ledger,
            unclosed: (!unclosed.is_empty()).then_some(nights),
            schema: self.reader.recipe.schema.as_ref(),
        };
        let tags =
            RequestTags { recipe: self.reader.recipe.name.clone(), ..RequestTags::default() };
        let mut requests =
            NightRequests::new(&self.reader.scratch).map_err(NightUseError::Scratch)?;
        let seen = |documents, of| (self.on_event)(NightEvent::Collected { documents, of });
        let documents =
            collect_documents(self.reader, &history, &mut requests, &tags, seen).await?;
        if !self.fits_deadline(&requests, night.finish_by).await? {
            return Ok(NightEnd::TooLate);
        }
        let queue = backend.queue(&night.batch).await?;
        let batches: Vec<_> =
            ledger.batches.iter().chain(unclosed).chain([&night.batch]).cloned().collect();
        let index = u16::try_from(batches.len() - 1).map_err(|_| NightUseError::TooManyNights)?;
        let mut runner = NightRunner {
            recipe: self.reader.recipe,
            queue: queue.as_ref(),
            store: store.as_ref(),
            history: &history,
            batch: night.batch.clone(),
            batch_index: index,
            batches,
            reading: self.line_options(night.finish_by),
            tags,
            grace: self.config.longest_call(),
            requests,
            documents,
            invalid: 0,
        };
        let mut worker = backend.worker(self.config, self.prices, (&queue, &night.batch))?;
        let ended = self.run_beside(&mut worker, &mut runner, lease).await;
        if let Some(worker) = worker {
            worker.end().await?;
        }
        let exit = match ended? {
            RunnerEnd::Night(exit) => exit,
            RunnerEnd::Worker(exit) => return Ok(NightEnd::WorkerEnded(exit)),
        };
        match exit {
            NightExit::Complete | NightExit::DeadlinePassed | NightExit::Cancelled => {}
            NightExit::Stopped => return Ok(NightEnd::Stopped),
            NightExit::Enqueued => {
                return Ok(NightEnd::Enqueued { prompts: runner.requests.added().len() });
            }
        }
        let table = self.request.table.as_deref();
        let summary = runner.close_night(&start, lease, table, self.prices).await?;
        Ok(NightEnd::Closed(Box::new(summary)))
    }

    /// Runs the night until it ends, our own worker does, or another process takes the lease.
    async fn run_beside(
        &self,
        worker: &mut Option<NightWorker>,
        runner: &mut NightRunner<'_>,
        lease: &NightLease,
    ) -> Result<RunnerEnd, NightUseError> {
        let seen = |requests, of| (self.on_event)(NightEvent::Answered { requests, of });
        tokio::select! {
            exit = runner.run(self.request.wait, self.stop, seen) => Ok(RunnerEnd::Night(exit?)),
            () = lease.lost.cancelled() => Err(NightError::LeaseLost.into()),
            exit = NightWorker::ended(worker) => Ok(match exit? {
                // A stop ends both.
                WorkerExit::Drained | WorkerExit::Paused { .. } | WorkerExit::Stopped => {
                    RunnerEnd::Night(NightExit::Stopped)
                }
                exit => RunnerEnd::Worker(exit),
            }),
        }
    }

    /// Returns the rules for reading requests as jobs.
    fn line_options(&self, deadline: Option<Timestamp>) -> LineOptions {
        let terms = BatchTerms { deadline, ..BatchTerms::default() };
        LineOptions { terms, ..self.config.reading() }
    }

    /// Returns whether the night may begin, by a plan of its prompts against the quota.
    async fn fits_deadline(
        &self,
        requests: &NightRequests,
        finish_by: Option<Timestamp>,
    ) -> Result<bool, NightUseError> {
        let Some(by) = finish_by.filter(|_| !requests.added().is_empty()) else { return Ok(true) };
        if self.config.deployments.is_empty() {
            (self.on_event)(NightEvent::NotForecast);
            return Ok(true);
        }
        let (options, scratch) = (self.config.reading(), &self.reader.scratch);
        let input = InputFiles::check(&[requests.path().to_owned()], options, scratch).await?;
        let options = ForecastOptions {
            prices: self.prices.clone(),
            profile: CallProfile::default(),
            workers: 1,
            begin: Timestamp::now(),
        };
        let forecast = forecast::forecast(input, self.config, options, |_| {}).await?;
        let seconds_left = by.duration_since(Timestamp::now()).as_secs_f64();
        let fits = forecast.seconds.p95 <= seconds_left;
        (self.on_event)(NightEvent::Forecast { forecast: &forecast, seconds_left, fits });
        Ok(fits || !self.request.is_strict)
    }
}

/// End of the run, by whichever ended first.
enum RunnerEnd {
    Night(NightExit),
    Worker(WorkerExit),
}
