//! Turns uploaded lines into jobs, in the background, on the server that takes the lease.
//!
//! A lease is stored from before its batch is known until all jobs are in the queue. Its holder
//! renews it; if that server dies, the next one takes it and starts over: enqueuing is idempotent.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;
use tempfile::NamedTempFile;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};
use uuid::Uuid;

use super::file_record::{self, get_piece};
use super::lease::IntakeLease;
use super::notes;
use super::record::{BatchRecord, LineError};
use crate::AppState;
use domain::job::BatchId;
use intake::{
    self, BatchTerms, CheckReport, EnqueueCounts, EnqueueError, InputSource, LineOptions,
};
use store::StoreError;

/// Interval at which free leases are looked for, besides when a batch is created here.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Interval at which expired files are deleted.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(3600);

const RENEW_INTERVAL: Duration = Duration::from_secs(5);

/// Seconds after which a lease without a batch, left by a request that broke off, is deleted.
const ORPHANED_AFTER: i64 = 600;

/// Reason why a batch's jobs are not in the queue.
enum BatchIntakeError {
    /// Permanent: the batch fails with these errors.
    Input(Vec<LineError>),
    /// The batch was cancelled.
    Cancelled,
    /// Transient: it is retried.
    Transient(String),
}

impl From<StoreError> for BatchIntakeError {
    fn from(error: StoreError) -> Self {
        Self::Transient(error.to_string())
    }
}

/// Enqueues batches submitted here or left behind by another server, until the server stops.
pub(super) async fn run_intake(app: AppState) {
    let me = Uuid::new_v4();
    let mut clear = interval(CLEANUP_INTERVAL);
    loop {
        if let Err(error) = intake_free_leases(&app, me).await {
            warn!(%error, "can't list submitted batches; trying again");
        }
        tokio::select! {
            () = app.stop.cancelled() => return,
            _ = timeout(POLL_INTERVAL, app.batch_submitted.notified()) => {}
            _ = clear.tick() => {
                if let Err(error) = file_record::remove_expired(app.store.as_ref()).await {
                    warn!(%error, "can't delete expired files; trying again");
                }
            }
        }
    }
}

async fn intake_free_leases(app: &AppState, me: Uuid) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    // The oldest first.
    for (id, _) in notes::list::<IntakeLease>(store, notes::INTAKES).await?.into_iter().rev() {
        if app.stop.is_cancelled() {
            return Ok(());
        }
        let now = Timestamp::now();
        let hold = move |lease: &mut IntakeLease| lease.acquire(me, now);
        let lease = notes::update(store, (notes::INTAKES, &id), hold).await?;
        let Some(lease) = lease.filter(|lease| lease.is_held_by(me)) else { continue };
        tokio::select! {
            taken = intake_batch(app, &id, &lease) => taken?,
            () = renew(app, &id, me) => {}
            () = app.stop.cancelled() => return Ok(()),
        }
    }
    Ok(())
}

/// Renews the lease; returns only when another server holds it.
async fn renew(app: &AppState, id: &str, me: Uuid) {
    let mut ticks = interval(RENEW_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let now = Timestamp::now();
        let hold = move |lease: &mut IntakeLease| lease.acquire(me, now);
        match notes::update(app.store.as_ref(), (notes::INTAKES, id), hold).await {
            Ok(Some(lease)) if lease.is_held_by(me) => {}
            Ok(_) => return,
            Err(error) => warn!(%error, "can't renew the lease of a batch's intake"),
        }
    }
}

/// Enqueues one batch's jobs, and deletes the lease when that is done or can never succeed.
async fn intake_batch(app: &AppState, id: &str, lease: &IntakeLease) -> Result<(), StoreError> {
    let store = app.store.as_ref();
    let Some(record) = notes::load::<BatchRecord>(store, notes::BATCHES, id).await? else {
        if notes::now() > lease.created_at + ORPHANED_AFTER {
            store.delete_kv(notes::INTAKES, id).await?;
        }
        return Ok(());
    };
    if record.is_active() && record.in_progress_at.is_none() {
        let now = notes::now();
        let wrong = match enqueue(app, id, &record).await {
            Ok(jobs) => {
                let begin = move |record: &mut BatchRecord| {
                    record.counts.total = jobs;
                    record.in_progress_at.get_or_insert(now);
                    true
                };
                notes::update(store, (notes::BATCHES, id), begin).await?;
                info!(batch.id = id, jobs, "a submitted batch is in the queue");
                None
            }
            Err(BatchIntakeError::Input(errors)) => Some(errors),
            Err(BatchIntakeError::Cancelled) => None,
            Err(BatchIntakeError::Transient(error)) => {
                warn!(error, batch.id = id, "can't enqueue a submitted batch; trying again");
                return Ok(());
            }
        };
        if let Some(errors) = wrong {
            let fail = move |record: &mut BatchRecord| record.fail(errors.clone(), now);
            notes::update(store, (notes::BATCHES, id), fail).await?;
        }
    }
    let record = notes::load::<BatchRecord>(store, notes::BATCHES, id).await?;
    if record.is_some_and(|record| record.cancelling_at.is_some()) {
        super::batches::cancel_jobs(store, id).await?;
    }
    store.delete_kv(notes::INTAKES, id).await
}

/// Checks all lines, then sends them as jobs; returns their number.
async fn enqueue(app: &AppState, id: &str, record: &BatchRecord) -> Result<u64, BatchIntakeError> {
    let source = download(app, &record.input_file_id).await?;
    let reading = LineOptions { terms: terms(record), ..app.config.reading.clone() };
    let (sources, checked) = check(source, reading.clone()).await?;
    if checked.faults > 0 || checked.jobs == 0 {
        return Err(BatchIntakeError::Input(checked.first_faults.iter().map(line_error).collect()));
    }
    let Ok(batch) = id.parse::<BatchId>() else { return Err(BatchIntakeError::Cancelled) };
    match send(app, sources, reading, checked, batch).await? {
        Ok(enqueued) => Ok(enqueued.jobs),
        Err(EnqueueError::Cancelled(_)) => Err(BatchIntakeError::Cancelled),
        Err(error @ EnqueueError::TooLarge { .. }) => {
            Err(BatchIntakeError::Input(vec![file_error("request_too_large", error.to_string())]))
        }
        Err(error) => Err(BatchIntakeError::Transient(error.to_string())),
    }
}

/// Sends the jobs from a blocking thread, since it reads files, until the server stops.
async fn send(
    app: &AppState,
    sources: Vec<InputSource>,
    reading: LineOptions,
    checked: CheckReport,
    batch: BatchId,
) -> Result<Result<EnqueueCounts, EnqueueError>, BatchIntakeError> {
    let (queue, store, stop) = (app.queue.clone(), app.store.clone(), app.stop.clone());
    let runtime = tokio::runtime::Handle::current();
    let sending = tokio::task::spawn_blocking(move || {
        let to = (queue.as_ref(), store.as_ref());
        let sent = intake::enqueue(&sources, &reading, &checked, &batch, to, |_| ());
        runtime.block_on(stop.run_until_cancelled(sent))
    });
    let sent = sending.await.map_err(|error| BatchIntakeError::Transient(error.to_string()))?;
    sent.ok_or_else(|| BatchIntakeError::Transient("the server stops".to_owned()))
}

/// Copies an uploaded file to this machine, piece by piece.
async fn download(app: &AppState, file: &str) -> Result<InputSource, BatchIntakeError> {
    let store = app.store.as_ref();
    let Some(record) = file_record::find(store, file).await? else {
        let message = "the input file was deleted or has expired".to_owned();
        return Err(BatchIntakeError::Input(vec![file_error("input_file_missing", message)]));
    };
    let failed = |error: std::io::Error| {
        BatchIntakeError::Transient(format!("can't write a temporary file: {error}"))
    };
    let mut copy = NamedTempFile::new().map_err(failed)?;
    for number in 0..record.pieces {
        let piece = get_piece(store, file, number).await?;
        copy = tokio::task::spawn_blocking(move || copy.write_all(&piece).map(|()| copy))
            .await
            .map_err(|error| BatchIntakeError::Transient(error.to_string()))?
            .map_err(failed)?;
    }
    Ok(InputSource::Spooled { file: copy.into(), name: record.filename })
}

async fn check(
    source: InputSource,
    reading: LineOptions,
) -> Result<(Vec<InputSource>, CheckReport), BatchIntakeError> {
    let checked = tokio::task::spawn_blocking(move || {
        let sources = vec![source];
        let checked = intake::check(&sources, &reading, std::env::temp_dir());
        checked.map(|checked| (sources, checked))
    });
    let checked = checked.await.map_err(|error| BatchIntakeError::Transient(error.to_string()))?;
    checked.map_err(|error| {
        BatchIntakeError::Input(vec![file_error("invalid_file", error.to_string())])
    })
}

fn terms(record: &BatchRecord) -> BatchTerms {
    let metadata = record.metadata.as_ref().filter(|_| !record.is_metadata_empty());
    BatchTerms {
        api: Some(record.endpoint),
        deadline: Timestamp::from_second(record.expires_at).ok(),
        metadata: metadata.and_then(|pairs| serde_json::to_string(pairs).ok()).map(Into::into),
    }
}

fn line_error(fault: &intake::InputFault) -> LineError {
    LineError {
        code: fault.kind.code().to_owned(),
        line: (fault.line > 0).then_some(fault.line),
        message: fault.kind.to_string(),
        param: fault.kind.field().map(str::to_owned),
    }
}

/// Returns an error of the file as a whole.
fn file_error(code: &str, message: String) -> LineError {
    LineError { code: code.to_owned(), line: None, message, param: None }
}
