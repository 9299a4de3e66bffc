//! Uploaded lines become jobs: in the background, by whichever server takes the lease.
//!
//! A lease lies in the store from before its batch is known until all jobs are in the queue. Whoever
//! holds it renews it; a server that dies leaves it to the next one, which begins anew: enqueuing
//! twice adds nothing twice.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::files::{self, get_piece};
use super::notes;
use super::record::{BatchRecord, LineError};
use crate::App;
use domain::job::BatchId;
use intake::{self, Checked, EnqueueError, Enqueued, Reading, Source, Terms};
use store::StoreError;

/// How often it is looked for leases that nobody holds, besides when a batch is created here.
const LOOK: Duration = Duration::from_secs(5);

/// How often files whose time is over are looked for.
const CLEAR: Duration = Duration::from_secs(3600);

/// A lease that was not renewed for so long, in seconds, is anybody's.
const LASTS: i64 = 20;
const RENEW: Duration = Duration::from_secs(5);

/// A lease without a batch is of a request that broke off; after this long, in seconds, it is none.
const ORPHANED_AFTER: i64 = 600;

/// Who takes a batch's jobs in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The uploaded file.
    pub file: String,
    created_at: i64,
    owner: Option<Uuid>,
    until: i64,
}

impl Lease {
    pub(super) fn free(file: String) -> Self {
        Self { file, created_at: notes::now(), owner: None, until: 0 }
    }

    /// Takes it or renews it, if it may be.
    fn hold(&mut self, me: Uuid, now: i64) -> bool {
        let is_free = self.owner == Some(me) || self.until <= now;
        if is_free {
            (self.owner, self.until) = (Some(me), now + LASTS);
        }
        is_free
    }
}

/// Why a batch's jobs are not in the queue.
enum Broken {
    /// They will never be; the caller is told.
    Input(Vec<LineError>),
    /// Somebody cancelled it.
    Cancelled,
    /// Passing: it is tried again.
    Passing(String),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Passing(error.to_string())
    }
}

/// Takes in what is submitted here or left behind, until the server stops.
pub(super) async fn take_in(app: App) {
    let me = Uuid::new_v4();
    let mut clear = interval(CLEAR);
    loop {
        if let Err(error) = take_all(&app, me).await {
            warn!(%error, "can't look for submitted batches; trying again");
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = timeout(LOOK, app.intake.notified()) => {}
            _ = clear.tick() => {
                if let Err(error) = files::remove_expired(app.store.as_ref()).await {
                    warn!(%error, "can't take expired files away; trying again");
                }
            }
        }
    }
}

async fn take_all(app: &App, me: Uuid) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    // The oldest first.
    for (id, _) in notes::list::<Lease>(store, notes::INTAKES).await?.into_iter().rev() {
        if app.stop.is_cancelled() {
            return Ok(());
        }
        let now = notes::now();
        let hold = move |lease: &mut Lease| lease.hold(me, now);
        let lease = notes::change(store, (notes::INTAKES, &id), hold).await?;
        let Some(lease) = lease.filter(|lease| lease.owner == Some(me)) else { continue };
        tokio::select! {
            taken = take(app, &id, &lease) => taken?,
            () = renew(app, &id, me) => {}
            () = app.stop.cancelled() => return Ok(()),
        }
    }
    Ok(())
}

/// Ends only when the lease is somebody else's.
async fn renew(app: &App, id: &str, me: Uuid) {
    let mut ticks = interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = notes::now();
        let hold = move |lease: &mut Lease| lease.hold(me, now);
        match notes::change(app.store.as_ref(), (notes::INTAKES, id), hold).await {
            Ok(Some(lease)) if lease.owner == Some(me) => {}
            Ok(_) => return,
            Err(error) => warn!(%error, "can't renew the lease of a batch's intake"),
        }
    }
}

/// Takes one batch's jobs in, and lets the lease go when that is done or never will be.
async fn take(app: &App, id: &str, lease: &Lease) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    let Some(record) = notes::load::<BatchRecord>(store, notes::BATCHES, id).await? else {
        if notes::now() > lease.created_at + ORPHANED_AFTER {
            store.remove_note(notes::INTAKES, id).await?;
        }
        return Ok(());
    };
    if record.is_to_be_worked() && record.in_progress_at.is_none() {
        let now = notes::now();
        let wrong = match enqueue(app, id, &record).await {
            Ok(jobs) => {
                let begin = move |record: &mut BatchRecord| {
                    record.counts.total = jobs;
                    record.in_progress_at.get_or_insert(now);
                    true
                };
                notes::change(store, (notes::BATCHES, id), begin).await?;
                info!(batch.id = id, jobs, "a submitted batch is in the queue");
                None
            }
            Err(Broken::Input(errors)) => Some(errors),
            Err(Broken::Cancelled) => None,
            Err(Broken::Passing(error)) => {
                warn!(error, batch.id = id, "can't take a batch in; trying again");
                return Ok(());
            }
        };
        if let Some(errors) = wrong {
            let fail = move |record: &mut BatchRecord| record.fail(errors.clone(), now);
            notes::change(store, (notes::BATCHES, id), fail).await?;
        }
    }
    let record = notes::load::<BatchRecord>(store, notes::BATCHES, id).await?;
    if record.is_some_and(|record| record.cancelling_at.is_some()) {
        super::batches::cancel_jobs(store, id).await?;
    }
    store.remove_note(notes::INTAKES, id).await
}

/// Checks all lines, then sends them as jobs; returns how many.
async fn enqueue(app: &App, id: &str, record: &BatchRecord) -> Result<u64, Broken> {
    let source = fetch(app, &record.input_file_id).await?;
    let reading = Reading { terms: terms(record), ..app.config.reading.clone() };
    let (sources, checked) = check(source, reading.clone()).await?;
    if checked.faults > 0 || checked.jobs == 0 {
        return Err(Broken::Input(checked.shown.iter().map(error_of).collect()));
    }
    let Ok(batch) = id.parse::<BatchId>() else { return Err(Broken::Cancelled) };
    match send(app, sources, reading, checked, batch).await? {
        Ok(enqueued) => Ok(enqueued.jobs),
        Err(EnqueueError::Cancelled(_)) => Err(Broken::Cancelled),
        Err(error @ EnqueueError::TooLarge { .. }) => {
            Err(Broken::Input(vec![whole("request_too_large", error.to_string())]))
        }
        Err(error) => Err(Broken::Passing(error.to_string())),
    }
}

/// Sends the jobs from a thread of its own, which reads files, until the server stops.
async fn send(
    app: &App,
    sources: Vec<Source>,
    reading: Reading,
    checked: Checked,
    batch: BatchId,
) -> Result<Result<Enqueued, EnqueueError>, Broken> {
    let (queue, store, stop) = (app.queue.clone(), app.store.clone(), app.stop.clone());
    let runtime = tokio::runtime::Handle::current();
    let sending = tokio::task::spawn_blocking(move || {
        let to = (queue.as_ref(), store.as_ref());
        let sent = intake::enqueue(&sources, &reading, &checked, &batch, to, |_| ());
        runtime.block_on(stop.run_until_cancelled(sent))
    });
    let sent = sending.await.map_err(|error| Broken::Passing(error.to_string()))?;
    sent.ok_or_else(|| Broken::Passing("the server stops".to_owned()))
}

/// Copies an uploaded file to this machine, piece by piece.
async fn fetch(app: &App, file: &str) -> Result<Source, Broken> {
    let store = app.store.as_ref();
    let Some(record) = files::find(store, file).await? else {
        let message = "the input file was deleted, or its time was over".to_owned();
        return Err(Broken::Input(vec![whole("input_file_missing", message)]));
    };
    let failed = |error: std::io::Error| Broken::Passing(format!("no place for a file: {error}"));
    let mut copy = NamedTempFile::new().map_err(failed)?;
    for number in 0..record.pieces {
        let piece = get_piece(store, file, number).await?;
        copy = tokio::task::spawn_blocking(move || copy.write_all(&piece).map(|()| copy))
            .await
            .map_err(|error| Broken::Passing(error.to_string()))?
            .map_err(failed)?;
    }
    Ok(Source::Spooled { file: copy.into(), name: record.filename })
}

async fn check(source: Source, reading: Reading) -> Result<(Vec<Source>, Checked), Broken> {
    let checked = tokio::task::spawn_blocking(move || {
        let sources = vec![source];
        let checked = intake::check(&sources, &reading, std::env::temp_dir());
        checked.map(|checked| (sources, checked))
    });
    let checked = checked.await.map_err(|error| Broken::Passing(error.to_string()))?;
    checked.map_err(|error| Broken::Input(vec![whole("invalid_file", error.to_string())]))
}

fn terms(record: &BatchRecord) -> Terms {
    let metadata = record.metadata.as_ref().filter(|_| !record.is_metadata_empty());
    Terms {
        api: Some(record.endpoint),
        deadline: Timestamp::from_second(record.expires_at).ok(),
        metadata: metadata.and_then(|pairs| serde_json::to_string(pairs).ok()).map(Into::into),
    }
}

fn error_of(fault: &intake::Fault) -> LineError {
    LineError {
        code: fault.what.code().to_owned(),
        line: (fault.line > 0).then_some(fault.line),
        message: fault.what.to_string(),
        param: fault.what.field().map(str::to_owned),
    }
}

/// An error of the file as a whole.
fn whole(code: &str, message: String) -> LineError {
    LineError { code: code.to_owned(), line: None, message, param: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_held_by_one_until_it_runs_out() {
        let (me, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut lease = Lease::free("file-1".into());
        assert!(lease.hold(me, 100));
        assert!(!lease.hold(other, 100 + LASTS - 1));
        assert!(lease.hold(me, 100 + LASTS - 1), "renewed");
        assert!(!lease.hold(other, 100 + LASTS));
        assert!(lease.hold(other, 100 + 2 * LASTS));
    }
}
