//! Which night it is, and who conducts it: a note in the store that all starts of a recipe share.
//!
//! A night is a batch. It is open from its start until its answers are in the ledger; a start that
//! finds an open night goes on with it. One process conducts at a time: the others see its hold on the
//! note, and a hold that is not renewed runs out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::ledger::{Ledger, LedgerError};
use domain::job::BatchId;
use store::{self, Store, StoreError};

/// The notes' kind.
const KIND: &str = "documents";

/// A hold that was not renewed for so long is no more: its holder is dead.
pub const HOLD: Duration = Duration::from_secs(60);

/// How often it is renewed.
const RENEW: Duration = Duration::from_secs(20);

/// A night without a time to be finished by is gone on with for so long: what is begun twice within a
/// day is meant to be one.
const ONE_NIGHT: Duration = Duration::from_secs(20 * 3600);

/// Tries to change a note that others change as well.
const TRIES: usize = 20;

/// Why a night can't begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum NightError {
    #[error(
        "another promptmill conducts this recipe's night; its hold runs out at {until:.0} if it is dead"
    )]
    AtWork { until: Timestamp },
    #[error("another promptmill took this recipe's night over")]
    TakenOver,
    #[error("the note of this recipe's nights can't be read: {0}")]
    Note(#[from] serde_json::Error),
    #[error("the note of this recipe's nights is changed by others all the time")]
    Contended,
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A night that is not closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    pub batch: BatchId,
    pub begun_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_by: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct Nights {
    /// The payload that holds the ledger.
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger: Option<String>,
    open: Vec<Open>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_until: Option<Timestamp>,
}

/// What a start is asked for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The night's name; absent: of the recipe and the date.
    pub batch: Option<BatchId>,
    pub finish_by: Option<Timestamp>,
    /// The date that goes into the name.
    pub date: Date,
}

/// The hold on a recipe's nights.
pub struct Hold {
    store: Arc<dyn Store>,
    recipe: String,
    instance: Uuid,
    /// Cancelled when somebody else holds them.
    pub lost: CancellationToken,
}

/// What a night begins with.
pub struct Begun {
    pub night: Open,
    /// Whether it was open before.
    pub goes_on: bool,
    /// Earlier nights that were never closed: their answers are in no ledger.
    pub others: Vec<BatchId>,
    pub ledger: Ledger,
}

impl Hold {
    /// Takes the hold, unless somebody else has it. `alone`: nobody else can be at work, whatever the
    /// note says.
    ///
    /// # Errors
    /// If somebody has, or what the store said.
    pub async fn take(
        store: Arc<dyn Store>,
        recipe: &str,
        alone: bool,
    ) -> Result<Self, NightError> {
        let hold = Self {
            store,
            recipe: recipe.to_owned(),
            instance: Uuid::new_v4(),
            lost: CancellationToken::new(),
        };
        let now = Timestamp::now();
        hold.change(|nights| {
            match nights.held_until {
                Some(until) if until > now && nights.holder.is_some() && !alone => {
                    return Err(NightError::AtWork { until });
                }
                _ => {}
            }
            nights.holder = Some(hold.instance);
            nights.held_until = Some(now + HOLD);
            Ok(())
        })
        .await?;
        Ok(hold)
    }

    /// Begins the night, or goes on with the one that is open.
    ///
    /// # Errors
    /// If what is known can't be read, or what the store said.
    pub async fn begin(&self, wanted: &Wanted) -> Result<Begun, NightError> {
        let (nights, _) = self.read().await?;
        let now = Timestamp::now();
        let ledger = match &nights.ledger {
            Some(name) => match self.store.get_payload(name).await? {
                Some(bytes) => Ledger::read(&bytes)?,
                None => {
                    warn!(
                        "what is known of earlier nights is gone from the store; all is asked anew"
                    );
                    Ledger::default()
                }
            },
            None => Ledger::default(),
        };
        let open = nights.open.iter().find(|open| match &wanted.batch {
            Some(batch) => open.batch == *batch,
            None => is_tonight(open, now),
        });
        let (night, goes_on) = match open {
            Some(open) => (open.clone(), true),
            None => {
                let batch = match &wanted.batch {
                    Some(batch) => batch.clone(),
                    None => self.name(wanted.date).await?,
                };
                (Open { batch, begun_at: now, finish_by: wanted.finish_by }, false)
            }
        };
        let others = nights.open.iter().map(|open| open.batch.clone());
        let others = others.filter(|batch| *batch != night.batch).collect();
        self.change(|nights| {
            if !nights.open.iter().any(|open| open.batch == night.batch) {
                nights.open.push(night.clone());
            }
            self.keep(nights)
        })
        .await?;
        Ok(Begun { night, goes_on, others, ledger })
    }

    /// Renews the hold until `done`; [`Self::lost`] tells if somebody took it.
    pub async fn keep_until(&self, done: CancellationToken) {
        let mut tick = tokio::time::interval(RENEW);
        loop {
            tokio::select! {
                () = done.cancelled() => return,
                _ = tick.tick() => {}
            }
            match self.change(|nights| self.keep(nights)).await {
                Ok(()) => {}
                Err(NightError::TakenOver) => return self.lost.cancel(),
                Err(error) => warn!(%error, "could not renew the hold on the night"),
            }
        }
    }

    /// Closes all open nights: what they know is in this ledger.
    ///
    /// # Errors
    /// What the store said; the night stays open then.
    pub async fn close(&self, ledger: &Ledger) -> Result<(), NightError> {
        let bytes = ledger.write().map_err(LedgerError::from)?;
        let name = format!("documents.{}.{}", self.recipe, Uuid::new_v4());
        self.store.put_payload(&name, Bytes::from(bytes)).await?;
        let (before, _) = self.read().await?;
        self.change(|nights| {
            self.keep(nights)?;
            let ledger = Some(name.clone());
            *nights = Nights { ledger, ..Nights::default() };
            Ok(())
        })
        .await?;
        if let Some(old) = before.ledger {
            self.store.delete_payload(&old).await?;
        }
        Ok(())
    }

    /// Gives the hold back, the night open.
    ///
    /// # Errors
    /// What the store said; the hold runs out by itself then.
    pub async fn release(&self) -> Result<(), NightError> {
        let given = self.change(|nights| {
            self.keep(nights)?;
            (nights.holder, nights.held_until) = (None, None);
            Ok(())
        });
        match given.await {
            Err(NightError::TakenOver) => Ok(()),
            given => given,
        }
    }

    fn keep(&self, nights: &mut Nights) -> Result<(), NightError> {
        if nights.holder != Some(self.instance) {
            return Err(NightError::TakenOver);
        }
        nights.held_until = Some(Timestamp::now() + HOLD);
        Ok(())
    }

    /// A name that no batch has: a second night of the same date gets a number.
    async fn name(&self, date: Date) -> Result<BatchId, NightError> {
        let mut name = format!("{}-{date}", self.recipe);
        for number in 2.. {
            let batch: BatchId = name.parse().expect("made of what batch names allow");
            if self.store.batch(&batch).await?.is_none() {
                return Ok(batch);
            }
            name = format!("{}-{date}-{number}", self.recipe);
        }
        Err(NightError::Contended)
    }

    async fn read(&self) -> Result<(Nights, Option<String>), NightError> {
        let text = self.store.note(KIND, &self.recipe).await?;
        let nights = text.as_deref().map(serde_json::from_str).transpose()?;
        Ok((nights.unwrap_or_default(), text))
    }

    async fn change(
        &self,
        change: impl Fn(&mut Nights) -> Result<(), NightError>,
    ) -> Result<(), NightError> {
        for _ in 0..TRIES {
            let (mut nights, was) = self.read().await?;
            change(&mut nights)?;
            let json = serde_json::to_string(&nights)?;
            let note = store::Note { kind: KIND.into(), id: self.recipe.clone(), json };
            if self.store.put_note(&note, was.as_deref()).await? {
                return Ok(());
            }
        }
        Err(NightError::Contended)
    }
}

/// Whether an open night is gone on with now.
fn is_tonight(open: &Open, now: Timestamp) -> bool {
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

    fn wanted() -> Wanted {
        Wanted { date: jiff::civil::date(2026, 11, 29), ..Wanted::default() }
    }

    #[tokio::test]
    async fn one_conducts_at_a_time_and_who_is_second_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let first = Hold::take(store.clone(), "r", false).await.unwrap();
        let begun = first.begin(&wanted()).await.unwrap();
        assert_eq!((begun.night.batch.as_str(), begun.goes_on), ("r-2026-11-29", false));
        let refused = Hold::take(store.clone(), "r", false).await.err().unwrap();
        assert!(matches!(refused, NightError::AtWork { .. }), "{refused}");
        assert!(Hold::take(store.clone(), "other", false).await.is_ok());
        let second = Hold::take(store.clone(), "r", true).await.unwrap();
        let begun = second.begin(&wanted()).await.unwrap();
        assert_eq!((begun.night.batch.as_str(), begun.goes_on), ("r-2026-11-29", true));
        let lost = first.close(&Ledger::default()).await.unwrap_err();
        assert!(matches!(lost, NightError::TakenOver), "{lost}");
        first.keep_until(CancellationToken::new()).await;
        assert!(first.lost.is_cancelled());
        second.release().await.unwrap();
        let third = Hold::take(store, "r", false).await.unwrap();
        assert!(third.begin(&wanted()).await.unwrap().goes_on);
    }

    #[tokio::test]
    async fn a_closed_night_hands_its_ledger_on() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder);
        let hold = Hold::take(store.clone(), "r", false).await.unwrap();
        hold.begin(&wanted()).await.unwrap();
        let ledger = Ledger { fingerprint: "f".into(), ..Ledger::default() };
        hold.close(&ledger).await.unwrap();
        let next = Hold::take(store.clone(), "r", false).await.unwrap();
        let begun = next.begin(&wanted()).await.unwrap();
        assert_eq!((begun.ledger.fingerprint.as_str(), begun.goes_on), ("f", false));
        let named = Wanted { batch: Some("mine".parse().unwrap()), ..wanted() };
        let begun = next.begin(&named).await.unwrap();
        assert_eq!(begun.others, ["r-2026-11-29".parse().unwrap()]);
    }

    #[test]
    fn a_night_ends_with_the_time_it_is_wanted_by() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let begun_at = at("2026-11-28T22:00:00Z");
        let open = |finish_by| Open { batch: "b".parse().unwrap(), begun_at, finish_by };
        let by = open(Some(at("2026-11-29T06:00:00Z")));
        assert!(is_tonight(&by, at("2026-11-29T05:59:00Z")));
        assert!(!is_tonight(&by, at("2026-11-29T06:01:00Z")));
        assert!(is_tonight(&open(None), at("2026-11-29T17:00:00Z")));
        assert!(!is_tonight(&open(None), at("2026-11-29T19:00:00Z")));
    }
}
