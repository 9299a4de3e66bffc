//! What the books say at one moment: the sums, and each deployment's windows.
//!
//! Only shapes and how they add up; this is the JSON of `GET /ledger`. Neighbours: `books` keeps
//! the sums, `quota` the windows.

use std::collections::BTreeMap;

use serde::Serialize;

use super::faults::FaultCounts;
use super::quota::Window;

/// What a finished answer reports as its cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Reasoning included.
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
}

impl Usage {
    pub fn total(&self) -> u64 {
        self.prompt_tokens + self.completion_tokens
    }

    pub fn add(&mut self, other: &Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
    }
}

/// A count of requests and the tokens that they were booked with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Admitted {
    pub requests: u64,
    pub charged_tokens: u64,
}

/// Requests refused with 429 for what the deployment could take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub by_tokens: u64,
    pub by_requests: u64,
    /// A provisioned deployment was above 100 %.
    pub by_utilization: u64,
    /// The flex tier had no room.
    pub by_flex: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Billed {
    pub requests: u64,
    #[serde(flatten)]
    pub usage: Usage,
}

/// The tiers that are billed by different prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    Standard,
    Flex,
    /// Paid by the hour, not by the token.
    Provisioned,
}

/// What was billed on each tier; together it is [`Ledger::billed`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tiers {
    pub standard: Billed,
    pub flex: Billed,
    pub provisioned: Billed,
}

impl Tiers {
    pub fn of(&mut self, tier: Tier) -> &mut Billed {
        match tier {
            Tier::Standard => &mut self.standard,
            Tier::Flex => &mut self.flex,
            Tier::Provisioned => &mut self.provisioned,
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.standard.add(&other.standard);
        self.flex.add(&other.flex);
        self.provisioned.add(&other.provisioned);
    }
}

impl Billed {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.usage.add(&other.usage);
    }
}

/// What was paid for again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BilledAgain {
    /// Distinct prompts that were billed more than once.
    pub prompts: u64,
    /// Billed requests beyond the first of their prompt.
    pub excess_requests: u64,
}

/// One window of one deployment's quota.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeploymentWindow {
    pub deployment: String,
    #[serde(flatten)]
    pub window: Window,
}

/// The books at one moment: what `GET /ledger` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Calls to the three APIs, whatever became of them.
    pub requests: u64,
    pub admitted: Admitted,
    pub refused: Refused,
    /// Requests that a provisioned deployment handed on to a standard one instead of failing.
    pub spilled: u64,
    /// Whole 200 bodies that were handed to the connection.
    pub answered: u64,
    /// Requests whose answer was made, whether or not it reached the caller.
    pub billed: Billed,
    pub tiers: Tiers,
    pub faults: FaultCounts,
    /// Requests that could never pass, by error code.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Distinct prompts.
    pub prompts: u64,
    pub billed_more_than_once: BilledAgain,
    /// The last windows of each deployment in which anything was asked.
    pub windows: Vec<DeploymentWindow>,
}
