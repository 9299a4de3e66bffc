//! What the jobs will cost, where, and what they would cost through the service's own Batch API.

use serde::Serialize;

use super::count::Counted;
use super::simulate::{Course, Used};
use admission::Member;
use admission::deployment::Service;
use domain::outcome::Usage;
use domain::prices::{Money, Prices};
use report::usage::Cost;

/// What it comes to, in the currency of the price table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Costs {
    pub currency: String,
    /// When the prices held.
    pub prices_of: String,
    /// With answers as long as they are expected to be. `null` in JSON where a price is unknown.
    pub expected: Cost,
    /// With every answer as long as it may be.
    pub at_most: Cost,
    /// What is expected, through the Batch API: half the price within 24 hours, and embeddings are not
    /// taken there (Azure docs: "Azure OpenAI Batch").
    pub batch_api: Cost,
    /// The deployments in the order of the configuration.
    pub deployments: Vec<Part>,
}

/// One deployment's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Part {
    pub deployment: String,
    pub tier: u8,
    pub jobs: u64,
    pub prompt: u64,
    pub completion: u64,
    /// Absent where it is provisioned: that is paid by the hour, whatever it does.
    pub cost: Option<Cost>,
}

/// Adds up what a course used.
pub fn costs(members: &[Member], counted: &Counted, course: &Course, prices: &Prices) -> Costs {
    let (mut expected, mut at_most) = (Cost::default(), Cost::default());
    let mut batch_api = Cost::default();
    let mut deployments = Vec::with_capacity(members.len());
    for (member, used) in members.iter().zip(&course.used) {
        let is_flex = member.limits.service == Service::Flex;
        let is_provisioned = member.limits.service == Service::Provisioned;
        let mut part = Part {
            deployment: member.name.clone(),
            tier: member.tier,
            jobs: 0,
            prompt: 0,
            completion: 0,
            cost: (!is_provisioned).then(Cost::default),
        };
        for (asked, used) in counted.models.iter().zip(used) {
            part.jobs += used.jobs;
            part.prompt += used.prompt;
            part.completion += used.completion;
            let names = std::iter::once(&asked.model).chain(&member.models);
            let priced = names.into_iter().find(|name| prices.of(name).is_some());
            let cost = |usage, flex| {
                let is_nothing = |usage: Usage| usage.total() == 0;
                match priced {
                    None if is_nothing(usage) => Some(Money::default()),
                    priced => prices.cost(priced?, usage, flex),
                }
            };
            let (usage, most) = usages(used);
            let is_embedding = asked.max_output == 0;
            let batch =
                cost(usage, false).map(|cost| if is_embedding { cost } else { cost.half() });
            batch_api.add(batch, usage.total());
            if let Some(part) = &mut part.cost {
                part.add(cost(usage, is_flex), usage.total());
                expected.add(cost(usage, is_flex), usage.total());
                at_most.add(cost(most, is_flex), most.total());
            }
        }
        deployments.push(part);
    }
    let (currency, prices_of) = (prices.currency.clone(), prices.date.clone());
    Costs { currency, prices_of, expected, at_most, batch_api, deployments }
}

/// What is expected, and the most that it can be. Nothing is taken to come from the service's cache.
fn usages(used: &Used) -> (Usage, Usage) {
    let usage = Usage { prompt: used.prompt, completion: used.completion, ..Usage::default() };
    (usage, Usage { completion: used.max_output, ..usage })
}
