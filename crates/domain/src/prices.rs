//! Prices of tokens: a table that the user may edit, and exact sums.
//!
//! Money is counted in whole trillionths of the table's currency, so that a million small costs add
//! up to exactly what one large one would.

use std::collections::BTreeMap;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use crate::job::BatchId;
use crate::outcome::TokenUsage;

/// Default table, `config/prices.toml`.
const DEFAULT_TABLE: &str = include_str!("../../../config/prices.toml");

/// Price table of models, with its date.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Date on which the prices were valid.
    pub date: String,
    pub currency: String,
    /// Price on the flex tier, as a part of the standard price.
    #[serde(default = "half")]
    flex: f64,
    models: BTreeMap<String, ModelPrice>,
    /// File that it was read from.
    #[serde(skip)]
    pub path: PathBuf,
}

/// Price of one million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPrice {
    pub input: f64,
    /// Price of cached prompt tokens; that of all others if absent.
    pub cached_input: Option<f64>,
    pub output: f64,
}

/// Error in a price table.
#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    #[error("can't read the price table {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the price table {}: {problem}", path.display())]
    Toml { path: PathBuf, problem: String },
    #[error("the price table {}: {what} must be 0 or more", path.display())]
    Negative { path: PathBuf, what: String },
}

/// Amount in the table's currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Money {
    pico: u128,
}

impl Prices {
    /// Loads the table of a file, or the one that comes with the program.
    ///
    /// # Errors
    /// Says what is wrong with the file.
    pub fn load(file: Option<&Path>) -> Result<Self, PricesError> {
        let path = file.unwrap_or(Path::new("config/prices.toml")).to_owned();
        let text = match file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|source| PricesError::Read { path: path.to_owned(), source })?,
            None => DEFAULT_TABLE.to_owned(),
        };
        let mut prices: Self = toml::from_str(&text).map_err(|error| PricesError::Toml {
            path: path.clone(),
            problem: error.to_string().trim().to_owned(),
        })?;
        prices.path.clone_from(&path);
        let is_price = |price: f64| price.is_finite() && price >= 0.0;
        if !is_price(prices.flex) {
            return Err(PricesError::Negative { path, what: "flex".into() });
        }
        let bad = prices.models.iter().find(|(_, price)| {
            let cached = price.cached_input.unwrap_or(price.input);
            ![price.input, cached, price.output].into_iter().all(is_price)
        });
        match bad {
            Some((model, _)) => Err(PricesError::Negative { path, what: format!("'{model}'") }),
            None => Ok(prices),
        }
    }

    /// Returns the price of a model, also under the dated name that the service answers with
    /// (`gpt-4.1-mini-2025-04-14`).
    pub fn of(&self, model: &str) -> Option<ModelPrice> {
        let undated = || {
            let (name, _) = model.match_indices('-').find_map(|(at, _)| {
                let (name, date) = (&model[..at], &model[at + 1..]);
                is_date(date).then_some((name, date))
            })?;
            self.models.get(name)
        };
        self.models.get(model).or_else(undated).copied()
    }

    /// Returns the error message for a model without a price where one is needed.
    pub fn missing_price(&self, model: &str, deployment: Option<&str>) -> String {
        let deployment = deployment.map_or(String::new(), |name| format!("deployment {name}: "));
        format!(
            "{deployment}the model '{model}' has no price in {}; add it there ([prices] \
             file in the configuration), or limit tokens instead (--token-budget)",
            self.path.display()
        )
    }

    /// Returns the cost of a batch's tokens, like [`Self::cost`]; those of a simulated one cost nothing.
    pub fn cost_in(
        &self,
        batch: &BatchId,
        model: &str,
        usage: TokenUsage,
        is_flex: bool,
    ) -> Option<Money> {
        if batch.is_simulated() {
            return Some(Money::default());
        }
        self.cost(model, usage, is_flex)
    }

    /// Returns the cost of a model's tokens; `None` if its price is unknown.
    pub fn cost(&self, model: &str, usage: TokenUsage, is_flex: bool) -> Option<Money> {
        let price = self.of(model)?;
        let factor = if is_flex { self.flex } else { 1.0 };
        let part =
            |tokens: u64, per_million: f64| u128::from(tokens) * pico_each(per_million * factor);
        let cached = price.cached_input.unwrap_or(price.input);
        let fresh = usage.prompt.saturating_sub(usage.cached);
        let pico = part(fresh, price.input)
            + part(usage.cached.min(usage.prompt), cached)
            + part(usage.completion, price.output);
        Some(Money { pico })
    }
}

/// Converts the price of a million tokens to trillionths a token: a factor of a million.
fn pico_each(per_million: f64) -> u128 {
    (per_million * 1e6).round() as u128
}

fn is_date(text: &str) -> bool {
    let parts: Vec<_> = text.split('-').collect();
    let digits = |part: &str, n| part.len() == n && part.bytes().all(|b| b.is_ascii_digit());
    matches!(parts[..], [y, m, d] if digits(y, 4) && digits(m, 2) && digits(d, 2))
}

fn half() -> f64 {
    0.5
}

impl Money {
    /// Converts an amount that a person wrote; less than a trillionth is cut off.
    pub fn new(amount: f64) -> Self {
        // The cast saturates: a negative amount is nothing.
        Self { pico: (amount * 1e12) as u128 }
    }

    /// Returns billionths, rounded up.
    pub fn nanos(self) -> u64 {
        u64::try_from(self.pico.div_ceil(1_000)).unwrap_or(u64::MAX)
    }

    pub fn amount(self) -> f64 {
        self.pico as f64 / 1e12
    }

    /// Returns the half; less than a trillionth is rounded up.
    #[must_use]
    pub fn half(self) -> Self {
        Self { pico: self.pico.div_ceil(2) }
    }

    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self { pico: self.pico.saturating_sub(other.pico) }
    }
}

/// Formats with four decimals: a small batch costs less than a cent.
impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ten_thousandths = (self.pico + 50_000_000) / 100_000_000;
        f.pad(&format!("{}.{:04}", ten_thousandths / 10_000, ten_thousandths % 10_000))
    }
}

/// Serializes as a JSON number: programs want to add it up.
impl Serialize for Money {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(self.amount())
    }
}

impl Add for Money {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { pico: self.pico + other.pico }
    }
}

impl AddAssign for Money {
    fn add_assign(&mut self, other: Self) {
        self.pico += other.pico;
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(amounts: I) -> Self {
        amounts.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(prompt: u64, cached: u64, completion: u64) -> TokenUsage {
        TokenUsage { prompt, cached, completion, ..TokenUsage::default() }
    }

    #[test]
    fn cached_tokens_have_their_own_price_and_reasoning_is_part_of_the_output() {
        let prices = Prices::load(None).unwrap();
        let used = TokenUsage { reasoning: 500_000, ..usage(1_000_000, 400_000, 1_000_000) };
        let cost = prices.cost("gpt-4.1-mini", used, false).unwrap();
        assert_eq!(cost.to_string(), "1.8800", "0.6 x 0.40 + 0.4 x 0.10 + 1.60");
        let flex = prices.cost("gpt-4.1-mini", used, true).unwrap();
        assert_eq!(flex.to_string(), "0.9400");
    }

    #[test]
    fn an_unknown_model_has_no_cost_rather_than_none_to_pay() {
        let prices = Prices::load(None).unwrap();
        assert_eq!(prices.cost("my-own-model", usage(1, 0, 1), false), None);
        assert!(prices.of("gpt-4.1-mini-2025-04-14").is_some(), "the dated name is the same model");
        assert!(prices.of("gpt-4.1-mini-turbo").is_none());
    }

    #[test]
    fn a_million_small_costs_are_one_large_one() {
        let prices = Prices::load(None).unwrap();
        let cost = |prompt| prices.cost("gpt-5-nano", usage(prompt, 0, 0), false).unwrap();
        let small: Money = std::iter::repeat_n(cost(7), 1_000_000).sum();
        assert_eq!(small, cost(7_000_000));
    }

    #[test]
    fn a_wrong_table_is_told_with_its_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let said = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            Prices::load(Some(file.path())).unwrap_err().to_string()
        };
        let head = "date = \"d\"\ncurrency = \"EUR\"\n[models]\n";
        assert!(said(&format!("{head}m = {{ input = -1.0, output = 1 }}")).contains("'m'"));
        assert!(said(&format!("{head}m = {{ inpt = 1.0, output = 1 }}")).contains("inpt"));
        assert!(said("date = 1").contains("line 1"));
    }
}
