//! One invocation for a night, from its lease to its report.

use super::night_backend::{NightBackend, finish_after_worker, worker_exit};
use crate::cli::count_bar::CountBar;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::{DocumentsArgs, text};
use crate::cli::{CommandError, ExitStatus, interrupt, print, say, webhook_task};
use crate::config::Config;
use control::{self, ControlError};
use documents::collect::{DocumentReader, collect_documents};
use documents::history::{NightHistory, prune_ledger};
use documents::night::{NightError, NightLease, NightOptions, NightStart};
use documents::requests::{NightRequests, RequestTags};
use documents::run::{NightExit, NightRunner};
use documents::summary::{NightSummary, RowTally};
use documents::{Recipe, ledger::NightLedger};
use domain::job::BatchId;
use domain::prices::Prices;
use intake;
use plan::{self, CallProfile, PlanInputs};
use queue::Queue;
use store::Store;

/// One invocation for a night.
pub(super) struct NightCommand<'a> {
    pub(super) args: &'a DocumentsArgs,
    pub(super) config: &'a Config,
    pub(super) recipe: &'a Arc<Recipe>,
    pub(super) reader: &'a DocumentReader<'a>,
    pub(super) prices: Prices,
}

impl NightCommand<'_> {
    pub(super) async fn run(self) -> Result<ExitStatus, CommandError> {
        let stop = interrupt::stop_on_signals().map_err(CommandError::internal)?;
        let place = NightBackend::open(self.config, self.args.run).await?;
        let store = place.store();
        let wanted = self.options()?;
        let lease = match NightLease::acquire(store.clone(), &self.recipe.name, self.args.run).await
        {
            Err(error @ NightError::InProgress { .. }) => {
                say(&format!("nothing to do here: {error}"));
                return Ok(ExitStatus::AllDone);
            }
            taken => Arc::new(taken?),
        };
        let done = CancellationToken::new();
        let holding = done.clone().drop_guard();
        let keeping = tokio::spawn({
            let hold = lease.clone();
            async move { hold.renew_until(done).await }
        });
        let mut begun = lease.begin(&wanted).await?;
        let confirmed =
            prune_ledger(&mut begun.ledger, store.as_ref(), self.args.retry_failed).await;
        confirmed?;
        let ended = self.run_night(&place, &begun, &lease, &stop).await;
        let is_closed = matches!(ended, Ok((_, true)));
        let released = if is_closed { Ok(()) } else { lease.release().await };
        drop(holding);
        keeping.await?;
        place.close().await;
        let (exit, _) = ended?;
        if is_closed {
            webhook_task::notify_once(&self.config.webhook, store).await?;
        }
        released?;
        Ok(exit)
    }

    fn options(&self) -> Result<NightOptions, CommandError> {
        let when = &self.args.deadline;
        let zone = plan::zone(when.time_zone.as_deref()).map_err(CommandError::usage)?;
        let now = Timestamp::now();
        let finish_by = when.finish_by.map(|due| due.after(now, &zone));
        if finish_by.is_some_and(|by| by <= now) {
            return Err(CommandError::usage_text("--finish-by is already past"));
        }
        // A night is named after the date of its morning.
        let date = finish_by.unwrap_or(now).to_zoned_datetime(zone).date();
        Ok(NightOptions { batch: self.args.batch.clone(), finish_by, date })
    }

    /// Runs the night to its end, or as far as it goes; returns whether it is closed.
    async fn run_night(
        &self,
        place: &NightBackend,
        begun: &NightStart,
        lease: &NightLease,
        stop: &CancellationToken,
    ) -> Result<(ExitStatus, bool), CommandError> {
        let NightStart { night, is_resumed: goes_on, unclosed: others, ledger } = begun;
        let store = place.store();
        say(&format!(
            "night {}{}",
            night.batch,
            if *goes_on { ", which is open: it is resumed" } else { "" }
        ));
        cancel_unclosed(store.as_ref(), others).await?;
        let history = NightHistory {
            store: store.as_ref(),
            ledger,
            unclosed: others,
            schema: self.recipe.schema.as_ref(),
        };
        let tags = RequestTags { document: String::new(), recipe: self.recipe.name.clone() };
        let mut requests =
            NightRequests::new(&self.reader.scratch).map_err(CommandError::internal)?;
        let shown = CountBar::start("documents read", 0);
        let seen = |count: usize, all: usize| shown.set_with_total(count as u64, all as u64);
        let documents =
            collect_documents(self.reader, &history, &mut requests, &tags, seen).await?;
        drop(shown);
        if !self.fits_deadline(&requests, night.finish_by).await? {
            return Ok((ExitStatus::SomeFailed, false));
        }
        let queue = place.queue(self.config, &night.batch).await?;
        let batches = ledger.batches.iter().chain(others).chain([&night.batch]).cloned();
        let batches: Vec<_> = batches.collect();
        let mut runner = NightRunner {
            recipe: self.recipe,
            queue: queue.as_ref(),
            store: store.as_ref(),
            history: &history,
            batch: night.batch.clone(),
            batch_index: u16::try_from(batches.len() - 1).map_err(CommandError::internal)?,
            batches,
            reading: self.reading_with_deadline(night.finish_by),
            tags,
            grace: Duration::from_secs(self.config.worker.request_timeout_seconds),
            requests,
            documents,
            invalid: 0,
        };
        let finish = self.work(&mut runner, place, &queue, lease, stop).await?;
        self.conclude(finish, &mut runner, begun, lease).await
    }

    /// Reports how the run ended; if the night is over, writes its table and closes it.
    async fn conclude(
        &self,
        finish: NightExit,
        runner: &mut NightRunner<'_>,
        begun: &NightStart,
        lease: &NightLease,
    ) -> Result<(ExitStatus, bool), CommandError> {
        match finish {
            NightExit::Complete | NightExit::DeadlinePassed | NightExit::Cancelled => {}
            NightExit::Stopped => {
                say("stopped: nothing is lost; start it again to resume");
                return Ok((ExitStatus::Interrupted, false));
            }
            NightExit::Enqueued => {
                let asked = runner.requests.added().len();
                say(&format!(
                    "{asked} prompts are in the queue; start it again for those that follow"
                ));
                return Ok((ExitStatus::AllDone, false));
            }
        }
        let morning = self.finish(runner, begun, lease).await?;
        Ok((self.print_summary(&morning)?, true))
    }

    /// Returns the rules for reading requests as jobs.
    fn reading_with_deadline(&self, deadline: Option<Timestamp>) -> intake::LineOptions {
        let terms = intake::BatchTerms { deadline, ..intake::BatchTerms::default() };
        intake::LineOptions { terms, ..self.config.reading() }
    }

    /// Writes the table and closes the night.
    async fn finish(
        &self,
        runner: &mut NightRunner<'_>,
        NightStart { night, ledger, .. }: &NightStart,
        lease: &NightLease,
    ) -> Result<NightSummary, CommandError> {
        let mut tally = RowTally::default();
        let table = self.args.table.as_deref();
        let written = runner.write_table(table, |row| tally.add(row)).await;
        written?;
        let times = (night.begun_at, night.finish_by);
        let morning = runner.summary(tally, &self.prices, times).await;
        lease.close(&next_ledger(runner, ledger, self.recipe)).await?;
        Ok(morning?)
    }

    fn print_summary(&self, morning: &NightSummary) -> Result<ExitStatus, CommandError> {
        if self.args.json {
            print(&serde_json::to_string(morning)?)?;
        }
        text::say_summary(morning, &self.prices);
        let is_whole =
            morning.rows.failed + morning.rows.unfinished + morning.documents.unread == 0;
        Ok(if is_whole { ExitStatus::AllDone } else { ExitStatus::SomeFailed })
    }

    /// Returns whether the night may begin, by a plan of its prompts against the quota.
    async fn fits_deadline(
        &self,
        requests: &NightRequests,
        finish_by: Option<Timestamp>,
    ) -> Result<bool, CommandError> {
        let Some(by) = finish_by.filter(|_| !requests.added().is_empty()) else { return Ok(true) };
        if self.config.deployments.is_empty() {
            say("no deployment is configured here, so completion in time can't be forecast");
            return Ok(true);
        }
        let path = requests.path().to_owned();
        let (reading, prices) = (self.config.reading(), self.prices.clone());
        let members = self.config.members()?;
        let worker = self.config.worker_settings();
        let planning = tokio::task::spawn_blocking(move || {
            let circumstances = PlanInputs {
                members: &members,
                spill_after: worker.spill_after,
                max_held: worker.max_held,
                prices: &prices,
                profile: &CallProfile::default(),
                workers: 1,
                begin: Timestamp::now(),
            };
            plan::forecast(&[intake::InputSource::File(path)], &reading, &circumstances)
        });
        let forecast = planning.await??;
        let left = by.duration_since(Timestamp::now()).as_secs_f64();
        let fits = forecast.seconds.p95 <= left;
        text::say_fit(&forecast, left, fits, self.args.deadline.strict);
        Ok(fits || !self.args.deadline.strict)
    }

    /// Runs the night, with a worker beside it if the backends are embedded.
    async fn work(
        &self,
        runner: &mut NightRunner<'_>,
        place: &NightBackend,
        queue: &Arc<dyn Queue>,
        lease: &NightLease,
        stop: &CancellationToken,
    ) -> Result<NightExit, CommandError> {
        let shown = CountBar::start("answered", 0);
        let seen = |ended, asked| shown.set_with_total(ended, asked);
        let through = CancellationToken::new();
        let parts = (self.config, &self.prices);
        let tokens = [stop.clone(), through.clone()];
        let mut worker = place.worker(parts, queue, runner.batch.clone(), tokens)?;
        let conducted = {
            let conducting = runner.run(!self.args.no_wait, stop, seen);
            tokio::select! {
                finish = conducting => finish.map_err(CommandError::from),
                () = lease.lost.cancelled() => Err(NightError::LeaseLost.into()),
                halt = worker_exit(&mut worker) => finish_after_worker(halt),
            }
        };
        through.cancel();
        if let Some(worker) = worker {
            worker.await??;
        }
        conducted
    }
}

/// Cancels nights that were never closed: prompts still wanted of them are sent by this one.
async fn cancel_unclosed(store: &dyn Store, others: &[BatchId]) -> Result<(), CommandError> {
    for batch in others {
        match control::cancel(store, batch).await {
            Ok(_) => say(&format!("the night {batch} was never finished; this one replaces it")),
            Err(
                ControlError::Done(_) | ControlError::Cancelled(_) | ControlError::NoSuchBatch(_),
            ) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Builds the ledger for the next night.
fn next_ledger(runner: &NightRunner<'_>, before: &NightLedger, recipe: &Recipe) -> NightLedger {
    let mut documents = std::collections::HashMap::new();
    for document in &runner.documents {
        let known = match (&document.unread, before.documents.get(&document.name)) {
            (None, _) => document.to_ledger(),
            (Some(_), Some(known)) => known.clone(),
            (Some(_), None) => continue,
        };
        documents.insert(document.name.clone(), known);
    }
    before.after(recipe.fingerprint(), runner.batches.clone(), documents, &runner.requests)
}
