//! The budget of a batch: whether the price of its every call will be known.

use crate::config::{Config, DeploymentConfig};
use domain::prices::Prices;

/// A model or deployment whose calls could not be counted against a budget of money.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UnpricedModelError(String);

/// Checks that a budget of money can be kept: every deployment that may serve one of the models has
/// a price for it.
///
/// # Errors
/// Names the first model without a price, and where to put it.
pub fn check_prices<'m>(
    models: impl IntoIterator<Item = &'m String>,
    config: &Config,
    prices: &Prices,
) -> Result<(), UnpricedModelError> {
    for model in models {
        let serving = config.deployments.iter().filter(|d| d.serves(model));
        let mut unpriced = serving.filter(|d| !d.has_price(model, prices));
        let unpriced = unpriced.next().map(DeploymentConfig::display_name);
        let is_unknown = config.deployments.is_empty() && prices.of(model).is_none();
        if unpriced.is_some() || is_unknown {
            return Err(UnpricedModelError(prices.missing_price(model, unpriced.as_deref())));
        }
    }
    Ok(())
}
