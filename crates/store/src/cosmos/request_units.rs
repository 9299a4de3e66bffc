//! Request units that the calls to the database were charged, summed by operation.

use std::sync::atomic::{AtomicU64, Ordering};

/// Purpose of a charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CosmosOperation {
    Record,
    LookUp,
    Outcomes,
    Totals,
    Usage,
    Batches,
    Budgets,
    Payloads,
    Shares,
    Notes,
}

impl CosmosOperation {
    pub const ALL: [Self; 10] = [
        Self::Record,
        Self::LookUp,
        Self::Outcomes,
        Self::Totals,
        Self::Usage,
        Self::Batches,
        Self::Budgets,
        Self::Payloads,
        Self::Shares,
        Self::Notes,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::LookUp => "look_up",
            Self::Outcomes => "outcomes",
            Self::Totals => "totals",
            Self::Usage => "usage",
            Self::Batches => "batches",
            Self::Budgets => "budgets",
            Self::Payloads => "payloads",
            Self::Shares => "shares",
            Self::Notes => "notes",
        }
    }
}

/// Request units that one store has spent since it was opened; refused calls cost too.
#[derive(Debug, Default)]
pub struct RequestUnits {
    /// In hundredths: the service bills with two decimals.
    spent: [AtomicU64; CosmosOperation::ALL.len()],
}

impl RequestUnits {
    pub fn of(&self, operation: CosmosOperation) -> f64 {
        self.spent[operation as usize].load(Ordering::Relaxed) as f64 / 100.0
    }

    pub fn total(&self) -> f64 {
        CosmosOperation::ALL.into_iter().map(|operation| self.of(operation)).sum()
    }

    pub(super) fn add(&self, operation: CosmosOperation, charge: f64) {
        // The cast saturates, so that a nonsensical charge can't wrap the sum around.
        let hundredths = (charge * 100.0).round() as u64;
        self.spent[operation as usize].fetch_add(hundredths, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_are_summed_by_operation() {
        let units = RequestUnits::default();
        units.add(CosmosOperation::Record, 5.71);
        units.add(CosmosOperation::Record, 5.71);
        units.add(CosmosOperation::LookUp, 1.0);
        assert!((units.of(CosmosOperation::Record) - 11.42).abs() < 1e-9);
        assert!((units.total() - 12.42).abs() < 1e-9);
    }

    #[test]
    fn every_operation_has_its_own_place() {
        for (place, operation) in CosmosOperation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, place, "{}", operation.as_str());
        }
    }
}
