//! Costs, known in part or not at all.

use domain::prices::Prices;
use report::forecast::ForecastRange;
use report::usage::Cost;

pub(super) fn cost(cost: Cost, prices: &Prices) -> String {
    let known = format!("{} {}", cost.known, prices.currency);
    match (cost.unpriced_tokens, cost.known.amount() > 0.0) {
        (0, _) => known,
        (unpriced, true) => format!("at least {known} ({unpriced} tokens without a known price)"),
        (_, false) => "unknown".to_owned(),
    }
}

pub(super) fn money(range: ForecastRange) -> String {
    match range {
        ForecastRange { low: Some(low), likely, high: Some(high) } if low < high => {
            format!("{likely:.4} ({low:.4} to {high:.4})")
        }
        ForecastRange { likely, .. } => format!("{likely:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::prices::Money;

    #[test]
    fn what_is_not_known_is_never_told_as_nothing() {
        let prices = Prices::load(None).unwrap();
        let said = |known: f64, unpriced_tokens| {
            cost(Cost { known: Money::new(known), unpriced_tokens }, &prices)
        };
        assert_eq!(said(1.5, 0), "1.5000 USD");
        assert_eq!(said(0.0, 7), "unknown");
        assert_eq!(said(1.5, 7), "at least 1.5000 USD (7 tokens without a known price)");
    }
}
