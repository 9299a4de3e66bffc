//! Budget of a batch: the most its calls may cost, and how much of that is committed.
//!
//! Pure. The store keeps one [`Budget`] a batch and applies each [`BudgetClaim`] atomically; a
//! worker claims the worst-case cost of its calls before it makes them, and returns what they did
//! not cost. So `spent <= committed <= allowed` at every moment, whichever process dies.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Billionths in one unit of the currency.
const NANO: u64 = 1_000_000_000;

/// Largest amount that every store keeps exactly: JSON numbers are exact up to 53 bits.
pub const LARGEST_AMOUNT: u64 = 1 << 53;

/// Prefix of a pause's reason when the budget is exhausted.
const EXHAUSTED_PREFIX: &str = "budget of";

/// Unit in which a budget is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BudgetUnit {
    Tokens,
    /// Billionths of this currency, the price table's.
    Money {
        currency: String,
    },
}

/// Most that a batch may cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetLimit {
    pub unit: BudgetUnit,
    /// Amount in the unit's smallest parts.
    pub allowed: u64,
}

/// Amount that is no valid limit.
#[derive(Debug, thiserror::Error)]
#[error("a budget must be more than 0, and at most {most}")]
pub struct BadBudgetLimit {
    most: u64,
}

impl BudgetLimit {
    /// # Errors
    /// If it is nothing, or too much to count exactly.
    pub fn tokens(tokens: u64) -> Result<Self, BadBudgetLimit> {
        match tokens {
            1..=LARGEST_AMOUNT => Ok(Self { unit: BudgetUnit::Tokens, allowed: tokens }),
            _ => Err(BadBudgetLimit { most: LARGEST_AMOUNT }),
        }
    }

    /// # Errors
    /// If it is nothing, or too much to count exactly.
    pub fn money(amount: f64, currency: &str) -> Result<Self, BadBudgetLimit> {
        // The cast saturates, and turns NaN into 0.
        let allowed = (amount * NANO as f64).round() as u64;
        let unit = BudgetUnit::Money { currency: currency.to_owned() };
        match allowed {
            1..=LARGEST_AMOUNT => Ok(Self { unit, allowed }),
            _ => Err(BadBudgetLimit { most: LARGEST_AMOUNT / NANO }),
        }
    }
}

/// Current state of a batch's budget. Amounts are in the unit's smallest parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub unit: BudgetUnit,
    pub allowed: u64,
    /// Amount spent, and reserved for calls in flight and to come.
    pub committed: u64,
    /// Known cost of calls; where it can't be known, what they may have cost.
    pub spent: u64,
}

/// Change of the committed and the spent amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BudgetClaim {
    /// Amount to commit; a negative one is returned.
    pub take: i64,
    /// Part of the committed amount that was spent since the last claim.
    pub spent: u64,
    /// It was spent already: granted even beyond the allowed amount.
    pub is_debt: bool,
}

impl Budget {
    /// Returns a new budget, or the old one with another limit; the old one unchanged if that can't
    /// be.
    #[must_use]
    pub fn with_limit(old: Option<Self>, limit: &BudgetLimit) -> Self {
        let (unit, allowed) = (limit.unit.clone(), limit.allowed);
        match old {
            None => Self { unit, allowed, committed: 0, spent: 0 },
            Some(old) if old.unit == unit && old.committed <= allowed => Self { allowed, ..old },
            Some(old) => old,
        }
    }

    /// Returns the budget after the claim; `None` if it is refused.
    pub fn after(&self, claim: &BudgetClaim) -> Option<Self> {
        let committed = if claim.take < 0 {
            self.committed.saturating_sub(claim.take.unsigned_abs())
        } else {
            self.committed.saturating_add(claim.take.unsigned_abs())
        };
        let is_granted = claim.take <= 0 || claim.is_debt || committed <= self.allowed;
        let spent = self.spent + claim.spent;
        is_granted.then(|| Self { committed, spent, ..self.clone() })
    }

    /// Returns the amount that can still be claimed.
    pub fn unclaimed(&self) -> u64 {
        self.allowed.saturating_sub(self.committed)
    }

    /// Returns the reason for pausing a batch whose next call may cost so much.
    pub fn exhausted_reason(&self, need: u64) -> String {
        let (allowed, cost) = (self.show(self.allowed), self.show(need).without_unit());
        if need > self.allowed {
            return format!(
                "{EXHAUSTED_PREFIX} {allowed}: one call may cost {cost}, more than all of it"
            );
        }
        let committed = self.show(self.committed).without_unit();
        format!(
            "{EXHAUSTED_PREFIX} {allowed}: {committed} spent or reserved, next call may cost {cost}"
        )
    }

    /// Returns the flag of `promptmill resume` that raises it, if the batch is paused for the
    /// budget.
    pub fn raise_flag(&self, paused_for: &str) -> Option<&'static str> {
        let flag = match self.unit {
            BudgetUnit::Tokens => "--token-budget N",
            BudgetUnit::Money { .. } => "--budget AMOUNT",
        };
        paused_for.starts_with(EXHAUSTED_PREFIX).then_some(flag)
    }

    /// Returns an amount in the budget's unit, for display.
    pub fn show(&self, amount: u64) -> BudgetAmount<'_> {
        BudgetAmount { unit: &self.unit, amount }
    }
}

/// Amount with its unit.
pub struct BudgetAmount<'a> {
    unit: &'a BudgetUnit,
    amount: u64,
}

impl BudgetAmount<'_> {
    /// Formats the amount alone: whole tokens, or money to four decimals, below one to six.
    pub fn without_unit(&self) -> String {
        match self.unit {
            BudgetUnit::Tokens => self.amount.to_string(),
            BudgetUnit::Money { .. } => {
                let parts: u64 = if self.amount < NANO { 1_000_000 } else { 10_000 };
                let digits = parts.ilog10() as usize;
                let amount = self.amount.div_ceil(NANO / parts);
                let text = format!("{}.{:0digits$}", amount / parts, amount % parts);
                let short = text.trim_end_matches('0');
                // At least cents, as money is written; none for whole amounts.
                match short.split_once('.') {
                    Some((whole, "")) => whole.to_owned(),
                    Some((whole, places)) => format!("{whole}.{places:0<2}"),
                    None => text,
                }
            }
        }
    }
}

impl fmt::Display for BudgetAmount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            BudgetUnit::Tokens => "tokens",
            BudgetUnit::Money { currency } => currency,
        };
        write!(f, "{} {unit}", self.without_unit())
    }
}

/// Formats as "50 USD: 49.83 spent, 49.91 spent or reserved".
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} spent, {} spent or reserved",
            self.show(self.allowed),
            self.show(self.spent).without_unit(),
            self.show(self.committed).without_unit()
        )
    }
}

/// Serializes for programs: tokens as whole numbers, money in the currency.
impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Budget", 4)?;
        let amounts =
            [("allowed", self.allowed), ("committed", self.committed), ("spent", self.spent)];
        match &self.unit {
            BudgetUnit::Tokens => {
                fields.serialize_field("unit", "tokens")?;
                for (name, amount) in amounts {
                    fields.serialize_field(name, &amount)?;
                }
            }
            BudgetUnit::Money { currency } => {
                fields.serialize_field("unit", currency)?;
                for (name, amount) in amounts {
                    fields.serialize_field(name, &(amount as f64 / NANO as f64))?;
                }
            }
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget::with_limit(None, &BudgetLimit::tokens(100).unwrap())
    }

    fn claim(take: i64, spent: u64) -> BudgetClaim {
        BudgetClaim { take, spent, is_debt: false }
    }

    #[test]
    fn no_more_is_committed_than_is_allowed_unless_it_was_spent() {
        let full = budget().after(&claim(100, 0)).unwrap();
        assert_eq!(full.after(&claim(1, 0)), None);
        let after = full.after(&claim(-30, 60)).unwrap();
        assert_eq!((after.committed, after.spent, after.unclaimed()), (70, 60, 30));
        assert_eq!(after.after(&claim(31, 0)), None);
        let debt = BudgetClaim { take: 31, spent: 41, is_debt: true };
        assert_eq!(after.after(&debt).unwrap().committed, 101);
    }

    #[test]
    fn a_limit_is_raised_and_never_set_below_what_is_committed() {
        let taken = budget().after(&claim(80, 10)).unwrap();
        let limited =
            |tokens| Budget::with_limit(Some(taken.clone()), &BudgetLimit::tokens(tokens).unwrap());
        assert_eq!(limited(200), Budget { allowed: 200, ..taken.clone() });
        assert_eq!(limited(80).allowed, 80);
        assert_eq!(limited(79), taken);
        let other = BudgetLimit::money(1e6, "USD").unwrap();
        assert_eq!(Budget::with_limit(Some(taken.clone()), &other), taken);
    }

    #[test]
    fn amounts_are_shown_as_people_write_them() {
        let budget = Budget::with_limit(None, &BudgetLimit::money(50.0, "USD").unwrap());
        let shown = [50.0, 49.83, 0.25, 0.5, 0.000_01].map(|amount| {
            budget.show(BudgetLimit::money(amount, "USD").unwrap().allowed).to_string()
        });
        assert_eq!(shown, ["50 USD", "49.83 USD", "0.25 USD", "0.50 USD", "0.00001 USD"]);
        assert_eq!(super::tests::budget().show(7).to_string(), "7 tokens");
        let json = serde_json::to_string(&budget).unwrap();
        assert_eq!(json, r#"{"unit":"USD","allowed":50.0,"committed":0.0,"spent":0.0}"#);
    }

    #[test]
    fn a_pause_says_what_is_missing_and_how_to_go_on() {
        let limit = BudgetLimit::money(50.0, "USD").unwrap();
        let budget = Budget { committed: 49_830_000_000, ..Budget::with_limit(None, &limit) };
        let why = budget.exhausted_reason(250_000_000);
        assert_eq!(why, "budget of 50 USD: 49.83 spent or reserved, next call may cost 0.25");
        assert_eq!(budget.raise_flag(&why), Some("--budget AMOUNT"));
        assert_eq!(budget.raise_flag("the quota is needed"), None);
        let why = budget.exhausted_reason(60_000_000_000);
        assert_eq!(why, "budget of 50 USD: one call may cost 60, more than all of it");
    }

    #[test]
    fn what_is_no_amount_is_no_limit() {
        for amount in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10] {
            assert!(BudgetLimit::money(amount, "USD").is_err(), "{amount}");
        }
        assert!(BudgetLimit::tokens(0).is_err());
    }
}
