//! Snapshot of the audit ledger: the totals, and each deployment's windows.
//!
//! Only shapes and their addition; this is the JSON of `GET /ledger`. Neighbours: `audit_ledger`
//! keeps the totals, `quota` the windows.

use std::collections::BTreeMap;

use serde::Serialize;

use super::faults::FaultCounts;
use super::quota_status::QuotaWindow;

/// Token usage that a finished answer reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AnswerUsage {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Output tokens, reasoning included.
    pub completion_tokens: u64,
    pub reasoning_tokens: u64,
}

impl AnswerUsage {
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

/// Admitted requests and the tokens booked for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct AdmittedTotals {
    pub requests: u64,
    pub charged_tokens: u64,
}

/// Requests throttled (429) because the deployment had no capacity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct RefusalCounts {
    pub by_tokens: u64,
    pub by_requests: u64,
    /// A provisioned deployment was above 100 %.
    pub by_utilization: u64,
    /// The flex tier had no room.
    pub by_flex: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BilledTotals {
    pub requests: u64,
    #[serde(flatten)]
    pub usage: AnswerUsage,
}

/// Tier that is billed at its own price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BillingTier {
    Standard,
    Flex,
    /// Paid by the hour, not by the token.
    Provisioned,
}

/// Billed totals of each tier; they add up to [`LedgerSnapshot::billed`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TierTotals {
    pub standard: BilledTotals,
    pub flex: BilledTotals,
    pub provisioned: BilledTotals,
}

impl TierTotals {
    pub fn tier_mut(&mut self, tier: BillingTier) -> &mut BilledTotals {
        match tier {
            BillingTier::Standard => &mut self.standard,
            BillingTier::Flex => &mut self.flex,
            BillingTier::Provisioned => &mut self.provisioned,
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.standard.add(&other.standard);
        self.flex.add(&other.flex);
        self.provisioned.add(&other.provisioned);
    }
}

impl BilledTotals {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.usage.add(&other.usage);
    }
}

/// Duplicate billing: prompts that were paid for more than once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DuplicateBilling {
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
    pub window: QuotaWindow,
}

/// Snapshot of the audit ledger, as `GET /ledger` returns it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LedgerSnapshot {
    /// Calls to the three APIs, with any result.
    pub requests: u64,
    pub admitted: AdmittedTotals,
    pub refused: RefusalCounts,
    /// Requests that a provisioned deployment spilled to a standard one instead of failing.
    pub spilled: u64,
    /// Complete 200 bodies that were handed to the connection.
    pub answered: u64,
    /// Requests whose answer was produced, even if it never reached the caller.
    pub billed: BilledTotals,
    pub tiers: TierTotals,
    pub faults: FaultCounts,
    /// Requests that could never pass, by error code.
    pub rejected: BTreeMap<&'static str, u64>,
    /// Distinct prompts.
    pub prompts: u64,
    pub billed_more_than_once: DuplicateBilling,
    /// Latest windows of each deployment that had requests.
    pub windows: Vec<DeploymentWindow>,
}
