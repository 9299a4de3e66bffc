//! Storage of outcomes: the seam to every backend.
//!
//! A store keeps at most one outcome a job, the first that arrives; a later writer learns that
//! there is one. That alone makes redelivery harmless. Only a store can make a [`Recorded`], the
//! proof without which a delivery can't be completed.
//!
//! The seam is one trait a noun, each in its own file; [`Store`] is all of them. A caller takes the
//! narrowest that it needs. Backends: [`local`] (SQLite) and [`cosmos`] (Azure Cosmos DB). All pass
//! the one contract suite in `tests/support/src/contract_store.rs`.

#[cfg(feature = "cosmos")]
pub mod cosmos;
pub mod local;

mod batch_store;
mod budget_store;
mod error;
mod kv_lease;
mod kv_store;
mod kv_update;
mod outcome_store;
mod payload_store;
mod record_lease;
mod totals;
mod unstorable;
mod worker_registry;

use serde::Serialize;

pub use self::batch_store::{Batch, BatchSenders, BatchState, BatchStore, EnqueuedInput};
pub use self::budget_store::BudgetStore;
pub use self::error::StoreError;
pub use self::kv_lease::acquire_lease;
pub use self::kv_store::{KvRecord, KvStore};
pub use self::kv_update::{create_record, load_record, parse_record, update_record};
pub use self::outcome_store::{OutcomeReader, OutcomeStore, OutcomeSummary, Recorded, SortOrder};
pub use self::payload_store::{PAYLOAD_TTL, PayloadStore};
pub use self::record_lease::RecordLease;
pub use self::totals::{BatchTotals, DeploymentTotals, FinishCounts, MinuteTotals, RunningTotals};
pub use self::unstorable::UNSTORABLE_CODE;
pub use self::worker_registry::{HEARTBEAT_TTL, WorkerRegistry};

/// Charges of a store that is billed by use, for this process so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoreCharges {
    /// Request units (Azure docs: "Request Units in Azure Cosmos DB"), refused calls included.
    pub request_units: f64,
    /// The same by operation; operations that never happened are absent.
    pub by_operation: Vec<(&'static str, f64)>,
    /// Writes that were throttled for lack of request units, and retried.
    pub throttled: u64,
}

/// Tells what a store has cost this process.
pub trait StoreMeter: Send + Sync {
    /// Returns the charges so far; `None` where nothing is charged.
    fn charges(&self) -> Option<StoreCharges> {
        None
    }
}

/// Everything that a backend keeps.
pub trait Store:
    OutcomeStore
    + OutcomeReader
    + BatchStore
    + BudgetStore
    + PayloadStore
    + WorkerRegistry
    + KvStore
    + StoreMeter
{
}

impl<S> Store for S where
    S: OutcomeStore
        + OutcomeReader
        + BatchStore
        + BudgetStore
        + PayloadStore
        + WorkerRegistry
        + KvStore
        + StoreMeter
{
}
