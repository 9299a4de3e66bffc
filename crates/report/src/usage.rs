//! Tokens and cost, by whatever people charge them back by.
//!
//! Counted from the outcomes themselves, so that the sums are right whatever crashed. Memory grows
//! with the number of lines of the answer, never with the number of outcomes.

use std::collections::BTreeMap;
use std::str::FromStr;

use futures_util::TryStreamExt;
use serde::{Serialize, Serializer};

use domain::job::BatchId;
use domain::outcome::Usage;
use domain::prices::{Money, Prices};
use store::{Brief, Store, StoreError};

/// What lines are told apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dimension {
    Batch,
    Deployment,
    Model,
    /// In UTC.
    Day,
    Hour,
    /// A key of the jobs' `metadata`.
    Metadata(String),
}

impl Dimension {
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

    fn of(&self, batch: &BatchId, brief: &Brief) -> String {
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

/// The name of a dimension that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is none of batch, deployment, model, day, hour, metadata.KEY")]
pub struct UnknownDimension(String);

impl FromStr for Dimension {
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

/// A value that is not a text is shown as its JSON; a job without the key has an empty one.
fn metadata(brief: &Brief, key: &str) -> String {
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

/// What some jobs came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Line {
    /// The values of the dimensions asked for, in their order.
    pub keys: Vec<String>,
    pub jobs: u64,
    /// HTTP calls that counted as tries.
    pub attempts: u64,
    #[serde(flatten)]
    pub usage: Usage,
    pub cost: Cost,
}

/// What is known of a cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Of the tokens whose price is known.
    pub known: Money,
    /// Tokens of models that the price table does not have.
    pub unpriced_tokens: u64,
}

impl Cost {
    /// Adds what tokens cost; `None`: their price is unknown.
    pub fn add(&mut self, cost: Option<Money>, tokens: u64) {
        match cost {
            Some(cost) => self.known += cost,
            None => self.unpriced_tokens += tokens,
        }
    }
}

/// A number, or null where a part of it is unknown: a sum that lacks a part is no sum.
impl Serialize for Cost {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        (self.unpriced_tokens == 0).then_some(self.known).serialize(to)
    }
}

/// Sums by these dimensions, over all batches or one of them, in the order of the keys.
///
/// # Errors
/// What the store said.
pub async fn sum(
    store: &dyn Store,
    only: Option<&BatchId>,
    by: &[Dimension],
    prices: &Prices,
) -> Result<Vec<Line>, StoreError> {
    let batches = match only {
        Some(batch) => vec![batch.clone()],
        None => store.batches().await?.into_iter().map(|batch| batch.id).collect(),
    };
    let mut lines: BTreeMap<Vec<String>, Line> = BTreeMap::new();
    for batch in batches {
        let mut briefs = store.briefs(&batch).await?;
        while let Some(brief) = briefs.try_next().await? {
            let keys: Vec<_> = by.iter().map(|dimension| dimension.of(&batch, &brief)).collect();
            let line = lines
                .entry(keys)
                .or_insert_with_key(|keys| Line { keys: keys.clone(), ..Line::default() });
            line.jobs += u64::from(brief.ending.is_some());
            line.attempts += u64::from(brief.attempts);
            line.usage += brief.usage;
            let is_flex = brief.service_tier.as_deref() == Some("flex");
            let cost = prices.cost(&brief.model, brief.usage, is_flex);
            line.cost.add(cost, brief.usage.total());
        }
    }
    Ok(lines.into_values().collect())
}

/// All lines together.
pub fn total(lines: &[Line]) -> Line {
    lines.iter().fold(Line::default(), |mut total, line| {
        total.jobs += line.jobs;
        total.attempts += line.attempts;
        total.usage += line.usage;
        total.cost.known += line.cost.known;
        total.cost.unpriced_tokens += line.cost.unpriced_tokens;
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief(metadata: Option<&str>) -> Brief {
        Brief {
            ending: Some(domain::outcome::Ending::Succeeded),
            failure: None,
            usage: Usage::default(),
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
        let value = |name: &str, brief: &Brief| {
            let dimension: Dimension = name.parse().unwrap();
            assert_eq!(dimension.name(), name);
            dimension.of(&batch, brief)
        };
        let of_team = brief(Some(r#"{"team":"tokyo","cost_centre":42}"#));
        assert_eq!(value("day", &of_team), "2026-11-23");
        assert_eq!(value("hour", &of_team), "2026-11-23T16");
        assert_eq!(value("metadata.team", &of_team), "tokyo");
        assert_eq!(value("metadata.cost_centre", &of_team), "42");
        assert_eq!(value("metadata.team", &brief(None)), "");
        for wrong in ["", "metadata.", "team"] {
            assert!(wrong.parse::<Dimension>().is_err(), "{wrong}");
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
