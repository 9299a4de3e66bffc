//! A batch's budget: what its calls may cost at the most, and how much of that is spoken for.
//!
//! Pure. The store keeps one [`Budget`] a batch and changes it by [`Claim`]s, each as a whole; a
//! worker claims what its calls may cost at the worst before it makes them, and gives back what they
//! did not cost. So `spent <= committed <= allowed` at every moment, whoever dies.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Billionths of the currency in one of it.
const NANO: u64 = 1_000_000_000;

/// The largest amount that every store keeps exactly: JSON numbers may be of 53 bits.
pub const LARGEST: u64 = 1 << 53;

/// What the reason of a pause begins with when the budget is why.
const EXHAUSTED: &str = "budget of";

/// What a budget is counted in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    Tokens,
    /// Billionths of this currency, the price table's.
    Money {
        currency: String,
    },
}

/// What a batch may cost at the most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub unit: Unit,
    /// In the unit's smallest parts.
    pub allowed: u64,
}

/// An amount that can't be a limit.
#[derive(Debug, thiserror::Error)]
#[error("a budget must be more than 0, and at most {most}")]
pub struct BadLimit {
    most: u64,
}

impl Limit {
    /// # Errors
    /// If it is nothing, or too much to count exactly.
    pub fn tokens(tokens: u64) -> Result<Self, BadLimit> {
        match tokens {
            1..=LARGEST => Ok(Self { unit: Unit::Tokens, allowed: tokens }),
            _ => Err(BadLimit { most: LARGEST }),
        }
    }

    /// # Errors
    /// If it is nothing, or too much to count exactly.
    pub fn money(amount: f64, currency: &str) -> Result<Self, BadLimit> {
        // The cast saturates, and makes nothing of what is no number.
        let allowed = (amount * NANO as f64).round() as u64;
        let unit = Unit::Money { currency: currency.to_owned() };
        match allowed {
            1..=LARGEST => Ok(Self { unit, allowed }),
            _ => Err(BadLimit { most: LARGEST / NANO }),
        }
    }
}

/// A batch's budget as it stands. Amounts are in the unit's smallest parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub unit: Unit,
    pub allowed: u64,
    /// What was spent, and what is set aside for calls under way and to come.
    pub committed: u64,
    /// What calls are known to have cost; where that can't be known, what they may have cost.
    pub spent: u64,
}

/// A change of what is committed and spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    /// To be committed; less than 0 gives back.
    pub take: i64,
    /// Of what is committed, spent since the last claim.
    pub spent: u64,
    /// It was spent already: taken even if that passes what is allowed.
    pub is_debt: bool,
}

impl Budget {
    /// A new one, or the old one with another limit; the old one as it is if that can't be.
    #[must_use]
    pub fn renewed(old: Option<Self>, limit: &Limit) -> Self {
        let (unit, allowed) = (limit.unit.clone(), limit.allowed);
        match old {
            None => Self { unit, allowed, committed: 0, spent: 0 },
            Some(old) if old.unit == unit && old.committed <= allowed => Self { allowed, ..old },
            Some(old) => old,
        }
    }

    /// The budget after the claim; `None` if it is refused.
    pub fn after(&self, claim: &Claim) -> Option<Self> {
        let committed = if claim.take < 0 {
            self.committed.saturating_sub(claim.take.unsigned_abs())
        } else {
            self.committed.saturating_add(claim.take.unsigned_abs())
        };
        let is_granted = claim.take <= 0 || claim.is_debt || committed <= self.allowed;
        let spent = self.spent + claim.spent;
        is_granted.then(|| Self { committed, spent, ..self.clone() })
    }

    /// What can still be claimed.
    pub fn left(&self) -> u64 {
        self.allowed.saturating_sub(self.committed)
    }

    /// Why a batch is paused whose next call may cost so much.
    pub fn exhausted(&self, need: u64) -> String {
        let (allowed, cost) = (self.show(self.allowed), self.show(need).bare());
        if need > self.allowed {
            return format!("{EXHAUSTED} {allowed}: one call may cost {cost}, more than all of it");
        }
        let committed = self.show(self.committed).bare();
        format!("{EXHAUSTED} {allowed}: {committed} spent or reserved, next call may cost {cost}")
    }

    /// How `promptmill resume` raises it, if that is what a batch is paused for.
    pub fn raise(&self, paused_for: &str) -> Option<&'static str> {
        let flag = match self.unit {
            Unit::Tokens => "--token-budget N",
            Unit::Money { .. } => "--budget AMOUNT",
        };
        paused_for.starts_with(EXHAUSTED).then_some(flag)
    }

    /// An amount of the budget's unit, for people.
    pub fn show(&self, amount: u64) -> Amount<'_> {
        Amount { unit: &self.unit, amount }
    }
}

/// An amount with its unit.
pub struct Amount<'a> {
    unit: &'a Unit,
    amount: u64,
}

impl Amount<'_> {
    /// The amount alone: whole tokens, or money to four places, of less than one to six.
    pub fn bare(&self) -> String {
        match self.unit {
            Unit::Tokens => self.amount.to_string(),
            Unit::Money { .. } => {
                let parts: u64 = if self.amount < NANO { 1_000_000 } else { 10_000 };
                let digits = parts.ilog10() as usize;
                let amount = self.amount.div_ceil(NANO / parts);
                let text = format!("{}.{:0digits$}", amount / parts, amount % parts);
                let short = text.trim_end_matches('0');
                // At least cents, as people write money; none for whole amounts.
                match short.split_once('.') {
                    Some((whole, "")) => whole.to_owned(),
                    Some((whole, places)) => format!("{whole}.{places:0<2}"),
                    None => text,
                }
            }
        }
    }
}

impl fmt::Display for Amount<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Tokens => "tokens",
            Unit::Money { currency } => currency,
        };
        write!(f, "{} {unit}", self.bare())
    }
}

/// "50 USD: 49.83 spent, 49.91 with what is set aside for calls".
impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} spent, {} with what is set aside for calls",
            self.show(self.allowed),
            self.show(self.spent).bare(),
            self.show(self.committed).bare()
        )
    }
}

/// For programs: tokens as whole numbers, money in the currency.
impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut fields = to.serialize_struct("Budget", 4)?;
        let amounts =
            [("allowed", self.allowed), ("committed", self.committed), ("spent", self.spent)];
        match &self.unit {
            Unit::Tokens => {
                fields.serialize_field("unit", "tokens")?;
                for (name, amount) in amounts {
                    fields.serialize_field(name, &amount)?;
                }
            }
            Unit::Money { currency } => {
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
        Budget::renewed(None, &Limit::tokens(100).unwrap())
    }

    fn claim(take: i64, spent: u64) -> Claim {
        Claim { take, spent, is_debt: false }
    }

    #[test]
    fn no_more_is_committed_than_is_allowed_unless_it_was_spent() {
        let full = budget().after(&claim(100, 0)).unwrap();
        assert_eq!(full.after(&claim(1, 0)), None);
        let after = full.after(&claim(-30, 60)).unwrap();
        assert_eq!((after.committed, after.spent, after.left()), (70, 60, 30));
        assert_eq!(after.after(&claim(31, 0)), None);
        let debt = Claim { take: 31, spent: 41, is_debt: true };
        assert_eq!(after.after(&debt).unwrap().committed, 101);
    }

    #[test]
    fn a_limit_is_raised_and_never_set_below_what_is_committed() {
        let taken = budget().after(&claim(80, 10)).unwrap();
        let limited =
            |tokens| Budget::renewed(Some(taken.clone()), &Limit::tokens(tokens).unwrap());
        assert_eq!(limited(200), Budget { allowed: 200, ..taken.clone() });
        assert_eq!(limited(80).allowed, 80);
        assert_eq!(limited(79), taken);
        let other = Limit::money(1e6, "USD").unwrap();
        assert_eq!(Budget::renewed(Some(taken.clone()), &other), taken);
    }

    #[test]
    fn amounts_are_shown_as_people_write_them() {
        let budget = Budget::renewed(None, &Limit::money(50.0, "USD").unwrap());
        let shown = [50.0, 49.83, 0.25, 0.5, 0.000_01]
            .map(|amount| budget.show(Limit::money(amount, "USD").unwrap().allowed).to_string());
        assert_eq!(shown, ["50 USD", "49.83 USD", "0.25 USD", "0.50 USD", "0.00001 USD"]);
        assert_eq!(super::tests::budget().show(7).to_string(), "7 tokens");
        let json = serde_json::to_string(&budget).unwrap();
        assert_eq!(json, r#"{"unit":"USD","allowed":50.0,"committed":0.0,"spent":0.0}"#);
    }

    #[test]
    fn a_pause_says_what_is_missing_and_how_to_go_on() {
        let limit = Limit::money(50.0, "USD").unwrap();
        let budget = Budget { committed: 49_830_000_000, ..Budget::renewed(None, &limit) };
        let why = budget.exhausted(250_000_000);
        assert_eq!(why, "budget of 50 USD: 49.83 spent or reserved, next call may cost 0.25");
        assert_eq!(budget.raise(&why), Some("--budget AMOUNT"));
        assert_eq!(budget.raise("the quota is needed"), None);
        let why = budget.exhausted(60_000_000_000);
        assert_eq!(why, "budget of 50 USD: one call may cost 60, more than all of it");
    }

    #[test]
    fn what_is_no_amount_is_no_limit() {
        for amount in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e10] {
            assert!(Limit::money(amount, "USD").is_err(), "{amount}");
        }
        assert!(Limit::tokens(0).is_err());
    }
}
