//! One start of a night, from the hold on it to its report.

use super::place::{Place, ended, halted};
use crate::cli::counted::Counted;
use anyhow::anyhow;
use jiff::Timestamp;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use super::{Args, of_gathering, text};
use crate::cli::{Exit, Failure, interrupt, print, say, telling};
use crate::config::Config;
use control::{self, ControlError};
use documents::asks::{Asks, Terms};
use documents::conduct::{ConductError, Conductor, Finish};
use documents::earlier::{Earlier, confirm};
use documents::gather::{Reading, gather};
use documents::morning::{Morning, Tally};
use documents::night::{Begun, Hold, NightError, Wanted};
use documents::table::TableError;
use documents::{Recipe, ledger::Ledger};
use domain::job::BatchId;
use domain::prices::Prices;
use intake;
use plan::{self, Circumstances, Experience};
use queue::Queue;
use store::Store;

/// One start of a night.
pub(super) struct Night<'a> {
    pub(super) args: &'a Args,
    pub(super) config: &'a Config,
    pub(super) recipe: &'a Arc<Recipe>,
    pub(super) reading: &'a Reading<'a>,
    pub(super) prices: Prices,
}

impl Night<'_> {
    pub(super) async fn conduct(self) -> Result<Exit, Failure> {
        let stop = interrupt::stop_on_signals().map_err(Failure::unreachable)?;
        let place = Place::open(self.config, self.args.run).await?;
        let store = place.store();
        let wanted = self.wanted()?;
        let hold = match Hold::take(store.clone(), &self.recipe.name, self.args.run).await {
            Err(error @ NightError::AtWork { .. }) => {
                say(&format!("nothing to do here: {error}"));
                return Ok(Exit::AllDone);
            }
            taken => Arc::new(taken.map_err(of_night)?),
        };
        let done = CancellationToken::new();
        let holding = done.clone().drop_guard();
        let keeping = tokio::spawn({
            let hold = hold.clone();
            async move { hold.keep_until(done).await }
        });
        let mut begun = hold.begin(&wanted).await.map_err(of_night)?;
        let confirmed = confirm(&mut begun.ledger, store.as_ref(), self.args.retry_failed).await;
        confirmed.map_err(Failure::unreachable)?;
        let ended = self.go(&place, &begun, &hold, &stop).await;
        let is_closed = matches!(ended, Ok((_, true)));
        let released = if is_closed { Ok(()) } else { hold.release().await };
        drop(holding);
        keeping.await.map_err(Failure::unreachable)?;
        place.close().await;
        let (exit, _) = ended?;
        if is_closed {
            telling::tell(&self.config.webhook, store).await?;
        }
        released.map_err(of_night)?;
        Ok(exit)
    }

    fn wanted(&self) -> Result<Wanted, Failure> {
        let when = &self.args.when;
        let zone = plan::zone(when.time_zone.as_deref()).map_err(Failure::usage)?;
        let now = Timestamp::now();
        let finish_by = when.finish_by.map(|due| due.after(now, &zone));
        if finish_by.is_some_and(|by| by <= now) {
            return Err(Failure::usage(anyhow!("--finish-by is over already")));
        }
        // A night has the name of its morning.
        let date = finish_by.unwrap_or(now).to_zoned_datetime(zone).date();
        Ok(Wanted { batch: self.args.batch.clone(), finish_by, date })
    }

    /// The night up to its end, or as far as it goes; whether it is closed.
    async fn go(
        &self,
        place: &Place,
        begun: &Begun,
        hold: &Hold,
        stop: &CancellationToken,
    ) -> Result<(Exit, bool), Failure> {
        let Begun { night, goes_on, others, ledger } = begun;
        let store = place.store();
        say(&format!(
            "night {}{}",
            night.batch,
            if *goes_on { ", which is open: it goes on" } else { "" }
        ));
        give_up(store.as_ref(), others).await?;
        let earlier = Earlier {
            store: store.as_ref(),
            ledger,
            open: others,
            schema: self.recipe.schema.as_ref(),
        };
        let terms = Terms { document: String::new(), recipe: self.recipe.name.clone() };
        let mut asks = Asks::new(&self.reading.scratch).map_err(Failure::unreachable)?;
        let shown = Counted::start("documents read", 0);
        let seen = |count: usize, all: usize| shown.set_of(count as u64, all as u64);
        let documents =
            gather(self.reading, &earlier, &mut asks, &terms, seen).await.map_err(of_gathering)?;
        drop(shown);
        if !self.fits(&asks, night.finish_by).await? {
            return Ok((Exit::SomeFailed, false));
        }
        let queue = place.queue(self.config, &night.batch).await?;
        let batches = ledger.batches.iter().chain(others).chain([&night.batch]).cloned();
        let batches: Vec<_> = batches.collect();
        let mut conductor = Conductor {
            recipe: self.recipe,
            queue: queue.as_ref(),
            store: store.as_ref(),
            earlier: &earlier,
            batch: night.batch.clone(),
            tonight: u16::try_from(batches.len() - 1).map_err(Failure::unreachable)?,
            batches,
            reading: self.jobs_by(night.finish_by),
            terms,
            patience: Duration::from_secs(self.config.worker.request_timeout_seconds),
            asks,
            documents,
            unfit: 0,
        };
        let finish = self.work(&mut conductor, place, &queue, hold, stop).await?;
        self.conclude(finish, &mut conductor, begun, hold).await
    }

    /// What is to be said and kept of how the night came to its end.
    async fn conclude(
        &self,
        finish: Finish,
        conductor: &mut Conductor<'_>,
        begun: &Begun,
        hold: &Hold,
    ) -> Result<(Exit, bool), Failure> {
        match finish {
            Finish::Over | Finish::Late | Finish::Cancelled => {}
            Finish::Stopped => {
                say("stopped: nothing is lost; start it again to go on");
                return Ok((Exit::Interrupted, false));
            }
            Finish::Sent => {
                let asked = conductor.asks.asked().len();
                say(&format!("{asked} prompts are in the queue; start it again for what follows"));
                return Ok((Exit::AllDone, false));
            }
        }
        let morning = self.finish(conductor, begun, hold).await?;
        Ok((self.tell(&morning)?, true))
    }

    /// How requests are read as jobs.
    fn jobs_by(&self, deadline: Option<Timestamp>) -> intake::Reading {
        let terms = intake::Terms { deadline, ..intake::Terms::default() };
        intake::Reading { terms, ..self.config.reading() }
    }

    /// Writes the table and closes the night.
    async fn finish(
        &self,
        conductor: &mut Conductor<'_>,
        Begun { night, ledger, .. }: &Begun,
        hold: &Hold,
    ) -> Result<Morning, Failure> {
        let mut tally = Tally::default();
        let table = self.args.table.as_deref();
        let written = conductor.write_table(table, |row| tally.add(row)).await;
        written.map_err(|error| match error {
            TableError::Form(_) => Failure::usage(error),
            error => Failure::unreachable(error),
        })?;
        let times = (night.begun_at, night.finish_by);
        let morning = conductor.morning(tally, &self.prices, times).await;
        hold.close(&known_after(conductor, ledger, self.recipe)).await.map_err(of_night)?;
        morning.map_err(Failure::unreachable)
    }

    fn tell(&self, morning: &Morning) -> Result<Exit, Failure> {
        if self.args.json {
            print(&serde_json::to_string(morning).map_err(Failure::unreachable)?);
        }
        text::say_morning(morning, &self.prices);
        let is_whole =
            morning.rows.failed + morning.rows.unfinished + morning.documents.unread == 0;
        Ok(if is_whole { Exit::AllDone } else { Exit::SomeFailed })
    }

    /// Whether the night may begin: what is asked now is planned against the quota.
    async fn fits(&self, asks: &Asks, finish_by: Option<Timestamp>) -> Result<bool, Failure> {
        let Some(by) = finish_by.filter(|_| !asks.asked().is_empty()) else { return Ok(true) };
        if self.config.deployments.is_empty() {
            say(
                "no deployment is configured here, so it can't be told whether it will be done in time",
            );
            return Ok(true);
        }
        let path = asks.path().to_owned();
        let (reading, prices) = (self.config.reading(), self.prices.clone());
        let members = self.config.members().map_err(Failure::usage)?;
        let worker = self.config.worker();
        let planning = tokio::task::spawn_blocking(move || {
            let circumstances = Circumstances {
                members: &members,
                spill_after: worker.spill_after,
                max_held: worker.max_held,
                prices: &prices,
                experience: &Experience::default(),
                workers: 1,
                begin: Timestamp::now(),
            };
            plan::forecast(&[intake::Source::File(path)], &reading, &circumstances)
        });
        let forecast = planning.await.map_err(Failure::unreachable)?.map_err(Failure::usage)?;
        let left = by.duration_since(Timestamp::now()).as_secs_f64();
        let fits = forecast.seconds.p95 <= left;
        text::say_fit(&forecast, left, fits, self.args.when.strict);
        Ok(fits || !self.args.when.strict)
    }

    /// Lets the night run, with a worker beside it where it is all done here.
    async fn work(
        &self,
        conductor: &mut Conductor<'_>,
        place: &Place,
        queue: &Arc<dyn Queue>,
        hold: &Hold,
        stop: &CancellationToken,
    ) -> Result<Finish, Failure> {
        let shown = Counted::start("answered", 0);
        let seen = |ended, asked| shown.set_of(ended, asked);
        let through = CancellationToken::new();
        let parts = (self.config, &self.prices);
        let tokens = [stop.clone(), through.clone()];
        let mut worker = place.worker(parts, queue, conductor.batch.clone(), tokens)?;
        let conducted = {
            let conducting = conductor.run(!self.args.no_wait, stop, seen);
            tokio::select! {
                finish = conducting => finish.map_err(of_conducting),
                () = hold.lost.cancelled() => Err(of_night(NightError::TakenOver)),
                halt = ended(&mut worker) => halted(halt),
            }
        };
        through.cancel();
        if let Some(worker) = worker {
            worker.await.map_err(Failure::unreachable)?.map_err(Failure::unreachable)?;
        }
        conducted
    }
}

/// What earlier nights left open is not called any more: what is still wanted of it is asked now.
async fn give_up(store: &dyn Store, others: &[BatchId]) -> Result<(), Failure> {
    for batch in others {
        match control::cancel(store, batch).await {
            Ok(_) => {
                say(&format!("the night {batch} was never finished; this one takes its place"))
            }
            Err(
                ControlError::Done(_) | ControlError::Cancelled(_) | ControlError::NoSuchBatch(_),
            ) => {}
            Err(error) => return Err(Failure::unreachable(error)),
        }
    }
    Ok(())
}

/// What the next night is to know.
fn known_after(conductor: &Conductor<'_>, before: &Ledger, recipe: &Recipe) -> Ledger {
    let mut documents = std::collections::HashMap::new();
    for document in &conductor.documents {
        let known = match (&document.unread, before.documents.get(&document.name)) {
            (None, _) => document.known(),
            (Some(_), Some(known)) => known.clone(),
            (Some(_), None) => continue,
        };
        documents.insert(document.name.clone(), known);
    }
    before.after(recipe.fingerprint(), conductor.batches.clone(), documents, &conductor.asks)
}

fn of_conducting(error: ConductError) -> Failure {
    match error {
        ConductError::Gather(error) => of_gathering(error),
        ConductError::Template(_) => Failure::usage(error),
        error => Failure::unreachable(error),
    }
}

fn of_night(error: NightError) -> Failure {
    Failure::unreachable(error)
}
