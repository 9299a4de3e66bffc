//! Limits of a quota, and what is told of its windows.

use std::time::Duration;

use serde::Serialize;

/// Retry-After of the service for a request that is larger than its whole quota.
pub const NEVER_RETRY_AFTER: Duration = Duration::from_secs(86_400);

/// Quota limits of a deployment; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaLimits {
    pub tpm: Option<u64>,
    pub rpm: Option<u64>,
}

/// Bookings of one window: of a fixed one, or of one by the clock where the meter has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct QuotaWindow {
    /// Number of the window since the simulator started, from 0.
    pub index: u64,
    /// Tokens that may be booked in this window; absent when unlimited.
    pub quota: Option<u64>,
    /// Tokens that were booked.
    pub charged: u64,
    /// Tokens that other callers booked.
    pub others: u64,
    /// Requests that were admitted.
    pub admitted: u64,
    /// Requests that were refused, for tokens or for requests.
    pub refused: u64,
}

/// Decision of the quota on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaVerdict {
    Admitted,
    TokensFull { retry_after: Duration },
    RequestsFull { retry_after: Duration },
    GatewayFull { retry_after: Duration },
}

/// Quota status that the rate-limit headers report after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaStatus {
    pub limits: QuotaLimits,
    /// Tokens that can still be booked before the window ends; present when there is a limit.
    pub remaining_tokens: Option<u64>,
    pub remaining_requests: Option<u64>,
    pub reset_tokens: Duration,
    pub reset_requests: Duration,
}
