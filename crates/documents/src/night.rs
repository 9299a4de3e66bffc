//! The night to run, and the lease on it: a record in the store that all starts of a recipe share.
//!
//! A night is a batch. It is open from its start until its answers are in the ledger; a start that
//! finds an open night resumes it. One process runs it at a time: the others see its lease in the
//! record, and a lease that is not renewed expires.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::ledger::{LedgerError, NightLedger};
use domain::job::BatchId;
use store::{RecordLease, Store, StoreError, load_record, update_record};

/// Duration of a lease without renewal: the holder of an expired one is dead.
pub const LEASE_DURATION: Duration = Duration::from_secs(60);

/// Interval between renewals.
const RENEW_EVERY: Duration = Duration::from_secs(20);

/// Nights of one date that get a name of their own.
const MAX_NIGHTS_A_DAY: u32 = 1_000;

/// Time in which a night without `finish_by` is resumed: two starts within a day are meant to be
/// one night.
const ONE_NIGHT: Duration = Duration::from_secs(20 * 3600);

/// Reason why a night can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum NightError {
    #[error(
        "another promptmill runs this recipe's night; its lease expires at {until:.0} if it is dead"
    )]
    InProgress { until: Timestamp },
    #[error("another promptmill took over this recipe's night")]
    LeaseLost,
    #[error("every name for a night of {0} is taken: name one by --batch")]
    NoName(Date),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A night that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenNight {
    pub batch: BatchId,
    pub begun_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_by: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct NightsRecord {
    /// Payload that holds the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger: Option<String>,
    open: Vec<OpenNight>,
    #[serde(flatten)]
    lease: RecordLease,
}

/// Options of a start.
#[derive(Debug, Clone, Default)]
pub struct NightOptions {
    /// Name of the night; absent: made of the recipe's name and the date.
    pub batch: Option<BatchId>,
    pub finish_by: Option<Timestamp>,
    /// The date that goes into the name.
    pub date: Date,
}

/// Recipe whose nights share a record and a ledger. Those that the simulator answers have their own,
/// so that no night reuses its words.
#[derive(Debug, Clone)]
pub struct NightKey {
    pub recipe: String,
    pub is_simulated: bool,
}

impl From<&str> for NightKey {
    fn from(recipe: &str) -> Self {
        Self { recipe: recipe.to_owned(), is_simulated: false }
    }
}

impl NightKey {
    fn kind(&self) -> &'static str {
        if self.is_simulated { "documents-simulated" } else { "documents" }
    }

    /// Returns the name that a night's batch has.
    fn batch_name(&self, batch: &BatchId) -> BatchId {
        if self.is_simulated { batch.simulated() } else { batch.clone() }
    }
}

/// Lease on a recipe's nights.
pub struct NightLease {
    store: Arc<dyn Store>,
    key: NightKey,
    instance: Uuid,
    /// Cancelled when another process has taken the lease.
    pub lost: CancellationToken,
}

/// Data that a night starts with.
pub struct NightStart {
    pub night: OpenNight,
    /// True if the night was open before.
    pub is_resumed: bool,
    /// Earlier nights that were never closed: their answers are in no ledger.
    pub unclosed: Vec<BatchId>,
    pub ledger: NightLedger,
}

impl NightLease {
    /// Acquires the lease, unless another process holds it. `is_exclusive`: no other process can be
    /// at work, whatever the record says.
    ///
    /// # Errors
    /// If another process holds it, or the store fails.
    pub async fn acquire(
        store: Arc<dyn Store>,
        key: impl Into<NightKey>,
        is_exclusive: bool,
    ) -> Result<Self, NightError> {
        let lease = Self {
            store,
            key: key.into(),
            instance: Uuid::new_v4(),
            lost: CancellationToken::new(),
        };
        let now = Timestamp::now();
        lease
            .change(|nights| {
                if is_exclusive {
                    nights.lease.take(lease.instance, now, LEASE_DURATION);
                    return Ok(());
                }
                let taken = nights.lease.acquire(lease.instance, now, LEASE_DURATION);
                taken.map_err(|until| NightError::InProgress { until })
            })
            .await?;
        Ok(lease)
    }

    /// Begins the night, or resumes the one that is open.
    ///
    /// # Errors
    /// If the record or the ledger can't be read, or the store fails.
    pub async fn begin(&self, options: &NightOptions) -> Result<NightStart, NightError> {
        let nights = self.read().await?;
        let now = Timestamp::now();
        let ledger = match &nights.ledger {
            Some(name) => match self.store.get_payload(name).await? {
                Some(bytes) => NightLedger::read(&bytes)?,
                None => {
                    warn!(
                        "the ledger of earlier nights is gone from the store; all requests are made again"
                    );
                    NightLedger::default()
                }
            },
            None => NightLedger::default(),
        };
        let open = nights.open.iter().find(|open| match &options.batch {
            Some(batch) => open.batch == self.key.batch_name(batch),
            None => is_tonight(open, now),
        });
        let (night, is_resumed) = match open {
            Some(open) => (open.clone(), true),
            None => {
                let batch = match &options.batch {
                    Some(batch) => self.key.batch_name(batch),
                    None => self.name(options.date).await?,
                };
                (OpenNight { batch, begun_at: now, finish_by: options.finish_by }, false)
            }
        };
        let unclosed = nights.open.iter().map(|open| open.batch.clone());
        let unclosed = unclosed.filter(|batch| *batch != night.batch).collect();
        self.change(|nights| {
            if !nights.open.iter().any(|open| open.batch == night.batch) {
                nights.open.push(night.clone());
            }
            self.renew(nights)
        })
        .await?;
        Ok(NightStart { night, is_resumed, unclosed, ledger })
    }

    /// Renews the lease until `done`; cancels [`Self::lost`] if another process took it.
    pub async fn renew_until(&self, done: CancellationToken) {
        let mut tick = tokio::time::interval(RENEW_EVERY);
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                _ = tick.tick() => {}
            }
            match self.change(|nights| self.renew(nights)).await {
                Ok(()) => {}
                Err(NightError::LeaseLost) => return self.lost.cancel(),
                Err(error) => warn!(%error, "could not renew the lease on the night"),
            }
        }
    }

    /// Closes all open nights: their answers are in this ledger.
    ///
    /// # Errors
    /// If the store fails; the night stays open then.
    pub async fn close(&self, ledger: &NightLedger) -> Result<(), NightError> {
        let bytes = ledger.write().map_err(LedgerError::from)?;
        let name = format!("documents.{}.{}", self.key.recipe, Uuid::new_v4());
        self.store.put_payload(&name, Bytes::from(bytes)).await?;
        let before = self.read().await?;
        self.change(|nights| {
            self.renew(nights)?;
            let ledger = Some(name.clone());
            *nights = NightsRecord { ledger, ..NightsRecord::default() };
            Ok(())
        })
        .await?;
        if let Some(old) = before.ledger {
            self.store.delete_payload(&old).await?;
        }
        Ok(())
    }

    /// Releases the lease; the night stays open.
    ///
    /// # Errors
    /// If the store fails; the lease expires by itself then.
    pub async fn release(&self) -> Result<(), NightError> {
        let released = self.change(|nights| {
            self.renew(nights)?;
            nights.lease.release();
            Ok(())
        });
        match released.await {
            Err(NightError::LeaseLost) => Ok(()),
            given => given,
        }
    }

    fn renew(&self, nights: &mut NightsRecord) -> Result<(), NightError> {
        if !nights.lease.is_held_by(self.instance) {
            return Err(NightError::LeaseLost);
        }
        nights.lease.take(self.instance, Timestamp::now(), LEASE_DURATION);
        Ok(())
    }

    /// Returns a name that no batch has: a second night of the same date gets a number.
    async fn name(&self, date: Date) -> Result<BatchId, NightError> {
        let mut name = format!("{}-{date}", self.key.recipe);
        for number in 2..MAX_NIGHTS_A_DAY {
            let batch: BatchId = name.parse().expect("made of what batch names allow");
            let batch = self.key.batch_name(&batch);
            if self.store.batch(&batch).await?.is_none() {
                return Ok(batch);
            }
            name = format!("{}-{date}-{number}", self.key.recipe);
        }
        Err(NightError::NoName(date))
    }

    async fn read(&self) -> Result<NightsRecord, StoreError> {
        Ok(load_record(self.store.as_ref(), (self.key.kind(), &self.key.recipe))
            .await?
            .unwrap_or_default())
    }

    async fn change(
        &self,
        change: impl Fn(&mut NightsRecord) -> Result<(), NightError>,
    ) -> Result<(), NightError> {
        let edit = |nights: &mut Option<NightsRecord>| {
            change(nights.get_or_insert_default()).map(|()| true)
        };
        update_record(self.store.as_ref(), (self.key.kind(), &self.key.recipe), edit)
            .await
            .map(drop)
    }
}

/// Returns true if an open night is to be resumed now.
fn is_tonight(open: &OpenNight, now: Timestamp) -> bool {
    match open.finish_by {
        Some(by) => now < by,
        None => now < open.begun_at + ONE_NIGHT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use state::sqlite::Database;
    use store::local::LocalStore;

    fn store(folder: &tempfile::TempDir) -> Arc<dyn Store> {
        Arc::new(LocalStore::new(Database::open(folder.path()).unwrap()))
    }

    fn wanted() -> NightOptions {
        NightOptions { date: jiff::civil::date(2026, 11, 29), ..NightOptions::default() }
    }

    #[tokio::test]
    async fn one_conducts_at_a_time_and_who_is_second_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let first = NightLease::acquire(store.clone(), "r", false).await.unwrap();
        let begun = first.begin(&wanted()).await.unwrap();
        assert_eq!((begun.night.batch.as_str(), begun.is_resumed), ("r-2026-11-29", false));
        let refused = NightLease::acquire(store.clone(), "r", false).await.err().unwrap();
        assert!(matches!(refused, NightError::InProgress { .. }), "{refused}");
        assert!(NightLease::acquire(store.clone(), "other", false).await.is_ok());
        let second = NightLease::acquire(store.clone(), "r", true).await.unwrap();
        let begun = second.begin(&wanted()).await.unwrap();
        assert_eq!((begun.night.batch.as_str(), begun.is_resumed), ("r-2026-11-29", true));
        let lost = first.close(&NightLedger::default()).await.unwrap_err();
        assert!(matches!(lost, NightError::LeaseLost), "{lost}");
        first.renew_until(CancellationToken::new()).await;
        assert!(first.lost.is_cancelled());
        second.release().await.unwrap();
        let third = NightLease::acquire(store, "r", false).await.unwrap();
        assert!(third.begin(&wanted()).await.unwrap().is_resumed);
    }

    #[tokio::test]
    async fn a_closed_night_hands_its_ledger_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let hold = NightLease::acquire(store.clone(), "r", false).await.unwrap();
        hold.begin(&wanted()).await.unwrap();
        let ledger = NightLedger { fingerprint: "f".into(), ..NightLedger::default() };
        hold.close(&ledger).await.unwrap();
        let next = NightLease::acquire(store.clone(), "r", false).await.unwrap();
        let begun = next.begin(&wanted()).await.unwrap();
        assert_eq!((begun.ledger.fingerprint.as_str(), begun.is_resumed), ("f", false));
        let named = NightOptions { batch: Some("mine".parse().unwrap()), ..wanted() };
        let begun = next.begin(&named).await.unwrap();
        assert_eq!(begun.unclosed, ["r-2026-11-29".parse().unwrap()]);
    }

    #[test]
    fn a_night_ends_with_the_time_it_is_wanted_by() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let begun_at = at("2026-11-28T22:00:00Z");
        let open = |finish_by| OpenNight { batch: "b".parse().unwrap(), begun_at, finish_by };
        let by = open(Some(at("2026-11-29T06:00:00Z")));
        assert!(is_tonight(&by, at("2026-11-29T05:59:00Z")));
        assert!(!is_tonight(&by, at("2026-11-29T06:01:00Z")));
        assert!(is_tonight(&open(None), at("2026-11-29T17:00:00Z")));
        assert!(!is_tonight(&open(None), at("2026-11-29T19:00:00Z")));
    }
}
