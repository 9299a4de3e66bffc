//! Cost of the jobs by deployment, and through the service's own Batch API.

use serde::Serialize;

use super::count::CountedInput;
use super::simulate::{SimulatedRun, SimulatedUsage};
use admission::PoolMember;
use domain::deployment::ServiceKind;
use domain::outcome::TokenUsage;
use domain::prices::{Money, Prices};
use report::usage::Cost;

/// Costs, in the currency of the price table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostForecast {
    pub currency: String,
    /// Date of the prices.
    pub prices_of: String,
    /// Cost with answers of the expected length. `null` in JSON where a price is unknown.
    pub expected: Cost,
    /// Cost with every answer as long as it may be.
    pub at_most: Cost,
    /// Expected cost through the Batch API: half the price within 24 hours, and embeddings are not
    /// taken there (Azure docs: "Azure OpenAI Batch").
    pub batch_api: Cost,
    /// The deployments in the order of the configuration.
    pub deployments: Vec<DeploymentCost>,
}

/// Cost of one deployment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeploymentCost {
    pub deployment: String,
    pub tier: u8,
    pub jobs: u64,
    pub prompt: u64,
    pub completion: u64,
    /// Absent where it is provisioned: that is paid by the hour, regardless of use.
    pub cost: Option<Cost>,
}

/// Adds up the cost of a simulated run.
pub fn costs(
    members: &[PoolMember],
    counted: &CountedInput,
    run: &SimulatedRun,
    prices: &Prices,
) -> CostForecast {
    let (mut expected, mut at_most) = (Cost::default(), Cost::default());
    let mut batch_api = Cost::default();
    let mut deployments = Vec::with_capacity(members.len());
    for (member, used) in members.iter().zip(&run.used) {
        let is_flex = member.limits.service == ServiceKind::Flex;
        let is_provisioned = member.limits.service == ServiceKind::Provisioned;
        let mut part = DeploymentCost {
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
                let is_nothing = |usage: TokenUsage| usage.total() == 0;
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
    CostForecast { currency, prices_of, expected, at_most, batch_api, deployments }
}

/// Returns the expected usage and the largest possible. No prompt is assumed to be cached.
fn usages(used: &SimulatedUsage) -> (TokenUsage, TokenUsage) {
    let usage =
        TokenUsage { prompt: used.prompt, completion: used.completion, ..TokenUsage::default() };
    (usage, TokenUsage { completion: used.max_output, ..usage })
}
