//! Tokens and cost, grouped for chargeback.
//!
//! Counted from the outcomes themselves, so the sums are right after any crash. Memory grows with
//! the number of result lines, never with the number of outcomes.

use std::collections::BTreeMap;
use std::str::FromStr;

use futures_util::TryStreamExt;
use serde::{Serialize, Serializer};

use domain::job::BatchId;
use domain::outcome::TokenUsage;
use domain::prices::{Money, Prices};
use store::{FinishCounts, OutcomeSummary, Store, StoreError};

/// Key by which usage is grouped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageDimension {
    Batch,
    Deployment,
    Model,
    /// Day in UTC.
    Day,
    Hour,
    /// A key of the jobs' `metadata`.
    Metadata(String),
}

impl UsageDimension {
    pub fn name(&self) -> String {
        match self {
            Self::Batch => "batch".into(),
            Self::Deployment => "deployment".into(),
            Self::Model => "model".into(),
            Self::Day => "day".into(),
            Self::Hour => "hour".into(),
            Self::Metadata(key) => format!("metadata.{key}"),
        }
    }

    fn value_of(&self, batch: &BatchId, brief: &OutcomeSummary) -> String {
        match self {
            Self::Batch => batch.to_string(),
            Self::Deployment => brief.deployment.clone(),
            Self::Model => brief.model.clone(),
            // "2026-11-23T16" of an RFC 3339 time.
            Self::Day => brief.finished_at.to_string()[..10].to_owned(),
            Self::Hour => brief.finished_at.to_string()[..13].to_owned(),
            Self::Metadata(key) => metadata(brief, key),
        }
    }
}

/// Name of a dimension that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is none of batch, deployment, model, day, hour, metadata.KEY")]
pub struct UnknownDimension(String);

impl FromStr for UsageDimension {
    type Err = UnknownDimension;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(match name {
            "batch" => Self::Batch,
            "deployment" => Self::Deployment,
            "model" => Self::Model,
            "day" => Self::Day,
            "hour" => Self::Hour,
            _ => match name.strip_prefix("metadata.") {
                Some(key) if !key.is_empty() => Self::Metadata(key.to_owned()),
                _ => return Err(UnknownDimension(name.to_owned())),
            },
        })
    }
}

/// Returns a metadata value: a text as it is, others as JSON; empty if the job lacks the key.
fn metadata(brief: &OutcomeSummary, key: &str) -> String {
    let text = brief.metadata.as_deref().unwrap_or("{}");
    let Ok(object) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text)
    else {
        return String::new();
    };
    match object.get(key) {
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Usage and cost of one group of jobs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct UsageLine {
    /// Values of the requested dimensions, in their order.
    pub keys: Vec<String>,
    pub jobs: u64,
    /// HTTP calls that counted as attempts.
    pub attempts: u64,
    #[serde(flatten)]
    pub usage: TokenUsage,
    #[serde(flatten)]
    pub finishes: FinishCounts,
    pub cost: Cost,
}

/// Cost, as far as prices are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Cost of the tokens whose price is known.
    pub known: Money,
    /// Tokens of models that are not in the price table.
    pub unpriced_tokens: u64,
}

impl Cost {
    /// Adds the cost of `tokens`; `None` if their price is unknown.
    pub fn add(&mut self, cost: Option<Money>, tokens: u64) {
        match cost {
            Some(cost) => self.known += cost,
            None => self.unpriced_tokens += tokens,
        }
    }
}

/// Serializes as a number, or as null if a part is unknown: an incomplete sum is no sum.
impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (self.unpriced_tokens == 0).then_some(self.known).serialize(to)
    }
}

/// Sums usage by these dimensions, over all batches or one of them, in the order of the keys.
///
/// # Errors
/// If the store fails.
pub async fn sum(
    store: &dyn Store,
    only: Option<&BatchId>,
    by: &[UsageDimension],
    prices: &Prices,
) -> Result<Vec<UsageLine>, StoreError> {
    let batches = match only {
        Some(batch) => vec![batch.clone()],
        None => store.batches().await?.into_iter().map(|batch| batch.id).collect(),
    };
    let mut lines: BTreeMap<Vec<String>, UsageLine> = BTreeMap::new();
    for batch in batches {
        let mut briefs = store.outcome_summaries(&batch).await?;
        while let Some(brief) = briefs.try_next().await? {
            let keys: Vec<_> =
                by.iter().map(|dimension| dimension.value_of(&batch, &brief)).collect();
            let line = lines.entry(keys).or_insert_with_key(|keys| UsageLine {
                keys: keys.clone(),
                ..UsageLine::default()
            });
            line.jobs += u64::from(brief.ending.is_some());
            line.attempts += u64::from(brief.attempts);
            line.usage += brief.usage;
            line.finishes += FinishCounts::of(brief.ending, brief.finish);
            let is_flex = brief.service_tier.as_deref() == Some("flex");
            let cost = prices.cost_in(&batch, &brief.model, brief.usage, is_flex);
            line.cost.add(cost, brief.usage.total());
        }
    }
    Ok(lines.into_values().collect())
}

/// Sums all lines.
pub fn total(lines: &[UsageLine]) -> UsageLine {
    lines.iter().fold(UsageLine::default(), |mut total, line| {
        total.jobs += line.jobs;
        total.attempts += line.attempts;
        total.usage += line.usage;
        total.finishes += line.finishes;
        total.cost.known += line.cost.known;
        total.cost.unpriced_tokens += line.cost.unpriced_tokens;
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(metadata: Option<&str>) -> OutcomeSummary {
        OutcomeSummary {
            ending: Some(domain::outcome::OutcomeStatus::Succeeded),
            failure: None,
            usage: TokenUsage::default(),
            finish: None,
            service_tier: None,
            attempts: 1,
            throttled: 0,
            deployment: "d".into(),
            model: "m".into(),
            latency_ms: 1,
            finished_at: "2026-11-23T16:59:59.5Z".parse().unwrap(),
            deadline: None,
            metadata: metadata.map(Into::into),
        }
    }

    #[test]
    fn dimensions_are_read_and_say_their_value() {
        let batch: BatchId = "b".parse().unwrap();
        let value = |name: &str, brief: &OutcomeSummary| {
            let dimension: UsageDimension = name.parse().unwrap();
            assert_eq!(dimension.name(), name);
            dimension.value_of(&batch, brief)
        };
        let of_team = brief(Some(r#"{"team":"tokyo","cost_centre":42}"#));
        assert_eq!(value("day", &of_team), "2026-11-23");
        assert_eq!(value("hour", &of_team), "2026-11-23T16");
        assert_eq!(value("metadata.team", &of_team), "tokyo");
        assert_eq!(value("metadata.cost_centre", &of_team), "42");
        assert_eq!(value("metadata.team", &brief(None)), "");
        for wrong in ["", "metadata.", "team"] {
            assert!(wrong.parse::<UsageDimension>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_cost_with_an_unknown_part_is_no_number() {
        let mut cost = Cost::default();
        cost.add(Some(Money::new(1.5)), 10);
        assert_eq!(serde_json::to_string(&cost).unwrap(), "1.5");
        cost.add(None, 10);
        assert_eq!(serde_json::to_string(&cost).unwrap(), "null");
    }
}
